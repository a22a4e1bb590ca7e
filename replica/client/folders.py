"""Manifests of folders on disk: one place for the replica and for whoever checks it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from replica.protocol import manifest


def files(folder: Path) -> Iterator[str]:
    """Yield the relative paths of a folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def scan(path: Path, chunk_bytes: int = manifest.CHUNK_BYTES) -> list[manifest.ChunkInfo]:
    """Hash one file's chunks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return manifest.scan_file(
            0, size, lambda offset, count: os.pread(descriptor, count, offset), chunk_bytes
        )
    finally:
        os.close(descriptor)


def manifest_of(
    folder: Path, version: int = manifest.VERSION, chunk_bytes: int = manifest.CHUNK_BYTES
) -> manifest.Manifest:
    scanned = [
        (path, os.stat(folder / path).st_size, scan(folder / path, chunk_bytes))
        for path in files(folder)
    ]
    return manifest.assemble(scanned, version)


NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP)
"""A file system without hard links, two of them, or one whose count of links is used up."""


def link_or_copy(source: Path | str, target: Path | str) -> bool:
    """Give a file that never changes a second name, or a durable copy; return whether it is a link.

    The name is not durable yet.
    """
    try:
        os.link(source, target)
        return True
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    return False


def is_damage(error: OSError) -> bool:
    """Whether an error tells that a file is lost: not that the machine is short of something."""
    return error.errno in (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error is of the disk, and not of a network or a program."""
    disk = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    return isinstance(error, OSError) and error.errno in disk
