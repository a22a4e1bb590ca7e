"""The database: rows of the newest certified height, behind one SQLAlchemy URL.

How canister tables look in SQL: `replica.client.table_schema`. Blocks are flushed in height order,
each in one transaction that also moves the `certified` row: the fence against a second writer and
the proof of what the rows are. No error of the database leaves here but as a `MachineFault`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from replica.abi.tables import Table, index_table
from replica.client.table_schema import columns_of, index_columns, index_sql_name
from replica.protocol.errors import Unavailable
from replica.state.access import BUSY_S, BUSY_TRIES_MAX, Access, Latch
from replica.state.reading import Row, TableReader, check_of
from replica.state.rows import Changes
from replica.state.sql_rows import to_columns, to_row, to_target

T = TypeVar("T")


class Store:
    """A node's database."""

    def __init__(self, url: str, *, fresh: bool = False) -> None:
        """`fresh`: without what a file of SQLite's held before; it may be damaged.

        Raises: MachineFault.
        """
        self.latch = Latch()
        try:
            self._open(url, fresh)
        except Exception as error:
            raise self.latch.trip("opening the database", error) from error

    def _open(self, url: str, fresh: bool) -> None:
        if fresh:
            _remove_files(sa.make_url(url))
        connect_args = {"check_same_thread": False} if url.startswith("sqlite") else {}
        self.engine = sa.create_engine(url, connect_args=connect_args)
        if url.startswith("sqlite"):
            sa.event.listen(self.engine, "connect", _set_pragmas)
        migrate(self.engine)
        self.tables: dict[str, tuple[Table, sa.Table]] = {}
        """By qualified name (`<canister>/<table>`): declaration and SQL table."""
        self._indexes: dict[str, sa.Table] = {}
        self._readers: dict[str, TableReader] = {}
        self._fresh: set[str] = set()
        """Tables just created, empty: what is written first can't replace anything."""
        self._load_own_tables()
        self._connection = self.engine.connect()
        self._access = Access(self._connection, self.latch, tries_max=BUSY_TRIES_MAX)

    def _load_own_tables(self) -> None:
        self._metadata = sa.MetaData()
        self._catalogue = sa.Table("canister_tables", self._metadata, autoload_with=self.engine)
        self._certified = sa.Table("certified", self._metadata, autoload_with=self.engine)

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()

    # -- schema

    def reset(self) -> None:
        """Drop all canister tables: a checkpoint is about to be imported."""
        self._access.attempt("clearing the database", self._reset)
        self.tables.clear()
        self._indexes.clear()
        self._readers.clear()
        self._fresh.clear()

    def _reset(self) -> None:
        self._connection.rollback()
        with self.engine.begin() as connection:
            names = [r[0] for r in connection.execute(sa.select(self._catalogue.c.sql_name))]
            for name in names:
                _operations(connection).execute(f'DROP TABLE IF EXISTS "{name}"')
            connection.execute(self._catalogue.delete())
            connection.execute(self._certified.delete())
        self._load_own_tables()

    def declare(self, qualified: str, sql_name: str, table: Table) -> None:
        """Create the SQL table of a canister table; a no-op when it is there."""
        if qualified in self.tables:
            return
        encoded = partial(to_row, table)
        made = self._create(qualified, sql_name, columns_of(table), encoded)
        self.tables[qualified] = (table, made)
        for index in table.indexes:
            name = index_table(qualified, index.name)
            self._indexes[name] = self._create(
                name, index_sql_name(sql_name, index), index_columns(), to_target
            )

    def _create(
        self,
        qualified: str,
        sql_name: str,
        columns: list[sa.Column[Any]],
        encoded: Callable[[Row], bytes],
    ) -> sa.Table:
        def create() -> sa.Table:
            free_name = self._free_sql_name(sql_name)
            made = _operations(self._connection).create_table(
                free_name, *columns, sqlite_with_rowid=False
            )
            entry = {"name": qualified, "sql_name": free_name, "retired_at": None}
            self._connection.execute(self._catalogue.insert().values(entry))
            return made

        made = self._change(f"making the table {sql_name}", create)
        self._readers[qualified] = TableReader(made, self.engine.dialect, encoded)
        self._fresh.add(qualified)
        return made

    def _free_sql_name(self, wanted: str) -> str:
        """Return a name that no table has, also none that was retired and is still there: a
        canister's id may be taken again, or its bundle be called otherwise."""
        names = self._catalogue.c.sql_name
        number, name = 1, wanted
        while self._connection.execute(sa.select(names).where(names == name)).first() is not None:
            number, name = number + 1, f"{wanted}$n{number}"
        return name

    def retire(self, qualified: str, height: int) -> None:
        """Note that no state from a height on uses a table; it is dropped once that is signed."""
        names = [qualified, *[n for n in self._indexes if n.startswith(qualified + "#")]]
        catalogue = self._catalogue

        def retire() -> None:
            # Its own name may be taken again before it is dropped.
            former = sa.literal("retired ") + catalogue.c.sql_name
            self._connection.execute(
                catalogue.update()
                .where(catalogue.c.name.in_(names))
                .values(retired_at=height, name=former)
            )

        self._change(f"retiring the table {qualified}", retire)
        del self.tables[qualified]
        for name in names[1:]:
            del self._indexes[name]
        for name in names:
            del self._readers[name]

    def drop_retired(self, height: int) -> int:
        """Drop the tables that were retired at or below a height; return how many."""
        catalogue = self._catalogue

        def drop() -> int:
            found = self._connection.execute(
                sa.select(catalogue.c.sql_name).where(catalogue.c.retired_at <= height)
            ).all()
            for (sql_name,) in found:
                _operations(self._connection).drop_table(sql_name)
            self._connection.execute(catalogue.delete().where(catalogue.c.retired_at <= height))
            return len(found)

        return self._change("dropping retired tables", drop)

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._get(self._access, table, key)

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) in key order."""
        return self._scan(self._access, table, low, high, reverse)

    def for_query(self) -> QueryRows:
        """Return the rows for one query, whose errors are its own: nothing ends with them."""
        return QueryRows(self)

    def _get(self, access: Access, table: str, key: bytes) -> bytes | None:
        reader = self._readers.get(table)
        return None if reader is None else reader.get(access, key)

    def _scan(
        self, access: Access, table: str, low: bytes, high: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        reader = self._readers.get(table)
        return iter(()) if reader is None else reader.scan(access, low, high, reverse)

    def count(self, table: str) -> int:
        if table not in self.tables:
            return 0
        query = sa.select(sa.func.count()).select_from(self.tables[table][1])
        return self._access.attempt(
            "counting rows", lambda: int(self._connection.execute(query).scalar_one())
        )

    # -- writing

    def _change(self, doing: str, work: Callable[[], T]) -> T:
        """Run a transaction. Raises: MachineFault; then the database has none of it."""

        def transaction() -> T:
            self._connection.rollback()  # what reading began by itself holds nothing to keep
            with self._connection.begin():
                return work()

        return self._access.attempt(doing, transaction)

    def flush(self, height: int, epoch: int, changes: Changes) -> None:
        """Apply one block's changes and move the fence, in one transaction.

        Raises: Unavailable when the fence is not where this process left it; MachineFault.
        """

        def apply() -> None:
            self._move_fence(height, epoch)
            self._write_all(changes)

        self._change(f"flushing height {height}", apply)

    def load(self, changes: Changes) -> None:
        """Write rows without moving the fence (import of a checkpoint)."""
        self._change("importing a checkpoint", lambda: self._write_all(changes))

    def set_fence(self, height: int, epoch: int) -> None:
        def apply() -> None:
            self._connection.execute(self._certified.delete())
            self._connection.execute(self._certified.insert().values(height=height, epoch=epoch))

        self._change("setting the fence", apply)

    @property
    def fence(self) -> tuple[int, int] | None:
        query = sa.select(self._certified)
        found = self._access.attempt(
            "reading the fence", lambda: self._connection.execute(query).first()
        )
        return None if found is None else (found.height, found.epoch)

    def _write_all(self, changes: Changes) -> None:
        for name in sorted(changes):
            self._write(name, changes[name])

    def _move_fence(self, height: int, epoch: int) -> None:
        table = self._certified
        moved = self._connection.execute(
            table.update().where(table.c.height < height).values(height=height, epoch=epoch)
        )
        if moved.rowcount != 1:
            raise Unavailable(
                f"the database is not below height {height}: is another replica writing to it?"
            )

    def _write(self, name: str, rows: dict[bytes, bytes | None]) -> None:
        if not rows:
            return
        is_index = name in self._indexes
        assert is_index or name in self.tables, f"rows of the undeclared table {name}"
        values: list[dict[str, object]] = []
        for key, raw in rows.items():
            if raw is None:
                continue
            entry = {"_key": key, "_check": check_of(key, raw)}
            if is_index:
                values.append({**entry, "target": raw})
            else:
                values.append({**entry, **to_columns(self.tables[name][0], raw)})
        fresh = name in self._fresh
        self._fresh.discard(name)
        self._readers[name].write(self._access, list(rows), values, fresh=fresh)


class QueryRows:
    """The rows of the newest certified height as one query reads them."""

    def __init__(self, store: Store) -> None:
        self.latch = Latch()
        self._store = store
        self._access = Access(store._connection, self.latch, tries_max=1)

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._store._get(self._access, table, key)

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._store._scan(self._access, table, low, high, reverse)


def _operations(connection: sa.Connection) -> Operations:
    return Operations(MigrationContext.configure(connection))


def _remove_files(url: sa.URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(url.database + suffix).unlink(missing_ok=True)


def _set_pragmas(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_S * 1000}",
        "cell_size_check=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def migrate(engine: sa.Engine) -> None:
    """Bring the node's own schema to the newest revision with alembic."""
    from alembic import command
    from alembic.config import Config

    import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
