"""The database of a simulated machine: the real one, whose statements fail when it is time.

Any statement may be the one: a read, the first or last write of a block, a commit, the making of a
table, the opening. What fails is drawn of what SQLite says of disks. Rot is real: random bytes over
pages of the file, which SQLite and the checksums of rows have to notice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from sqlite3 import dbapi2
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replica.node import Replica

PAGE_BYTES = 4096
SPARED_PAGES = 4
"""The first ones: the file's head and the list of tables."""
ROTTEN = 0.7
"""Share of the other pages that rot."""

Errors = tuple[tuple[type[sqlite3.Error], str, int], ...]

READ_ERRORS: Errors = (
    (sqlite3.OperationalError, "disk I/O error", sqlite3.SQLITE_IOERR_READ),
    (sqlite3.DatabaseError, "database disk image is malformed", sqlite3.SQLITE_CORRUPT),
    (sqlite3.DatabaseError, "file is not a database", sqlite3.SQLITE_NOTADB),
)
WRITE_ERRORS: Errors = (
    (sqlite3.OperationalError, "disk I/O error", sqlite3.SQLITE_IOERR_WRITE),
    (sqlite3.OperationalError, "database or disk is full", sqlite3.SQLITE_FULL),
    (
        sqlite3.OperationalError,
        "attempt to write a readonly database",
        sqlite3.SQLITE_READONLY,
    ),
)
"""Source: https://www.sqlite.org/rescode.html"""


def error_of(kind: tuple[type[sqlite3.Error], str, int]) -> sqlite3.Error:
    """Return an error as the driver would raise it."""
    made = kind[0](kind[1])
    made.sqlite_errorcode = kind[2]
    return made


class Database:
    """What is wrong with one machine's database."""

    def __init__(self, luck: Callable[..., float]) -> None:
        """`luck`: a number in [0, 1) for a key."""
        self._luck = luck
        self.failures = 0
        """So many statements failed, or pages rotted."""
        self.left: int | None = None
        """So many more statements until one fails; None: none will."""
        self.reads_only = False
        """Whether it is the next read after these."""
        self.stays_bad = False
        """Whether all statements after it fail too."""

    def fail(self, after: int, *, reads_only: bool = False, stays_bad: bool = False) -> None:
        """Have a statement fail, after so many others."""
        self.left, self.reads_only, self.stays_bad = after, reads_only, stays_bad

    def heal(self) -> None:
        self.left = None

    def before(self, statement: str) -> None:
        """Raises: sqlite3.Error when it is time."""
        if self.left is None:
            return
        reads = statement.lstrip().upper().startswith("SELECT")
        if self.left > 0 or (self.reads_only and not reads):
            self.left = max(0, self.left - 1)
            return
        self.failures += 1
        if not self.stays_bad:
            self.left = None
        kinds = READ_ERRORS if reads else READ_ERRORS + WRITE_ERRORS
        raise error_of(kinds[int(self._luck("error", self.failures) * len(kinds))])

    def rot(self, replica: Replica | None) -> None:
        """Put random bytes over pages of a running replica's database and its log."""
        if replica is None:
            return
        raw: Any = replica.store._connection.connection.driver_connection
        raw.execute("PRAGMA cache_size=1")  # else it would not read what it has in memory
        raw.execute("PRAGMA shrink_memory")
        path = Path(replica.settings.data / "state.db")
        bytes_of = Random(int(self._luck("rot", self.failures) * (1 << 53)))
        for file in (path, path.with_name(path.name + "-wal")):
            self._rot_file(file, bytes_of)

    def _rot_file(self, path: Path, bytes_of: Random) -> None:
        if not path.exists():
            return
        size = path.stat().st_size
        with open(path, "r+b") as file:
            for at in range(SPARED_PAGES * PAGE_BYTES, size, PAGE_BYTES):
                if bytes_of.random() < ROTTEN:
                    file.seek(at)
                    file.write(bytes_of.randbytes(min(PAGE_BYTES, size - at)))
                    self.failures += 1


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = ()) -> Any:
        self.connection.database.before(sql)  # type: ignore[attr-defined]
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any) -> Any:
        self.connection.database.before(sql)  # type: ignore[attr-defined]
        return super().executemany(sql, parameters)


class _Connection(sqlite3.Connection):
    database: Database

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        if self.in_transaction:
            self.database.before("COMMIT")
        super().commit()


class Databases:
    """The databases of all machines, by the folders that they lie in."""

    def __init__(self) -> None:
        self._of: dict[str, Database] = {}

    def add(self, folder: Path, database: Database) -> None:
        self._of[f"{folder}/"] = database

    def _find(self, path: str) -> Database | None:
        return next((d for folder, d in self._of.items() if path.startswith(folder)), None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have all connections to these databases pass here."""
        real: Any = dbapi2.connect

        def connect(path: str, **named: Any) -> Any:
            found = self._find(str(path))
            if found is None:
                return real(path, **named)
            found.before("open")
            made = real(path, factory=_Connection, **named)
            made.database = found
            return made

        dbapi2.connect = connect  # type: ignore[assignment]
        try:
            yield
        finally:
            dbapi2.connect = real
