"""The manifest: inventory of a checkpoint's files and chunks, and its root hash.

Owns the formats V0 to V3, the encoding, the split in sub-manifests and the validation rules.
Knows nothing of where files lie: `files_and_chunks` is fed with readers.

Source: reference/state.md §1 (dfinity/ic rs/state_manager/src/manifest).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from replica.protocol.errors import LimitExceeded, Malformed, NotVerified
from replica.protocol.hashing import domain, domain_hash
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize

VERSION = 3
"""The version we write."""
VERSION_MAX = 3
CHUNK_BYTES = 1 << 20
FILES_MAX = 1 << 22
CHUNKS_MAX = 1 << 22


@dataclass(frozen=True, slots=True)
class FileInfo:
    path: str
    size_bytes: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    file_index: int
    size_bytes: int
    offset: int
    hash: bytes


@dataclass(frozen=True)
class Manifest:
    version: int
    files: tuple[FileInfo, ...]
    chunks: tuple[ChunkInfo, ...]

    def chunks_by_file(self) -> list[list[ChunkInfo]]:
        out: list[list[ChunkInfo]] = [[] for _ in self.files]
        for chunk in self.chunks:
            out[chunk.file_index].append(chunk)
        return out

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    @cached_property
    def meta(self) -> MetaManifest:
        """Computed once: every served chunk and every advert asks for its root."""
        pieces = split(encode(self))
        return MetaManifest(self.version, tuple([sub_manifest_hash(p) for p in pieces]))


@dataclass(frozen=True, slots=True)
class MetaManifest:
    """Hashes of the pieces of an encoded manifest: the first thing a node fetches."""

    version: int
    sub_manifest_hashes: tuple[bytes, ...]

    def encode(self) -> bytes:
        return serialize(
            pb.MetaManifest(version=self.version, sub_manifest_hashes=self.sub_manifest_hashes)
        )

    @property
    def root(self) -> bytes:
        return domain_hash(
            "ic-state-meta-manifest",
            _u32(self.version),
            _u32(len(self.sub_manifest_hashes)),
            *self.sub_manifest_hashes,
        )


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def path_key(path: str) -> tuple[bytes, ...]:
    """Return the sort key of a path: component by component, not byte by byte."""
    return tuple(part.encode() for part in path.split("/"))


def chunk_hash(data: bytes) -> bytes:
    return domain_hash("ic-state-chunk", data)


def file_hash(chunks: Iterable[ChunkInfo], version: int = VERSION) -> bytes:
    """Hash a file from its chunks, given in order of offset."""
    entries = [_chunk_entry(c, version) for c in chunks]
    return domain_hash("ic-state-file", _u32(len(entries)), *entries)


def _chunk_entry(chunk: ChunkInfo, version: int) -> bytes:
    index = _u32(chunk.file_index) if version < 3 else b""
    return index + _u32(chunk.size_bytes) + _u64(chunk.offset) + chunk.hash


def scan_file(
    index: int, size_bytes: int, read: Callable[[int, int], bytes], chunk_bytes: int = CHUNK_BYTES
) -> list[ChunkInfo]:
    """Hash a file's chunks; `read(offset, size)` returns exactly that many bytes."""
    chunks = []
    for offset in range(0, size_bytes, chunk_bytes):
        size = min(chunk_bytes, size_bytes - offset)
        chunks.append(ChunkInfo(index, size, offset, chunk_hash(read(offset, size))))
    return chunks


def assemble(
    scanned: Iterable[tuple[str, int, list[ChunkInfo]]], version: int = VERSION
) -> Manifest:
    """Make a manifest of (path, size, chunks) triples, in any order; indices are assigned here."""
    files: list[FileInfo] = []
    chunks: list[ChunkInfo] = []
    ordered = sorted(scanned, key=lambda s: path_key(s[0]))
    for index, (path, size_bytes, found) in enumerate(ordered):
        mine = [ChunkInfo(index, c.size_bytes, c.offset, c.hash) for c in found]
        files.append(FileInfo(path, size_bytes, file_hash(mine, version)))
        chunks.extend(mine)
    return Manifest(version, tuple(files), tuple(chunks))


def encode(manifest: Manifest) -> bytes:
    message = pb.Manifest(version=manifest.version)
    message.file_table.extend(
        pb.FileInfo(relative_path=f.path, size_bytes=f.size_bytes, hash=f.hash)
        for f in manifest.files
    )
    message.chunk_table.extend(
        pb.ChunkInfo(file_index=c.file_index, size_bytes=c.size_bytes, offset=c.offset, hash=c.hash)
        for c in manifest.chunks
    )
    return serialize(message)


def decode(data: bytes) -> Manifest:
    """Decode and check the inner consistency of a manifest.

    Raises: Malformed, LimitExceeded, NotVerified.
    """
    message = parse(pb.Manifest, data)
    if len(message.file_table) > FILES_MAX or len(message.chunk_table) > CHUNKS_MAX:
        raise LimitExceeded("manifest with too many files or chunks")
    manifest = Manifest(
        message.version,
        tuple([FileInfo(f.relative_path, f.size_bytes, f.hash) for f in message.file_table]),
        tuple(
            [ChunkInfo(c.file_index, c.size_bytes, c.offset, c.hash) for c in message.chunk_table]
        ),
    )
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Check order, paths, offsets and file hashes. Raises: Malformed, NotVerified."""
    if manifest.version > VERSION_MAX:
        raise Malformed(f"manifest version {manifest.version} is not known")
    keys = [path_key(f.path) for f in manifest.files]
    if any(a >= b for a, b in zip(keys, keys[1:])):
        raise Malformed("manifest files out of order")
    for f, key in zip(manifest.files, keys):
        if any(part in (b"", b".", b"..") for part in key) or "\0" in f.path or "\\" in f.path:
            raise Malformed(f"manifest path {f.path!r} is not a plain relative path")
    last = -1
    for chunk in manifest.chunks:
        if not last <= chunk.file_index < len(manifest.files) or len(chunk.hash) != 32:
            raise Malformed("manifest chunk of no file, or out of order")
        last = chunk.file_index
    for info, chunks in zip(manifest.files, manifest.chunks_by_file()):
        offset = 0
        for chunk in chunks:
            if chunk.offset != offset or not 0 < chunk.size_bytes <= CHUNK_BYTES:
                raise Malformed(f"chunks of {info.path} do not cover it")
            offset += chunk.size_bytes
        if offset != info.size_bytes:
            raise Malformed(f"chunks of {info.path} do not cover it")
        if file_hash(chunks, manifest.version) != info.hash:
            raise NotVerified(f"hash of {info.path} is not that of its chunks")


def split(encoded: bytes) -> list[bytes]:
    """Cut an encoded manifest into its sub-manifests of 1 MiB."""
    return [encoded[i : i + CHUNK_BYTES] for i in range(0, len(encoded), CHUNK_BYTES)]


def sub_manifest_hash(piece: bytes) -> bytes:
    return domain_hash("ic-state-sub-manifest", piece)


def meta_manifest(manifest: Manifest) -> MetaManifest:
    return manifest.meta


def decode_meta(data: bytes) -> MetaManifest:
    message = parse(pb.MetaManifest, data)
    hashes = tuple(message.sub_manifest_hashes)
    if len(hashes) > 1 << 16 or any(len(h) != 32 for h in hashes):
        raise Malformed("not a meta-manifest")
    return MetaManifest(message.version, hashes)


def root(manifest: Manifest) -> bytes:
    """Return the root hash of a manifest of any version (32 bytes)."""
    if manifest.version >= 2:
        return meta_manifest(manifest).root
    digest = hashlib.sha256(domain("ic-state-manifest"))
    if manifest.version == 1:
        digest.update(_u32(1))
    digest.update(_u32(len(manifest.files)))
    for info in manifest.files:
        path = info.path.encode()
        digest.update(_u32(len(path)) + path + _u64(info.size_bytes) + info.hash)
    if manifest.version == 1:
        digest.update(_u32(len(manifest.chunks)))
        for chunk in manifest.chunks:
            digest.update(_chunk_entry(chunk, 1))
    return digest.digest()
