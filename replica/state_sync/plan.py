"""What to reuse and what to fetch: a pure comparison of two manifests.

Source: reference/state.md §1 "diff_manifest".
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol.manifest import ChunkInfo, Manifest


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A whole file that is here already, maybe under another name."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class CopyChunk:
    source: str
    source_offset: int
    chunk: int
    """Index in the new manifest's chunk table."""


@dataclass(frozen=True, slots=True)
class Plan:
    files: tuple[CopyFile, ...]
    chunks: tuple[CopyChunk, ...]
    fetch: tuple[int, ...]
    """Indices in the new manifest's chunk table."""


def plan(old: Manifest | None, new: Manifest) -> Plan:
    """Compare by hashes alone: names and positions don't matter."""
    old_files: dict[bytes, str] = {}
    old_chunks: dict[bytes, tuple[str, ChunkInfo]] = {}
    if old is not None:
        for info, chunks in zip(old.files, old.chunks_by_file()):
            old_files.setdefault(info.hash, info.path)
            for chunk in chunks:
                old_chunks.setdefault(chunk.hash, (info.path, chunk))
    files, copies, fetch = [], [], []
    index = 0
    for info, chunks in zip(new.files, new.chunks_by_file()):
        if info.hash in old_files:
            files.append(CopyFile(old_files[info.hash], info.path))
        else:
            for offset, chunk in enumerate(chunks):
                known = old_chunks.get(chunk.hash)
                if known is not None:
                    copies.append(CopyChunk(known[0], known[1].offset, index + offset))
                else:
                    fetch.append(index + offset)
        index += len(chunks)
    return Plan(tuple(files), tuple(copies), tuple(fetch))
