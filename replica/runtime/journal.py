"""An append-only file of records, each with its length and checksum.

What `append` returned from is on the disk. A torn record at the end (a crash while writing) is cut
off when the file is opened; anything wrong before the end is corruption and is reported.
Layout of a record: length u32, CRC-32 u32, payload; big-endian.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from replica.protocol.errors import Malformed

HEAD_BYTES = 8
RECORD_BYTES_MAX = 16 << 20


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big") + payload


def scan(data: bytes) -> tuple[list[bytes], int]:
    """Return the whole records at the start of a buffer, and where they end.

    Raises: Malformed when a damaged record is followed by more data than a torn write can explain.
    """
    records: list[bytes] = []
    position = 0
    while position + HEAD_BYTES <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + HEAD_BYTES + length
        if length > RECORD_BYTES_MAX:
            raise Malformed(f"journal: damaged record at byte {position}")
        if end > len(data):
            break
        payload = data[position + HEAD_BYTES : end]
        if zlib.crc32(payload).to_bytes(4, "big") != data[position + 4 : position + 8]:
            if end < len(data):
                raise Malformed(f"journal: damaged record at byte {position}")
            break
        records.append(payload)
        position = end
    return records, position


class Journal:
    """The writer's side: one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        self.records, end = scan(data)
        """What the file held when it was opened."""
        self._file = open(path, "ab")  # noqa: SIM115 - owned for the journal's life
        if end < len(data):
            self._file.truncate(end)

    def append(self, payloads: Iterable[bytes]) -> None:
        """Write records and wait until they are durable."""
        self._file.write(b"".join([frame(p) for p in payloads]))
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace all records at once: written aside, synced, renamed."""
        aside = self.path.with_suffix(".new")
        with open(aside, "wb") as file:
            for payload in payloads:
                file.write(frame(payload))
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(aside, self.path)
        sync_directory(self.path.parent)
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


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file: written aside, synced, renamed, the folder synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_directory(path.parent)
