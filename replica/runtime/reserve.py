"""Room on a disk that is kept for what must still be written when it is full.

A file of a stated size, of no content. Who has to write gives it back first; it is made again when
there is room for twice as much.
"""

from __future__ import annotations

import os
from pathlib import Path

from replica.runtime.durable import rename


def free_bytes(folder: Path) -> int:
    """Return how much may still be written in a folder's file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Reserve:
    def __init__(self, path: Path, size_bytes: int) -> None:
        """`size_bytes`: 0 keeps nothing."""
        self.path, self.size_bytes = path, size_bytes

    def keep(self) -> bool:
        """Make the file, unless it is there or there is too little room; return whether it is."""
        if self.path.exists() or not self.size_bytes:
            return bool(self.size_bytes)
        if free_bytes(self.path.parent) < 2 * self.size_bytes:
            return False
        beside = self.path.with_name(self.path.name + ".new")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            rename(beside, self.path)
        except OSError:
            beside.unlink(missing_ok=True)  # somebody was faster: there is less room than it seemed
            return False
        return True

    def give_back(self) -> bool:
        """Remove the file; return whether it was there."""
        was_there = self.path.exists()
        self.path.unlink(missing_ok=True)
        return was_there
