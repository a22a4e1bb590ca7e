"""How much room a node's disk has, and what that leaves the node to do.

Below the reserve it makes empty blocks and takes no requests: what is left is for what keeps the
subnet going and recoverable. Below the floor, and where nothing can be written, it does nothing but
answer reads: whoever stops before the disk is full needs no restart when there is space again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RESERVE_BYTES = 512 << 20
"""256 MiB: the pool's journal, written anew beside itself; 128 MiB: one checkpoint's changed files,
and the database's log until it is flushed; 128 MiB: a replay, promises, packages, logs."""
RESERVE_SHARE = 16
"""Of a small disk, no more than one in so many bytes."""
FLOOR_SHARE = 8
"""Of the reserve: 64 MiB, the largest batch that a step may have to make durable."""


@dataclass(frozen=True, slots=True)
class Space:
    """One look at a disk."""

    free_bytes: int
    total_bytes: int
    is_read_only: bool = False
    """As after an error of the device: file systems are mounted so."""

    @property
    def reserve_bytes(self) -> int:
        return min(RESERVE_BYTES, self.total_bytes // RESERVE_SHARE)

    @property
    def is_below_reserve(self) -> bool:
        return self.is_read_only or self.free_bytes < self.reserve_bytes

    @property
    def is_below_floor(self) -> bool:
        return self.is_read_only or self.free_bytes < self.reserve_bytes // FLOOR_SHARE

    def describe(self) -> str:
        """Return what a node with so little space does; "": all."""
        if self.is_read_only:
            return "is read-only: answers reads only"
        if self.is_below_floor:
            return "waits for space: answers reads only"
        return "makes empty blocks: takes no requests" if self.is_below_reserve else ""


def look(folder: Path | str) -> Space:
    """Return the space of the disk that a folder is on, as whoever is not root may use it."""
    found = os.statvfs(folder)
    return Space(
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        bool(found.f_flag & os.ST_RDONLY),
    )


__all__ = ["Space", "look"]
