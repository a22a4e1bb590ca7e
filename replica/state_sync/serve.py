"""Serving checkpoints to peers: immutable files, one part a request."""

from __future__ import annotations

import os
from pathlib import Path

from replica.protocol import manifest


def serve(
    folder: Path, contents: manifest.Manifest, root: bytes, kind: str, index: int
) -> bytes | None:
    """Return the bytes of a part; None when there is none here that can be read: others have it."""
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
        with open(folder / contents.files[chunk.file_index].path, "rb") as file:
            return os.pread(file.fileno(), chunk.size_bytes, chunk.offset)
    except OSError:
        return None
