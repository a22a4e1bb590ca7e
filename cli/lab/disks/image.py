"""A file system of its own in a file: ext4 on a loop device, whose power can be cut.

The cut is ext4's own: from one moment on nothing reaches the device, and what its journal holds is
not written out. Then the file system is checked, as a machine does that comes back, and mounted.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path

from cli.lab.disks.tools import run
from replica.protocol.errors import Unavailable

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: _IOR('X', 125, u32). Source: linux fs/ext4/ext4.h."""
WITHOUT_FLUSHING_THE_LOG = 2
REPAIRED = 1
"""Exit status of e2fsck: errors were found and corrected."""
UNMOUNT_S_MAX = 15.0


class Image:
    def __init__(self, path: Path, mount_point: Path, size_bytes: int) -> None:
        self.path, self.mount_point, self.size_bytes = path, mount_point, size_bytes

    def make(self, *options: str) -> None:
        """Make a file system with options of mkfs.ext4, and mount it. Raises: Unavailable."""
        with open(self.path, "wb") as file:
            file.truncate(self.size_bytes)
        run(["mkfs.ext4", "-q", "-F", "-m", "0", *options, str(self.path)])
        self.mount()

    def mount(self) -> None:
        self.mount_point.mkdir(parents=True, exist_ok=True)
        run(["mount", "-o", "loop", str(self.path), str(self.mount_point)])

    def cut(self) -> None:
        """From now on nothing is written any more: every write and sync fails."""
        descriptor = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """Check and mount what a cut left; whoever used it must have ended. Raises: Unavailable."""
        self.unmount()
        run(["e2fsck", "-fy", str(self.path)], status_max=REPAIRED)
        self.mount()

    def unmount(self) -> None:
        """Raises: Unavailable when somebody still uses it."""
        end = time.monotonic() + UNMOUNT_S_MAX
        while os.path.ismount(self.mount_point):
            try:
                run(["umount", str(self.mount_point)])
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.3)

    def close(self) -> None:
        """Leave no mount, no loop device and no file."""
        try:
            self.unmount()
        finally:
            if self.path.exists():
                self._detach()
                self.path.unlink()

    def _detach(self) -> None:
        """Unmounting detaches; this is for a mount that failed halfway."""
        for line in run(["losetup", "-j", str(self.path)]).splitlines():
            run(["losetup", "-d", line.split(":")[0]])
