"""Bundles: Python canisters as deterministic zips, and the rules their code must keep.

The builder and the replica share `check`, so neither accepts what the other refuses. The rules
catch accidents, not attackers: a bundle is code that was voted on.
"""

from __future__ import annotations

import ast
import io
import re
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from replica.abi.names import TABLES_MAX, check_methods, check_name, check_names, check_path
from replica.abi.tables import Table, check_names_of, declare
from replica.protocol import candid
from replica.protocol.errors import LimitExceeded, Malformed
from replica.protocol.hashing import sha256

BUNDLE_BYTES_MAX = 2 << 20
UNPACKED_BYTES_MAX = 8 << 20
FILES_MAX = 200
ABI = "replica.abi.v1"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The one timestamp in a bundle: the earliest that zip can express."""


class BundleRefused(Malformed):
    """The code breaks a rule of bundles; the message names file and line."""

    code = "bundle-refused"


@dataclass(frozen=True)
class Bundle:
    name: str
    interface: candid.Interface
    tables: tuple[Table, ...]
    dropped: tuple[str, ...]
    """Tables that an upgrade to this code gives up, rows and all."""
    modules: dict[str, str]
    """Dotted module name, relative to the package, to source; "" is the package itself."""
    module_hash: bytes
    """SHA-256 of the zip."""


def is_bundle(module: bytes) -> bool:
    return module[:4] == b"PK\x03\x04"


def build(folder: Path) -> bytes:
    """Pack a canister's folder: canister.toml, one .did, and Python sources.

    The bytes depend on the contents alone. Raises: BundleRefused.
    """
    data = pack(files_of(folder))
    admit(data)
    return data


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    """Return what of a folder belongs in a bundle: names relative to it, in order, and contents."""
    wanted = [
        (p.relative_to(folder).as_posix(), p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file() and p.suffix in (".py", ".toml", ".did") and "__pycache__" not in p.parts
    ]
    return sorted(wanted)


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip whose bytes depend on names and contents alone."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, content)
    return out.getvalue()


@lru_cache(maxsize=64)
def read(data: bytes) -> Bundle:
    """Read and check a bundle. Raises: BundleRefused, Malformed, LimitExceeded."""
    files = _unpack(data)
    if "canister.toml" not in files:
        raise BundleRefused("the bundle has no canister.toml")
    try:
        settings = tomllib.loads(files["canister.toml"])
    except tomllib.TOMLDecodeError as error:
        raise BundleRefused(f"canister.toml: {error}") from error
    name = settings.get("name")
    if not isinstance(name, str) or not name.isidentifier():
        raise BundleRefused("canister.toml: name must be an identifier")
    if settings.get("abi") != "v1":
        raise BundleRefused("canister.toml: abi must be 'v1'")
    did = next((t for p, t in sorted(files.items()) if p.endswith(".did")), None)
    if did is None:
        raise BundleRefused("the bundle has no .did file")
    modules = {}
    for path, text in sorted(files.items()):
        if path.endswith(".py"):
            check(path, text)
            dotted = path.removesuffix(".py").replace("/", ".")
            modules[dotted.removesuffix("__init__").rstrip(".")] = text
    if "" not in modules:
        raise BundleRefused("the bundle has no __init__.py")
    tables = declare(settings.get("tables", {}))
    dropped = settings.get("dropped_tables", [])
    if not isinstance(dropped, list) or any(not isinstance(d, str) for d in dropped):
        raise BundleRefused("canister.toml: dropped_tables is a list of names")
    return Bundle(name, candid.parse(did), tables, tuple(dropped), modules, sha256(data))


def admit(data: bytes) -> Bundle:
    """Read and check a bundle that is to be installed: what lies in a state already is read only.

    Raises: BundleRefused, Malformed, LimitExceeded.
    """
    bundle = read(data)
    check_name("canister", bundle.name)
    check_names_of(bundle.tables)
    check_names("dropped table", bundle.dropped, TABLES_MAX)
    check_methods(bundle.interface.methods)
    paths = list(_unpack(data))
    for path in paths:
        check_path(path)
    for name, source in bundle.modules.items():
        _admit_source(name, source)
    if len([p for p in paths if p.endswith(".did")]) != 1:
        raise BundleRefused("the bundle needs one .did file")
    if len(bundle.modules) != len([p for p in paths if p.endswith(".py")]):
        raise BundleRefused("a module is there both as a file and as a folder")
    return bundle


def _admit_source(name: str, source: str) -> None:
    """Raises: BundleRefused for what former releases took."""
    tree = ast.parse(source)
    if _depth(tree) > NESTING_MAX:
        raise BundleRefused(_TOO_DEEP.format(path=name or "__init__"))
    for node in ast.walk(tree):
        if isinstance(node, ast.TryStar):
            raise BundleRefused(f"{name or '__init__'}:{node.lineno}: except* is not allowed here")


def _unpack(data: bytes) -> dict[str, str]:
    if len(data) > BUNDLE_BYTES_MAX:
        raise LimitExceeded(f"a bundle has at most {BUNDLE_BYTES_MAX} bytes")
    files: dict[str, str] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > FILES_MAX:
                raise LimitExceeded(f"a bundle has at most {FILES_MAX} files")
            for info in entries:
                total += info.file_size
                if total > UNPACKED_BYTES_MAX:
                    raise LimitExceeded("the bundle unpacks to too much")
                parts = info.filename.split("/")
                if info.filename in files or any(p in ("", ".", "..") for p in parts):
                    raise BundleRefused(f"the bundle has the path {info.filename!r}")
                files[info.filename] = archive.read(info).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError) as error:
        raise BundleRefused(f"not a bundle: {error}") from error
    return files


# --- the rules -------------------------------------------------------------------------------

_FORBIDDEN_NAMES = frozenset(
    (
        "eval exec compile open input print globals locals vars dir id hash object "
        "memoryview __import__ breakpoint getattr setattr delattr super type classmethod "
        "float complex set frozenset BaseException MemoryError RecursionError SystemExit "
        "KeyboardInterrupt GeneratorExit __builtins__"
    ).split()
)
_FORBIDDEN_NODES: dict[type, str] = {
    ast.AsyncFunctionDef: "async functions",
    ast.Await: "await",
    ast.AsyncFor: "async for",
    ast.AsyncWith: "async with",
    ast.Global: "global state",
    ast.Nonlocal: "nonlocal state",
    ast.Set: "sets (their order is not fixed)",
    ast.SetComp: "sets (their order is not fixed)",
}


FORMAT_WIDTH_MAX = 10_000
NESTING_MAX = 80
"""Of a syntax tree. How deep the parser gets depends on who calls it: what is nested less deep is
taken everywhere, and what is nested deeper nowhere, with the same words."""
_TOO_DEEP = "{path}: the code is nested too deep"


def _width(node: ast.FormattedValue) -> int:
    """Return the greatest number in a format specification."""
    texts = (
        [n.value for n in ast.walk(node.format_spec) if isinstance(n, ast.Constant)]
        if (node.format_spec is not None)
        else []
    )
    return max([int(d) for t in texts for d in re.findall(r"\d+", str(t))], default=0)


def check(path: str, source: str) -> ast.Module:
    """Check one file against the rules. Raises: BundleRefused, naming file and line."""
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:
        raise BundleRefused(f"{path}: {error}") from error
    except (MemoryError, RecursionError) as error:
        dotted = path.removesuffix(".py").replace("/", ".")
        raise BundleRefused(_TOO_DEEP.format(path=dotted)) from error
    for node in ast.walk(tree):
        fault = _fault(node)
        if fault:
            raise BundleRefused(f"{path}:{getattr(node, 'lineno', 1)}: {fault} is not allowed here")
    return tree


def _depth(tree: ast.AST) -> int:
    """Return how deep a syntax tree is nested."""
    level, depth = [tree], 0
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def _fault(node: ast.AST) -> str | None:
    for kind, what in _FORBIDDEN_NODES.items():
        if isinstance(node, kind):
            return what
    if isinstance(node, ast.BinOp | ast.AugAssign):
        if isinstance(node.op, ast.Div):
            return "true division (its result is a float)"
        grows = isinstance(node.op, ast.Mult | ast.Pow | ast.LShift)
        if isinstance(node, ast.AugAssign) and grows and not isinstance(node.target, ast.Name):
            return "an augmented multiplication, power or shift of anything but a plain name"
    if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
        return f"the float {node.value!r}"
    if isinstance(node, ast.Name) and node.id in _FORBIDDEN_NAMES:
        return f"the name {node.id}"
    if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
        return f"the attribute {node.attr}"
    if isinstance(node, ast.Import):
        return f"import {node.names[0].name} (only relative imports and {ABI})"
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        if node.module not in (ABI, "__future__"):
            return f"import of {node.module} (only relative imports and {ABI})"
    if isinstance(node, ast.Name | ast.FunctionDef | ast.ClassDef | ast.arg):
        name = str(
            getattr(node, "id", None) or getattr(node, "name", None) or getattr(node, "arg", "")
        )
        if name.startswith(("_meter", "_bounded")):
            return f"the name {name} (the host's)"
    if isinstance(node, ast.FormattedValue) and _width(node) > FORMAT_WIDTH_MAX:
        return f"a format wider than {FORMAT_WIDTH_MAX}"
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "a bare except"
    if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
        return "import *"
    return None
