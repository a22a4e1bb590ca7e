"""Release packages: the replica's sources as a deterministic zip, unpacked by its SHA-256.

<sha256>/       the unpacked package: what a replica is started from
<sha256>.zip    the package itself, to be handed on
"""

from __future__ import annotations

import compileall
import hashlib
import io
import py_compile
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import migrations
import replica
from replica.abi.bundle import pack
from replica.protocol.errors import LimitExceeded, Malformed, NotVerified
from replica.runtime.durable import make_folder, rename, sync_folder, write_durably

PACKAGES = (replica, migrations)
SUFFIXES = (".py", ".mako")
LABEL = "RELEASE"
PACKAGE_BYTES_MAX = 64 << 20
UNPACKED_BYTES_MAX = 256 << 20


def build(label: str = "") -> bytes:
    """Pack the replica that is installed here; the bytes depend on sources and label alone."""
    files = list(_sources())
    if label:
        files.append((LABEL, label.encode() + b"\n"))
    return pack(files)


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        names = sorted(
            p.relative_to(root).as_posix()
            for p in root.rglob("*")
            if p.suffix in SUFFIXES and "__pycache__" not in p.parts
        )
        for name in names:
            yield f"{root.name}/{name}", (root / name).read_bytes()


def digest(package: bytes) -> str:
    return hashlib.sha256(package).hexdigest()


def version_of(sha256_hex: str) -> str:
    """Return the version id that a package is given here: 40 digits, as commits have."""
    return sha256_hex[:40]


def describe(package: bytes) -> dict[str, object]:
    """Return what a package says of itself. Raises: Malformed."""
    try:
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            names = archive.namelist()
            label = archive.read(LABEL).decode().strip() if LABEL in names else ""
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise Malformed(f"not a release package: {error}") from error
    if "replica/__main__.py" not in names:
        raise Malformed("not a release package: it has no replica/__main__.py")
    sha256_hex = digest(package)
    return {
        "version": version_of(sha256_hex),
        "sha256": sha256_hex,
        "label": label,
        "files": len(names),
        "bytes": len(package),
    }


def unpack(package: bytes, releases: Path, sha256_hex: str) -> Path:
    """Unpack a release into `releases/<sha256>`. Raises: NotVerified for a wrong hash."""
    if len(package) > PACKAGE_BYTES_MAX:
        raise LimitExceeded(f"a release package has at most {PACKAGE_BYTES_MAX} bytes")
    if digest(package) != sha256_hex:
        raise NotVerified("the release package does not have the elected SHA-256")
    target = releases / sha256_hex
    if not target.is_dir():
        aside = releases / f"unpacking-{sha256_hex}"
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
        try:
            with zipfile.ZipFile(io.BytesIO(package)) as archive:
                if sum(i.file_size for i in archive.infolist()) > UNPACKED_BYTES_MAX:
                    raise LimitExceeded("the release package unpacks to too much")
                archive.extractall(aside)
        except zipfile.BadZipFile as error:
            raise Malformed(f"the release package can't be unpacked: {error}") from error
        # Compiled once here, not at every start: a replica that starts late prolongs an upgrade.
        compileall.compile_dir(
            aside, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        sync_folder(aside, files=True)
        write_durably(releases / f"{sha256_hex}.zip", package)
        rename(aside, target)
    return target
