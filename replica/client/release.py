"""Release packages: the replica's sources as a deterministic zip, unpacked by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import migrations
import replica
from replica.abi.bundle import pack
from replica.protocol.errors import NotVerified

PACKAGES = (replica, migrations)
SUFFIXES = (".py", ".mako")


def build() -> bytes:
    """Pack the replica that is installed here; the bytes depend on the sources alone."""
    return pack(_sources())


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes()


def unpack(package: bytes, releases: Path, sha256_hex: str) -> Path:
    """Unpack a release into `releases/<sha256>`. Raises: NotVerified for a wrong hash."""
    if hashlib.sha256(package).hexdigest() != sha256_hex:
        raise NotVerified("the release package does not have the elected SHA-256")
    target = releases / sha256_hex
    if not target.is_dir():
        aside = releases / f"unpacking-{sha256_hex}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            archive.extractall(aside)
        os.rename(aside, target)
    return target
