"""Putting a checkpoint together in a scratch folder: local copies, fetched chunks, a journal.

Every byte is verified against the manifest before it counts, local ones too: a local checkpoint
with bit rot heals by fetching. What is verified is written down, so a restart goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from replica.client.folders import is_damage
from replica.protocol import manifest
from replica.protocol.errors import NotVerified
from replica.protocol.manifest import Manifest
from replica.runtime.journal import Journal
from replica.state_sync.plan import Plan


class Assembly:
    def __init__(self, scratch: Path, target: Manifest, base: Path | None, plan: Plan) -> None:
        self.scratch, self.target, self.base, self.plan = scratch, target, base, plan
        self.files = scratch / "files"
        self.bytes_fetched = 0
        self.bytes_reused = 0
        self._by_file = target.chunks_by_file()
        self._first: list[int] = []
        total = 0
        for chunks in self._by_file:
            self._first.append(total)
            total += len(chunks)
        self._index = {info.path: i for i, info in enumerate(target.files)}
        self.missing: set[int] = set(plan.fetch)

    def prepare(self) -> None:
        """Make room, copy what is here, and take over what an earlier attempt had verified."""
        for info in self.target.files:
            path = self.files / info.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with open(path, "wb") as file:
                    file.truncate(info.size_bytes)
        self._journal = Journal(self.scratch / "verified.journal", salvage=True)
        known = {r for r in self._journal.records if len(r) == 32}
        self._copy()
        for index in sorted(self.missing):
            chunk = self.target.chunks[index]
            if chunk.hash in known and manifest.chunk_hash(self._read(index)) == chunk.hash:
                self.missing.discard(index)
                self.bytes_reused += chunk.size_bytes

    def _copy(self) -> None:
        assert self.base is not None or not (self.plan.files or self.plan.chunks)
        for copy in self.plan.files:
            position = self._index[copy.target]
            for offset, chunk in enumerate(self._by_file[position]):
                index = self._first[position] + offset
                self._reuse(index, self._local(copy.source, chunk.size_bytes, chunk.offset))
        for part in self.plan.chunks:
            size = self.target.chunks[part.chunk].size_bytes
            self._reuse(part.chunk, self._local(part.source, size, part.source_offset))

    def _local(self, path: str, size: int, offset: int) -> bytes:
        """Return a part of a local file; nothing when it can't be read: it is fetched then."""
        assert self.base is not None
        try:
            with open(self.base / path, "rb") as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            if not is_damage(error):
                raise
            return b""

    def _reuse(self, index: int, data: bytes) -> None:
        if manifest.chunk_hash(data) == self.target.chunks[index].hash:
            self._write(index, data)
            self.bytes_reused += len(data)
        else:
            self.missing.add(index)

    def accept(self, index: int, data: bytes) -> None:
        """Take a fetched chunk. Raises: NotVerified; nothing was written then."""
        chunk = self.target.chunks[index]
        if len(data) != chunk.size_bytes or manifest.chunk_hash(data) != chunk.hash:
            raise NotVerified(f"chunk {index} does not match its hash in the manifest")
        if index not in self.missing:
            return
        self._write(index, data)
        self._journal.append([chunk.hash])
        self.missing.discard(index)
        self.bytes_fetched += len(data)

    def _path(self, index: int) -> Path:
        return self.files / self.target.files[self.target.chunks[index].file_index].path

    def _write(self, index: int, data: bytes) -> None:
        with open(self._path(index), "r+b") as file:
            file.seek(self.target.chunks[index].offset)
            file.write(data)

    def _read(self, index: int) -> bytes:
        chunk = self.target.chunks[index]
        with open(self._path(index), "rb") as file:
            file.seek(chunk.offset)
            return file.read(chunk.size_bytes)

    def finish(self) -> Path:
        """Make all files durable; return the folder. Nothing may be missing."""
        assert not self.missing, "the checkpoint is not complete"
        for info in self.target.files:
            with open(self.files / info.path, "rb") as file:
                os.fsync(file.fileno())
        self._journal.close()
        return self.files


def order(missing: Iterable[int], node: bytes) -> list[int]:
    """Order chunks differently on every node, so that syncing nodes can serve each other."""
    return sorted(missing, key=lambda i: manifest.chunk_hash(node + i.to_bytes(4, "big")))
