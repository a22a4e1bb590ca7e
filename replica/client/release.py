"""Release packages: the replica's sources as a deterministic zip, unpacked by its SHA-256.

<sha256>/       the unpacked package and what it compiles to: what a replica is started from
<sha256>.zip    the package itself, to be handed on, and to unpack anew when the folder has rotted
<sha256>.files  SHA-256 of each file in the folder: nothing else vouches for what was compiled
"""

from __future__ import annotations

import compileall
import hashlib
import io
import os
import py_compile
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import migrations
import replica
from replica.abi.bundle import pack
from replica.protocol.errors import LimitExceeded, Malformed, NotVerified
from replica.runtime.durable import (
    make_folder,
    read_checked,
    rename,
    sync_folder,
    write_checked,
    write_durably,
)

PACKAGES = (replica, migrations)
SUFFIXES = (".py", ".mako")
LABEL = "RELEASE"
PACKAGE_BYTES_MAX = 64 << 20
UNPACKED_BYTES_MAX = 256 << 20
ASIDE, CONDEMNED = "unpacking-", "dropping-"
LEFTOVER = re.compile(
    rf"(?:{ASIDE}|{CONDEMNED})[0-9a-f]{{64}}|[0-9a-f]{{64}}\.(?:zip|files)\.new"
    r"|(?P<of>[0-9a-f]{64})\.(?:zip|files)"
)
"""Names of what is not finished, or belongs to a folder (`of`) that may be gone."""


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
    """Unpack a release into `releases/<sha256>`, unless it is there.

    Raises: NotVerified for a wrong hash, LimitExceeded, Malformed.
    """
    if len(package) > PACKAGE_BYTES_MAX:
        raise LimitExceeded(f"a release package has at most {PACKAGE_BYTES_MAX} bytes")
    if digest(package) != sha256_hex:
        raise NotVerified("the release package does not have the elected SHA-256")
    target = releases / sha256_hex
    if not target.is_dir():
        aside = _unpack_aside(package, releases, sha256_hex)
        write_durably(package_path(releases, sha256_hex), package)
        write_checked(files_path(releases, sha256_hex), _listing(_files(aside)))
        rename(aside, target)
    return target


def package_path(releases: Path, sha256_hex: str) -> Path:
    return releases / f"{sha256_hex}.zip"


def files_path(releases: Path, sha256_hex: str) -> Path:
    return releases / f"{sha256_hex}.files"


def _unpack_aside(package: bytes, releases: Path, sha256_hex: str) -> Path:
    aside = releases / f"{ASIDE}{sha256_hex}"
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
    return aside


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of all that lies in a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                yield os.path.relpath(path, folder), file.read()


def _listing(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a line a file: its SHA-256 and its path."""
    return "".join(sorted(f"{digest(data)} {path}\n" for path, data in files)).encode()


def is_sound(releases: Path, sha256_hex: str) -> bool:
    """Return whether a folder holds what its package says, what that compiled to, and no more.

    The sources are compared with the package's table of contents, which proves itself by its hash;
    all of it with what was listed when it was unpacked.
    """
    try:
        package = package_path(releases, sha256_hex).read_bytes()
        listed = read_checked(files_path(releases, sha256_hex))
        if digest(package) != sha256_hex:
            return False
        files = dict(_files(releases / sha256_hex))
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            packed = {i.filename: i.CRC for i in archive.infolist()}
        return _listing(files.items()) == listed and all(
            name in files and zlib.crc32(files[name]) == crc for name, crc in packed.items()
        )
    except (OSError, Malformed, zipfile.BadZipFile):
        return False


def restore(releases: Path, sha256_hex: str) -> bool:
    """Unpack a release anew from the package beside it; where that is no good, remove both.

    Return whether it is there now. A process that runs from it finds the same sources in the same
    place. Raises: OSError; the folder is as it was then.
    """
    folder, path = releases / sha256_hex, package_path(releases, sha256_hex)
    condemned = releases / f"{CONDEMNED}{sha256_hex}"
    package = path.read_bytes() if path.exists() else b""
    is_good = digest(package) == sha256_hex
    if is_good:
        aside = _unpack_aside(package, releases, sha256_hex)
        write_checked(files_path(releases, sha256_hex), _listing(_files(aside)))
    shutil.rmtree(condemned, ignore_errors=True)
    if folder.exists():
        rename(folder, condemned)
    if is_good:
        rename(aside, folder)
    else:
        path.unlink(missing_ok=True)
        files_path(releases, sha256_hex).unlink(missing_ok=True)
    shutil.rmtree(condemned, ignore_errors=True)
    return is_good


def sweep(releases: Path) -> list[str]:
    """Remove what a crash left of unpacking or dropping a release; return the names.

    Nothing that has another name than this module gives is touched.
    """
    removed = []
    for path in sorted(releases.iterdir()) if releases.is_dir() else ():
        found = LEFTOVER.fullmatch(path.name)
        if found is None or (found["of"] and (releases / found["of"]).is_dir()):
            continue
        removed.append(path.name)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed
