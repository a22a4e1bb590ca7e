"""The database: rows of the newest certified height, behind one SQLAlchemy URL.

Each canister table is an SQL table whose columns are the declared ones, so operators can query it;
`_key` holds the order-preserving key that all our own access goes by. Blocks are flushed in height
order, each in one transaction that also moves the `certified` row: the fence against a second
writer and the proof of what the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from replica.abi.tables import Table, decode_row, encode_row, index_table
from replica.protocol.errors import Unavailable
from replica.state.reading import Row, TableReader
from replica.state.rows import Changes


class _Bytes(sa.LargeBinary):
    """Bytes that go to the driver as they are: the library would wrap each value."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        return None


_TYPES: dict[str, Any] = {
    "nat64": _Bytes,  # 8 bytes big-endian: SQLite has no unsigned 64-bit integers
    "int": sa.BigInteger,
    "text": sa.Text,
    "blob": _Bytes,
    "bool": sa.Boolean,
    "principal": _Bytes,
}


class Store:
    """A node's database."""

    def __init__(self, url: str, *, fresh: bool = False) -> None:
        """`fresh`: without what a file of SQLite's held before; it may be damaged."""
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
        self._metadata = sa.MetaData()
        self._catalogue = sa.Table("canister_tables", self._metadata, autoload_with=self.engine)
        self._certified = sa.Table("certified", self._metadata, autoload_with=self.engine)
        self._connection = self.engine.connect()

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()

    # -- schema

    def reset(self) -> None:
        """Drop all canister tables: a checkpoint is about to be imported."""
        self._connection.rollback()
        with self.engine.begin() as connection:
            names = [r[0] for r in connection.execute(sa.select(self._catalogue.c.sql_name))]
            for name in names:
                _operations(connection).execute(f'DROP TABLE IF EXISTS "{name}"')
            connection.execute(self._catalogue.delete())
            connection.execute(self._certified.delete())
        self.tables.clear()
        self._indexes.clear()
        self._readers.clear()
        self._fresh.clear()
        self._metadata = sa.MetaData()
        self._catalogue = sa.Table("canister_tables", self._metadata, autoload_with=self.engine)
        self._certified = sa.Table("certified", self._metadata, autoload_with=self.engine)

    def declare(self, qualified: str, sql_name: str, table: Table) -> None:
        """Create the SQL table of a canister table; a no-op when it is there."""
        if qualified in self.tables:
            return
        columns = [sa.Column(c.name, _TYPES[c.type], nullable=c.optional) for c in table.columns]
        encoded = partial(_to_row, table)
        self.tables[qualified] = (table, self._create(qualified, sql_name, columns, encoded))
        for index in table.indexes:
            name = index_table(qualified, index.name)
            target = sa.Column("target", _Bytes, nullable=False)
            self._indexes[name] = self._create(
                name, f"{sql_name}__{index.name}", [target], _to_target
            )

    def _create(
        self,
        qualified: str,
        sql_name: str,
        columns: list[sa.Column[Any]],
        encoded: Callable[[Row], bytes],
    ) -> sa.Table:
        key = sa.Column("_key", _Bytes, primary_key=True)
        with self._transaction():
            made = _operations(self._connection).create_table(
                sql_name, key, *columns, sqlite_with_rowid=False
            )
            entry = {"name": qualified, "sql_name": sql_name, "retired_at": None}
            self._connection.execute(self._catalogue.insert().values(entry))
        assert made is not None
        self._readers[qualified] = TableReader(made, self.engine.dialect, encoded)
        self._fresh.add(qualified)
        return made

    def retire(self, qualified: str, height: int) -> None:
        """Note that no state from a height on uses a table; it is dropped once that is signed."""
        names = [qualified, *[n for n in self._indexes if n.startswith(qualified + "#")]]
        with self._transaction():
            self._connection.execute(
                self._catalogue.update()
                .where(self._catalogue.c.name.in_(names))
                .values(retired_at=height)
            )
        del self.tables[qualified]
        for name in names[1:]:
            del self._indexes[name]
        for name in names:
            del self._readers[name]

    def drop_retired(self, height: int) -> int:
        """Drop the tables that were retired at or below a height; return how many."""
        catalogue = self._catalogue
        with self._transaction():
            found = self._connection.execute(
                sa.select(catalogue.c.sql_name).where(catalogue.c.retired_at <= height)
            ).all()
            for (sql_name,) in found:
                _operations(self._connection).drop_table(sql_name)
            self._connection.execute(catalogue.delete().where(catalogue.c.retired_at <= height))
        return len(found)

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        reader = self._readers.get(table)
        return None if reader is None else reader.get(self._connection, key)

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) in key order."""
        reader = self._readers.get(table)
        if reader is None:
            return iter(())
        return reader.scan(self._connection, low, high, reverse)

    def count(self, table: str) -> int:
        if table not in self.tables:
            return 0
        made = self.tables[table][1]
        return int(
            self._connection.execute(sa.select(sa.func.count()).select_from(made)).scalar_one()
        )

    # -- writing

    def _transaction(self) -> sa.RootTransaction:
        """Begin a transaction; the one that reading began by itself holds nothing to keep."""
        self._connection.rollback()
        return self._connection.begin()

    def flush(self, height: int, epoch: int, changes: Changes) -> None:
        """Apply one block's changes and move the fence, in one transaction.

        Raises: Unavailable when the fence is not where this process left it.
        """
        with self._transaction():
            self._move_fence(height, epoch)
            for name in sorted(changes):
                self._write(name, changes[name])

    def load(self, changes: Changes) -> None:
        """Write rows without moving the fence (import of a checkpoint)."""
        with self._transaction():
            for name in sorted(changes):
                self._write(name, changes[name])

    def set_fence(self, height: int, epoch: int) -> None:
        with self._transaction():
            self._connection.execute(self._certified.delete())
            self._connection.execute(self._certified.insert().values(height=height, epoch=epoch))

    @property
    def fence(self) -> tuple[int, int] | None:
        found = self._connection.execute(sa.select(self._certified)).first()
        return None if found is None else (found.height, found.epoch)

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
            if is_index:
                values.append({"_key": key, "target": raw})
            else:
                values.append({"_key": key, **_to_columns(self.tables[name][0], raw)})
        fresh = name in self._fresh
        self._fresh.discard(name)
        self._readers[name].write(self._connection, list(rows), values, fresh=fresh)


def _to_columns(table: Table, raw: bytes) -> dict[str, object]:
    row = decode_row(table, raw)
    for column in table.columns:
        value = row[column.name]
        if column.type == "nat64" and value is not None:
            row[column.name] = value.to_bytes(8, "big")
        elif isinstance(value, bytes):
            row[column.name] = bytes(value)
    return row


def _to_target(found: Row) -> bytes:
    return bytes(found[1])


def _to_row(table: Table, found: Row) -> bytes:
    row: dict[str, object] = {}
    for column, value in zip(table.columns, found[1:], strict=True):
        if value is not None:
            if column.type == "nat64":
                value = int.from_bytes(value, "big")
            elif column.type == "bool":
                value = bool(value)  # SQLite keeps numbers
            elif column.type in ("blob", "principal"):
                value = bytes(value)
        row[column.name] = value
    return encode_row(table, row)


def _operations(connection: sa.Connection) -> Operations:
    return Operations(MigrationContext.configure(connection))


def _remove_files(url: sa.URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(url.database + suffix).unlink(missing_ok=True)


def _set_pragmas(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
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
