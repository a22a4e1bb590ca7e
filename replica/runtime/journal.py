"""An append-only file of batches of records.

What `append` returned from is on the disk, whole. A batch is appended only after the one before it
was synced, so a crash or a power cut can damage the last one alone: it was never promised, and is
cut off when the file is opened. Any other damage is corruption and is reported.

Layout of a batch: length of the body u32, CRC-32 of these four bytes, CRC-32 of the body, the body:
each record with its length u32. Big-endian.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from replica.protocol.errors import Malformed
from replica.runtime.durable import make_folder, sync_directory, write_durably

HEAD_BYTES = 12
BATCH_BYTES_MAX = 64 << 20
DAMAGED = ".damaged"
"""Ends the name of the copy that is kept when a damaged file is salvaged."""
PAGE_BYTES = 4096
"""What disks write as a whole. A page that was never written reads as zeros, or ends the file."""


def frame(records: Iterable[bytes]) -> bytes:
    """Return a batch as it lies in the file."""
    body = b"".join([len(r).to_bytes(4, "big") + r for r in records])
    length = len(body).to_bytes(4, "big")
    return length + _checksum(length) + _checksum(body) + body


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def scan(data: bytes) -> tuple[list[bytes], int]:
    """Return the records of the whole batches at the start of a buffer, and where they end.

    Raises: Malformed for damage that an interrupted write does not explain.
    """
    records, position, damage = read_whole(data)
    if damage:
        raise Malformed(damage)
    return records, position


def read_whole(data: bytes) -> tuple[list[bytes], int, str]:
    """Like `scan`; also return what is wrong there, empty for the end of an interrupted write."""
    records: list[bytes] = []
    position = 0
    while position < len(data):
        head = data[position : position + HEAD_BYTES]
        length = int.from_bytes(head[:4], "big")
        end = position + HEAD_BYTES + length
        is_head = len(head) == HEAD_BYTES and head[4:8] == _checksum(head[:4])
        if is_head and length > BATCH_BYTES_MAX:
            return records, position, f"a batch of {length} bytes at byte {position}"
        if len(head) < HEAD_BYTES or (is_head and end > len(data)):
            break  # cut off
        body = data[position + HEAD_BYTES : end] if is_head else b""
        if not is_head or head[8:] != _checksum(body):
            is_last = end == len(data) if is_head else not _batch_follows(data, position)
            if is_last and _has_hole(data, position):
                break
            return records, position, f"damaged at byte {position}"
        found = _records(body)
        if found is None:
            return records, position, f"a record leaves the batch at byte {position}"
        records += found
        position = end
    return records, position, ""


def _records(body: bytes) -> list[bytes] | None:
    """Return the records of a batch; None when its lengths lead out of it."""
    out = []
    start = 0
    while start < len(body):
        begin = start + 4
        start = begin + int.from_bytes(body[start:begin], "big")
        if start > len(body):
            return None
        out.append(body[begin:start])
    return out


def _batch_follows(data: bytes, position: int) -> bool:
    """Return whether a whole batch starts anywhere behind: what comes before it was synced."""
    for start in range(position + 1, len(data) - HEAD_BYTES + 1):
        if data[start + 4 : start + 8] == _checksum(data[start : start + 4]):
            end = start + HEAD_BYTES + int.from_bytes(data[start : start + 4], "big")
            if end <= len(data) and data[start + 8 : start + HEAD_BYTES] == _checksum(
                data[start + HEAD_BYTES : end]
            ):
                return True
    return False


def _has_hole(data: bytes, position: int) -> bool:
    """Return whether a page from there on was never written."""
    while position < len(data):
        end = min(len(data), (position // PAGE_BYTES + 1) * PAGE_BYTES)
        if not any(data[position:end]):
            return True
        position = end
    return False


class Journal:
    """The writer's side: one process at a time."""

    records: list[bytes]
    """What the file held when it was opened."""
    damage: str
    """What was wrong with it then, if it was salvaged."""

    def __init__(self, path: Path, *, salvage: bool = False) -> None:
        """`salvage`: of a damaged file, keep what lies before the damage, and a copy beside it.

        Raises: Malformed when the file is damaged; it is left as it is.
        """
        self.path = path
        make_folder(path.parent)
        is_new = not path.exists()
        data = b"" if is_new else path.read_bytes()
        self.records, end, self.damage = read_whole(data)
        if self.damage and not salvage:
            raise Malformed(f"{path}: {self.damage}")
        if self.damage:
            write_durably(path.with_name(path.name + DAMAGED), data)
        self._file = open(path, "ab")  # noqa: SIM115 - owned for the journal's life
        if end < len(data):
            self._file.truncate(end)
        if is_new:
            sync_directory(path.parent)

    def append(self, records: Iterable[bytes]) -> None:
        """Write records and wait until they are durable, all of them or none."""
        self._file.write(frame(records))
        self._file.flush()
        os.fdatasync(self._file.fileno())

    @property
    def bytes_used(self) -> int:
        """Length of the file."""
        return self._file.tell()

    def is_sound(self) -> bool:
        """Read the file again, from end to end: it may have rotted meanwhile."""
        data = self.path.read_bytes()
        _, end, damage = read_whole(data)
        return not damage and end == len(data)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace all records at once: written aside, synced, renamed."""
        write_durably(self.path, b"".join([frame([record]) for record in records]))
        self._file.close()
        self._file = open(self.path, "ab")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()


class JournalReader:
    """A reader's side, in another process: yields what was appended since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new_records(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.position)
            data = file.read()
        try:
            records, end = scan(data)
        except Malformed as error:
            raise Malformed(f"{self.path}: {error} after byte {self.position}") from error
        self.position += end
        yield from records
