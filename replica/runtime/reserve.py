"""Room on a disk that is kept for what must still be written when it is full.

A file of a stated size, of no content. Who has to write gives it back first; it is made again when
there is room for twice as much.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from replica.runtime import space
from replica.runtime.durable import rename


def free_bytes(folder: Path) -> int:
    """Return how much may still be written in a folder's file system."""
    return space.look(folder).free_bytes


class Reserve:
    def __init__(self, path: Path, size_bytes: int) -> None:
        """`size_bytes`: 0 keeps nothing."""
        self.path, self.size_bytes = path, size_bytes

    def keep(self) -> None:
        """Make the file, or make it as long as it should be, if there is room for twice as much."""
        held = self.path.stat().st_size if self.path.exists() else 0
        if held == self.size_bytes or free_bytes(self.path.parent) + held < 2 * self.size_bytes:
            return
        beside = self.path.with_name(self.path.name + ".new")
        beside.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.rename(self.path, beside)
        try:
            self._allocate(beside)
            rename(beside, self.path)
        except OSError:  # somebody was faster: there is less room than it seemed
            beside.unlink(missing_ok=True)

    def _allocate(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
            os.ftruncate(descriptor, self.size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def give_back(self) -> bool:
        """Remove the file; return whether it was there."""
        was_there = self.path.exists()
        self.path.unlink(missing_ok=True)
        return was_there
