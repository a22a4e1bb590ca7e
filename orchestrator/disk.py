"""What this node's disk refuses, in words, and the room that is kept for when it is full.

Two reserves: one for a replica to start in and for a replay (a journal is written anew at every
start), and a small one for a promise alone, since no attestation is given without.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from replica.protocol.errors import Unavailable
from replica.runtime import space
from replica.runtime.reserve import Reserve, free_bytes
from replica.runtime.settings import NodeSettings

RESERVE_BYTES = 16 << 20
"""For what a checkpoint changes and what else a start writes; the length of the pool's journal is
added, since that is written anew."""
STEP_BYTES = 8 << 20
"""The reserve follows the journal in such steps."""
PROMISE_RESERVE_BYTES = 64 << 10
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full: the quota is used up",
    errno.EFBIG: "the disk takes no longer files",
    errno.EROFS: "the disk is read-only: its file system may have found an error",
    errno.EIO: "the disk fails",
}


def reason(error: OSError) -> str:
    """Return what a disk refuses; empty for an error that is no disk's."""
    words = REASONS.get(error.errno or 0, "")
    where = f" ({error.filename})" if words and error.filename else ""
    return words + where


class NodeDisk:
    """A node's disk, as its orchestrator finds it."""

    def __init__(
        self, settings: NodeSettings, log: Callable[[str], None], reserve_bytes: int
    ) -> None:
        """`reserve_bytes`: 0 keeps nothing, also not for promises."""
        self.settings, self.log = settings, log
        self.least_bytes = reserve_bytes
        self.room = Reserve(settings.reserve_path, reserve_bytes)
        small = PROMISE_RESERVE_BYTES if reserve_bytes else 0
        self.promise_room = Reserve(settings.promise_reserve_path, small)
        self.problem = ""
        """Why something could not be written; empty: everything could, the last time."""

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Note what the disk refuses of what is done inside; the error goes on."""
        try:
            yield
        except OSError as error:
            found = reason(error)
            if found and found != self.problem:
                self.log(f"{found}: tried again until it works")
            self.problem = found
            raise

    def worked(self) -> None:
        """All of a check could be written. Look at the rest, and see to the reserves."""
        if not self.settings.data.is_dir():
            return  # it was taken away just now
        if space.look(self.settings.data).is_read_only:
            self.problem = REASONS[errno.EROFS]
            return
        free = free_bytes(self.settings.data)
        self._measure()
        is_low = free < self.room.size_bytes
        self.problem = f"the disk is nearly full: {free >> 10} KiB are left" if is_low else ""
        if not is_low:
            self.promise_room.keep()
            self.room.keep()

    def _measure(self) -> None:
        """Have the reserve follow the length of the pool's journal."""
        if self.least_bytes:
            pools = sum(p.stat().st_size for p in self.settings.data.glob("pool-*.journal"))
            self.room.size_bytes = self.least_bytes + -(-pools // STEP_BYTES) * STEP_BYTES

    def make_room(self) -> None:
        """Give the reserve back if there is less space than that: something must be written now."""
        if free_bytes(self.settings.data) >= self.room.size_bytes:
            return
        if self.room.give_back():
            self.log(f"the disk is nearly full: gives back {self.room.size_bytes >> 20} MiB")

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Make room for what a caller asked for. Raises: Unavailable for what the disk refuses."""
        self.make_room()
        try:
            with self.noticing():
                yield
        except OSError as error:
            if not self.problem:
                raise
            raise Unavailable(f"{self.problem}: make room, and ask again") from error
