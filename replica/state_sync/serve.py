"""Serving checkpoints to peers: immutable files, one part a request."""

from __future__ import annotations

import os
from pathlib import Path

from replica.protocol import manifest


def serve(
    folder: Path, contents: manifest.Manifest, root: bytes, kind: str, index: int
) -> bytes | None:
    """Return the bytes of a part; None when there is no such part here."""
    meta = manifest.meta_manifest(contents)
    if meta.root != root:
        return None
    if kind == "meta":
        return meta.encode()
    if kind == "sub":
        pieces = manifest.split(manifest.encode(contents))
        return pieces[index] if 0 <= index < len(pieces) else None
    if kind != "chunk" or not 0 <= index < len(contents.chunks):
        return None
    chunk = contents.chunks[index]
    try:
        descriptor = os.open(folder / contents.files[chunk.file_index].path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.pread(descriptor, chunk.size_bytes, chunk.offset)
    finally:
        os.close(descriptor)
