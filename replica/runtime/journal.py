"""An append-only file of batches of records, which says whose it is.

What `append` returned from is on the disk, whole, and comes back after any crash. What a file holds
that was never synced (its writer was killed, or its disk failed) is on the disk before it comes
back either: what is accepted at opening is written anew, aside, and synced. A page that failed to
be written may be clean in memory all the same, so syncing the old file again would prove nothing;
and a journal that failed once takes nothing more. Files of format 1 are read, and written anew in
format 2; `replica.runtime.journal_format` says what lies in them and what counts as damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from replica.protocol.errors import Malformed, Unavailable
from replica.runtime import journal_format, journal_v1
from replica.runtime.durable import copy_durably, make_folder, replace_durably
from replica.runtime.journal_format import SALT_BYTES, Chain, Found, grouped, read_header, seal

APPENDED_BYTES = 8 << 20
"""What is written at a time; more in one `append` makes several batches, each synced."""
REWRITTEN_BYTES = 64 << 10
"""Small batches: what is salvaged of a damaged file ends before the first that is damaged."""
DAMAGED = ".damaged"
"""Ends the name of the copy that is kept when a damaged file is salvaged: the newest one."""


class ForeignJournal(Malformed):
    """A journal of another node, subnet, epoch or release: left as it is, and not read."""


def read(path: Path, identity: str = "") -> Found:
    """Read a journal from end to end. `identity`: whose it must be; empty: anybody's.

    Raises: FileNotFoundError, ForeignJournal; Malformed for a later format.
    """
    with open(path, "rb") as file:
        return _read(file, path, identity)


def _read(file: BinaryIO, path: Path, identity: str) -> Found:
    size = os.fstat(file.fileno()).st_size
    nothing = Chain(b"", 0, 0, b"")
    try:
        found = read_header(file)
    except Malformed as error:
        return Found([], nothing, str(error))
    if found is None:
        return _read_v1(file, 0)
    held, chain = found
    if identity and held != identity:
        raise ForeignJournal(
            f"{path} is the {held or 'journal of nobody'}, not the {identity}: nothing was read or "
            "changed. It lies in the wrong place; move it to where it belongs"
        )
    return journal_format.scan(file, chain, size)


def _read_v1(file: BinaryIO, position: int) -> Found:
    file.seek(position)
    data = file.read()
    if not position and not journal_v1.begins(data):
        what = (
            "it is no journal: its beginning is damaged" if data else "it is empty: no journal is"
        )
        return Found([], Chain(b"", 0, 0, b""), what)
    records, end, damage = journal_v1.scan(data)
    return Found(records, Chain(b"", position + end, 0, b""), damage)


class Journal:
    """The writer's side: one process at a time."""

    records: list[bytes]
    """What the file held when it was opened."""
    damage: str
    """What was wrong with it then, if it was salvaged."""
    cut_bytes: int
    """How much of an interrupted write was cut off."""
    failed: str
    """Why nothing more is taken; empty: it is."""

    def __init__(self, path: Path, identity: str = "", *, salvage: bool = False) -> None:
        """`identity`: whose journal it is, at most 400 bytes of UTF-8. `salvage`: it holds what
        can be had again elsewhere; of a damaged file, keep what lies before the damage, and a copy
        beside it; and if the disk takes nothing now, open it all the same, `failed`.

        Raises: Malformed when the file is damaged, ForeignJournal; it is left as it is. OSError.
        """
        self.path, self.identity = path, identity
        self.records, self.damage, self.cut_bytes, self.failed = [], "", 0, ""
        self._file: FileIO | None = None
        self._chain = Chain(b"", 0, 0, b"")
        make_folder(path.parent)
        if path.exists():
            self._take(read(path, identity), salvage)
        try:
            if self.damage:
                copy_durably(path, path.with_name(path.name + DAMAGED))
            self.rewrite(self.records)
        except OSError:
            if not salvage:
                raise

    def _take(self, found: Found, salvage: bool) -> None:
        if found.damage and not salvage:
            raise Malformed(f"{self.path}: {found.damage}")
        self.records, self.damage = found.records, found.damage
        self.cut_bytes = 0 if found.damage else self.path.stat().st_size - found.chain.position

    def append(self, records: Iterable[bytes]) -> None:
        """Write records and wait until they are durable.

        Raises: LimitExceeded for a record that is too long: nothing was written. OSError when the
        disk fails, and Unavailable ever after: what it then holds is known after a restart.
        """
        batches = list(grouped(records, APPENDED_BYTES))
        if self.failed or self._file is None:
            raise Unavailable(f"{self.path}: {self.failed or 'closed'}; nothing more is written")
        for batch in batches:
            data, chain = seal(self._chain, batch)
            try:
                self._write(data)
            except OSError as error:
                self.failed = f"the disk failed at byte {self._chain.position} ({error.strerror})"
                raise
            self._chain = chain

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        os.fdatasync(self._file.fileno())

    @property
    def bytes_used(self) -> int:
        """Length of the file, as far as it is durable."""
        return self._chain.position

    def is_sound(self) -> bool:
        """Read the file again, from end to end: it must be there, and hold what was written."""
        if self.failed or self._file is None:
            return False
        try:
            with open(self.path, "rb") as file:
                ours, there = os.fstat(self._file.fileno()), os.fstat(file.fileno())
                found = _read(file, self.path, self.identity)
        except (OSError, Malformed):
            return False
        is_ours = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
        is_whole = found.chain == self._chain and there.st_size == self._chain.position
        return is_ours and is_whole and not found.damage

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace all records at once: written aside, synced, renamed.

        Raises: OSError. The file then holds the records before or these, and `append` refuses
        until this has worked.
        """
        # What it is for is to be unknown to who chooses records: nothing is decided by its value.
        salt = os.urandom(SALT_BYTES)
        self.failed = "it was not rewritten to the end"
        chain = None
        try:
            chain = self._replace(salt, grouped(records, REWRITTEN_BYTES))
            self.close()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - for the journal's life
        except OSError as error:
            self.failed += f" ({error.strerror})"
            raise
        self._chain, self.failed = chain, ""

    def _replace(self, salt: bytes, batches: Iterable[list[bytes]]) -> Chain:
        """Write a file with these batches in this one's place; return where it goes on."""
        header = journal_format.header(self.identity, salt)
        chain = journal_format.after_header(header, salt)

        def parts() -> Iterable[bytes]:
            nonlocal chain
            yield header
            for batch in batches:
                data, chain = seal(chain, batch)
                yield data

        replace_durably(self.path, parts())
        return chain

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class JournalReader:
    """A reader's side, in another process: yields what was appended since the last look.

    A file that was written anew meanwhile has another salt, and is read from its beginning: who
    reads has to know what he has.
    """

    def __init__(self, path: Path, identity: str = "") -> None:
        self.path, self.identity = path, identity
        self._begins: tuple[int, Chain | None] = (0, None)
        """Number of the file's inode, and where its batches begin."""
        self._chain = Chain(b"", 0, 0, b"")

    def new_records(self) -> list[bytes]:
        """Raises: Malformed, ForeignJournal; the next look begins at the beginning."""
        try:
            with open(self.path, "rb") as file:
                found = self._look(file)
        except FileNotFoundError:
            return []
        self._chain = found.chain
        if found.damage:
            self.start_over()
            raise Malformed(f"{self.path}: {found.damage}")
        return found.records

    def start_over(self) -> None:
        """Have the next look begin at the beginning."""
        self._begins = (0, None)

    def _look(self, file: BinaryIO) -> Found:
        status = os.fstat(file.fileno())
        try:
            found = read_header(file)
        except Malformed as error:
            return Found([], self._chain, str(error))
        chain = found[1] if found is not None else Chain(b"", 0, 0, b"")
        begins = (status.st_ino, chain)
        if begins != self._begins or status.st_size < self._chain.position:
            if found is not None and self.identity and found[0] != self.identity:
                return _read(file, self.path, self.identity)  # which says so
            self._begins, self._chain = begins, chain
        if found is None:
            return _read_v1(file, self._chain.position)
        return journal_format.scan(file, self._chain, status.st_size)
