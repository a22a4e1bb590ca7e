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
    records: list[bytes] = []
    position = 0
    while position < len(data):
        head = data[position : position + HEAD_BYTES]
        length = int.from_bytes(head[:4], "big")
        end = position + HEAD_BYTES + length
        is_head = len(head) == HEAD_BYTES and head[4:8] == _checksum(head[:4])
        if is_head and length > BATCH_BYTES_MAX:
            raise Malformed(f"a batch of {length} bytes at byte {position}")
        if len(head) < HEAD_BYTES or (is_head and end > len(data)):
            break  # cut off
        body = data[position + HEAD_BYTES : end] if is_head else b""
        if not is_head or head[8:] != _checksum(body):
            is_last = not is_head or end == len(data)
            if is_last and _has_hole(data, position):
                break
            raise Malformed(f"damaged at byte {position}")
        records += _records(body, position)
        position = end
    return records, position


def _records(body: bytes, position: int) -> list[bytes]:
    out = []
    start = 0
    while start < len(body):
        begin = start + 4
        start = begin + int.from_bytes(body[start:begin], "big")
        if start > len(body):
            raise Malformed(f"a record leaves the batch at byte {position}")
        out.append(body[begin:start])
    return out


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

    def __init__(self, path: Path) -> None:
        """Raises: Malformed when the file is damaged; it is left as it is."""
        self.path = path
        make_folder(path.parent)
        is_new = not path.exists()
        data = b"" if is_new else path.read_bytes()
        try:
            self.records, end = scan(data)
        except Malformed as error:
            raise Malformed(f"{path}: {error}") from error
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
            records, end = scan(file.read())
        self.position += end
        yield from records
