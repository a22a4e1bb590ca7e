"""Files and folders that outlast a power cut: bytes are synced, and then the names that lead there.

A file's bytes are safe once the file was synced, its name once its folder was: also the name of a
folder in the folder above. Whatever is written aside and renamed is there whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path

from replica.protocol.errors import Malformed

COPIED_BYTES = 1 << 20


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path, *, files: bool = False) -> None:
    """Make the names in a folder and below durable. `files`: their bytes as well."""
    sync_directory(folder)
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        elif files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing; durably."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename what is durable itself, so that the new name is."""
    os.rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def replace_durably(
    path: Path, parts: Iterable[bytes], *, aside: str = ".new", mode: int = 0o666
) -> None:
    """Replace a file by the parts given: written aside, synced, renamed, the folder synced.

    `aside`: what the name ends with meanwhile. Processes that may write one file at a time need one
    each, or they rename what the other one is writing. The last of them wins. `mode`: its rights,
    before the first byte is in it.
    """
    make_folder(path.parent)
    beside = path.with_name(path.name + aside)
    # Always a new file: pages of one that a disk refused before may be clean in memory by now.
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)  # half a file takes room that is short
        raise
    rename(beside, path)


def write_durably(path: Path, data: bytes, *, aside: str = ".new", mode: int = 0o666) -> None:
    """Replace a file durably: see `replace_durably`."""
    replace_durably(path, (data,), aside=aside, mode=mode)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file, so that the copy is there whole or not at all."""
    with open(source, "rb") as file:
        replace_durably(target, iter(partial(file.read, COPIED_BYTES), b""))


def write_checked(path: Path, data: bytes, *, aside: str = ".new") -> None:
    """Replace a file durably, with a line below that holds the SHA-256 of what is above it."""
    write_durably(path, data + _seal(data), aside=aside)


def read_checked(path: Path) -> bytes:
    """Read what `write_checked` wrote. Raises: FileNotFoundError; Malformed, naming the file."""
    whole = path.read_bytes()
    data = whole[: -len(_seal(b""))]
    if data + _seal(data) != whole:
        raise Malformed(f"{path} is damaged: its checksum is another one")
    return data


def _seal(data: bytes) -> bytes:
    return b"\n" + sha256(data).hexdigest().encode() + b"\n"
