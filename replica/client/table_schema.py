"""Canister tables in SQL: their definitions, and a trial of these on a database of its own.

Each canister table is an SQL table whose columns are the declared ones, so operators can query it.
`_key` holds the order-preserving key that all our own access goes by, `_check` a checksum over it
and the row. An index is a table of its own, from index key to key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from replica.abi import bundle as bundles
from replica.abi.bundle import Bundle, BundleRefused
from replica.abi.tables import Index, Table


class Bytes(sa.LargeBinary):
    """Bytes that go to the driver as they are: the library would wrap each value."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        return None


_TYPES: dict[str, Any] = {
    "nat64": Bytes,  # 8 bytes big-endian: SQLite has no unsigned 64-bit integers
    "int": sa.BigInteger,
    "text": sa.Text,
    "blob": Bytes,
    "bool": sa.Boolean,
    "principal": Bytes,
}


def columns_of(table: Table) -> list[sa.Column[Any]]:
    """Return the columns of a canister table."""
    declared = [sa.Column(c.name, _TYPES[c.type], nullable=c.optional) for c in table.columns]
    return [*_own_columns(), *declared]


def index_columns() -> list[sa.Column[Any]]:
    """Return the columns of every index's table."""
    return [*_own_columns(), sa.Column("target", Bytes, nullable=False)]


def _own_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("_key", Bytes, primary_key=True),
        sa.Column("_check", sa.BigInteger, nullable=False),
    ]


def index_sql_name(sql_name: str, index: Index) -> str:
    return f"{sql_name}__{index.name}"


def admit(module: bytes) -> Bundle:
    """Check a bundle as builders, voters and operators do. Raises: Rejected."""
    bundle = bundles.admit(module)
    try_tables(bundle.name, bundle.tables)
    return bundle


def try_tables(name: str, tables: Sequence[Table]) -> None:
    """Make the tables of a bundle in an empty database in memory.

    Raises: BundleRefused when they can't be made. The text is the same on every node.
    """
    metadata = sa.MetaData()
    engine = sa.create_engine("sqlite://")
    try:
        for table in tables:
            sql_name = f"c0_{name}_{table.name}"
            sa.Table(sql_name, metadata, *columns_of(table), sqlite_with_rowid=False)
            for index in table.indexes:
                indexed = index_sql_name(sql_name, index)
                sa.Table(indexed, metadata, *index_columns(), sqlite_with_rowid=False)
        metadata.create_all(engine, checkfirst=False)
    except (sa.exc.SQLAlchemyError, ValueError) as error:
        raise BundleRefused("the database takes no tables of this shape") from error
    finally:
        engine.dispose()
