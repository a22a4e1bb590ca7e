"""Names that a bundle declares: one rule for all, wherever it is judged.

A name is lower-case ASCII: words of letters and digits, joined by single underscores, the first of
which starts with a letter. So names that differ do so without regard to case, none collides with
what the host derives from others (`@<generation>`, `#<index>`, `__<index>`, `_key`), and all are
good in SQL, in paths and in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from replica.protocol.errors import Malformed

NAME_CHARACTERS_MAX = 48
METHOD_CHARACTERS_MAX = 100
"""Methods' names are not ours alone: they are the interface's, and lie in no table."""
TABLES_MAX = 64
COLUMNS_MAX = 200
"""SQLite makes 2,000 at the most. Source: https://www.sqlite.org/limits.html"""
INDEXES_MAX = 16
"""Of one table."""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RESERVED = frozenset(("rowid", "oid"))
"""What SQLite calls every row's number, whether or not a column is called so."""
RESERVED_PREFIX = "sqlite_"
_FILE = re.compile(r"__init__\.py|[a-z][a-z0-9]*(_[a-z0-9]+)*(\.py|\.did|\.toml)?")


def check_name(what: str, name: object) -> str:
    """Return a name that keeps the rule. `what`: what it is a name of. Raises: Malformed."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Malformed(f"{what} {name!r:.60}: lower-case words joined by single underscores")
    if len(name) > NAME_CHARACTERS_MAX:
        raise Malformed(f"{what} {name!r:.60}: at most {NAME_CHARACTERS_MAX} characters")
    if name in RESERVED or name.startswith(RESERVED_PREFIX):
        raise Malformed(f"{what} {name!r}: SQLite keeps this name for itself")
    return name


def check_names(what: str, names: Iterable[str], count_max: int) -> None:
    """Raises: Malformed for a name that breaks the rule, or too many."""
    listed = list(names)
    if len(listed) > count_max:
        raise Malformed(f"{what}: at most {count_max}, not {len(listed)}")
    for name in listed:
        check_name(what, name)


def check_methods(names: Iterable[str]) -> None:
    """Raises: Malformed for methods whose names are odd, or differ in case only."""
    known: dict[str, str] = {}
    for name in names:
        if not _METHOD.fullmatch(name) or len(name) > METHOD_CHARACTERS_MAX:
            raise Malformed(f"method {name!r:.60}: letters, digits and underscores, a letter first")
        if known.setdefault(name.lower(), name) != name:
            raise Malformed(f"methods {known[name.lower()]} and {name} differ in case only")


def check_path(path: str) -> None:
    """Raises: Malformed for a path in a bundle of which a part breaks the rule."""
    for part in path.split("/"):
        if not _FILE.fullmatch(part) or len(part) > NAME_CHARACTERS_MAX + len(".toml"):
            raise Malformed(f"file {path!r:.60}: lower-case words joined by single underscores")
