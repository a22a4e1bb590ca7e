"""Tables of Python canisters: declarations, the order-preserving key encoding, row encoding.

Pure. The state layer stores (key bytes, row) pairs of these; SQL sees the columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from replica.abi.names import COLUMNS_MAX, INDEXES_MAX, TABLES_MAX, check_names
from replica.protocol import cbor
from replica.protocol.errors import LimitExceeded, MachineFault, Malformed
from replica.protocol.ids import Principal

KEY_BYTES_MAX = 1024
ROW_BYTES_MAX = 4 << 20
COLUMN_TYPES = ("nat64", "int", "text", "blob", "bool", "principal")
"""nat64: 0 to 2^64 - 1; int: signed, 63 bits; each may be prefixed `opt `."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Index:
    name: str
    columns: tuple[str, ...]
    unique: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A declared table. `key` names the columns of the primary key, in order."""

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {c.name: c for c in self.columns})

    def column(self, name: str) -> Column:
        return self._by_name[name]


def declare(tables: object) -> tuple[Table, ...]:
    """Read the [tables.*] of a canister.toml. Raises: Malformed."""
    if not isinstance(tables, dict):
        raise Malformed("tables: one [tables.<name>] each")
    return tuple([_declare_one(name, tables[name]) for name in sorted(tables)])


def _declare_one(name: str, spec: Any) -> Table:
    if not isinstance(spec, dict) or not name.isidentifier() or name != name.lower():
        raise Malformed(f"table {name!r}: a lower-case identifier and a table of settings")
    columns = []
    for column, text in _mapping(name, spec, "columns").items():
        optional = str(text).startswith("opt ")
        type_ = str(text).removeprefix("opt ")
        if type_ not in COLUMN_TYPES or not column.isidentifier():
            raise Malformed(f"table {name}: column {column} has the unknown type {text!r}")
        columns.append(Column(column, type_, optional))
    known = {c.name: c for c in columns}
    key = _column_names(name, "key", spec.get("key"))
    if any(k not in known or known[k].optional for k in key):
        raise Malformed(f"table {name}: its key must name columns that are not optional")
    indexes = []
    for index, listed in _mapping(name, spec, "indexes").items():
        names = _column_names(name, f"index {index}", listed)
        if any(n not in known for n in names):
            raise Malformed(f"table {name}: index {index} names an unknown column")
        indexes.append(Index(index, names, index.startswith("unique_")))
    return Table(name, key, tuple(columns), tuple(indexes))


def _mapping(table: str, spec: dict[str, Any], what: str) -> dict[str, Any]:
    found = spec.get(what, {})
    if not isinstance(found, dict):
        raise Malformed(f"table {table}: {what} are names with settings")
    return found


def _column_names(table: str, what: str, listed: object) -> tuple[str, ...]:
    """Return a list of columns. Raises: Malformed unless it names some."""
    if not isinstance(listed, list) or not listed or any(not isinstance(n, str) for n in listed):
        raise Malformed(f"table {table}: {what} is a list of names of columns")
    return tuple(listed)


def check_names_of(tables: Sequence[Table]) -> None:
    """Raises: Malformed unless all names of new tables keep the rule of `replica.abi.names`."""
    check_names("table", [t.name for t in tables], TABLES_MAX)
    for table in tables:
        columns = [c.name for c in table.columns]
        check_names(f"table {table.name}: column", columns, COLUMNS_MAX)
        check_names(f"table {table.name}: index", [i.name for i in table.indexes], INDEXES_MAX)
        for listed in (table.key, *[i.columns for i in table.indexes]):
            if len(set(listed)) != len(listed):
                raise Malformed(f"table {table.name}: a key or index names a column twice")


# --- keys ------------------------------------------------------------------------------------


def encode_part(column: Column, value: Any) -> bytes:
    """Encode one value so that byte order is value order. None sorts first.

    Raises: Malformed for a value that is none of the column's.
    """
    if column.optional and value is None:
        return b"\x00"
    try:
        raw = _encode_value(column.type, value)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise Malformed(f"{column.name}: {type(value).__name__} is no {column.type}") from error
    return b"\x01" + raw if column.optional else raw


def _encode_value(type_: str, value: Any) -> bytes:
    if type_ == "nat64":
        return int(value).to_bytes(8, "big")
    if type_ == "int":
        return (int(value) + (1 << 63)).to_bytes(8, "big")
    if type_ == "bool":
        return b"\x01" if value else b"\x00"
    raw = value.encode() if type_ == "text" else bytes(value)
    return raw.replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def encode_key(table: Table, values: tuple[Any, ...], columns: tuple[str, ...] = ()) -> bytes:
    """Encode the leading parts of a key (a prefix when fewer values are given)."""
    names = columns or table.key
    key = b"".join([encode_part(table.column(n), v) for n, v in zip(names, values)])
    if len(key) > KEY_BYTES_MAX:
        raise LimitExceeded(f"a key of {table.name} has more than {KEY_BYTES_MAX} bytes")
    return key


def row_key(table: Table, row: Row) -> bytes:
    return encode_key(table, tuple([row[k] for k in table.key]))


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key after all that start with a prefix; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


# --- rows ------------------------------------------------------------------------------------


def check_row(table: Table, row: Row) -> None:
    """Raises: Malformed for a missing or unknown column, or a value outside its domain."""
    if set(row) != {c.name for c in table.columns}:
        raise Malformed(f"{table.name}: a row must hold exactly its columns, got {sorted(row)}")
    for column in table.columns:
        value = row[column.name]
        if value is None and column.optional:
            continue
        if not _in_domain(column.type, value):
            raise Malformed(f"{table.name}.{column.name}: {value!r:.60} is not a {column.type}")


def _in_domain(type_: str, value: Any) -> bool:
    if type_ == "nat64":
        return type(value) is int and 0 <= value < 1 << 64
    if type_ == "int":
        return type(value) is int and -(1 << 63) <= value < 1 << 63
    if type_ == "bool":
        return type(value) is bool
    if type_ == "text":
        return type(value) is str
    return isinstance(value, bytes)


def encode_row(table: Table, row: Row) -> bytes:
    """Raises: LimitExceeded; Malformed for text that is none (it holds half a character)."""
    try:
        raw = cbor.dumps([_plain(row[c.name]) for c in table.columns])
    except UnicodeEncodeError as error:
        raise Malformed(f"{table.name}: a text of the row can't be encoded") from error
    if len(raw) > ROW_BYTES_MAX:
        raise LimitExceeded(f"a row of {table.name} has more than {ROW_BYTES_MAX} bytes")
    return raw


def decode_row(table: Table, raw: bytes) -> Row:
    values = cbor.loads(raw)
    return {c.name: _typed(c, v) for c, v in zip(table.columns, values, strict=True)}


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes) else value


def _typed(column: Column, value: Any) -> Any:
    return Principal(value) if column.type == "principal" and value is not None else value


# --- access ----------------------------------------------------------------------------------


class RowAccess(Protocol):
    """Where encoded rows live: a message's overlay over a block's over the database."""

    def get(self, table: str, key: bytes) -> bytes | None: ...
    def put(self, table: str, key: bytes, row: bytes | None) -> None: ...
    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]: ...


class TableHandle:
    """What a canister's code does with one of its tables. Always in key order."""

    def __init__(
        self, table: Table, rows: RowAccess, *, spend: Any, read_only: bool, name: str = ""
    ) -> None:
        """`name`: under which the rows lie; the table's own by default."""
        self._table, self._rows = table, rows
        self._name = name or table.name
        self._spend, self._read_only = spend, read_only

    def get(self, *key: Any) -> Row | None:
        self._spend(4)
        raw = self._rows.get(self._name, encode_key(self._table, key))
        return None if raw is None else decode_row(self._table, raw)

    def put(self, **row: Any) -> None:
        """Insert or replace the row with this key. Raises: Malformed outside a column's domain."""
        self._writable()
        check_row(self._table, row)
        key = row_key(self._table, row)
        encoded = encode_row(self._table, row)
        self._spend(8 + len(encoded) // 64)
        before = self._rows.get(self._name, key)
        for index in self._table.indexes:
            self._index(index, key, before, row)
        self._rows.put(self._name, key, encoded)

    def delete(self, *key: Any) -> None:
        self._writable()
        self._spend(8)
        encoded = encode_key(self._table, key)
        before = self._rows.get(self._name, encoded)
        if before is not None:
            for index in self._table.indexes:
                self._index(index, encoded, before, None)
            self._rows.put(self._name, encoded, None)

    def range(
        self, *prefix: Any, start: tuple[Any, ...] | None = None, reverse: bool = False
    ) -> Iterator[Row]:
        """Yield rows whose key begins with `prefix`, from `start` (a key prefix) on.

        In reverse, `start` is where to begin going down, exclusive.
        """
        low = encode_key(self._table, prefix)
        high = prefix_end(low) if low else None
        if start is not None:
            bound = encode_key(self._table, start)
            low, high = (low, bound) if reverse else (max(low, bound), high)
        for _, raw in self._rows.scan(self._name, low, high, reverse=reverse):
            self._spend(4)
            yield decode_row(self._table, raw)

    def by_index(self, index: str, *values: Any) -> Iterator[Row]:
        """Yield rows whose indexed columns equal `values`, in key order."""
        spec = next(i for i in self._table.indexes if i.name == index)
        low = encode_key(self._table, values, spec.columns)
        name = index_table(self._name, index)
        for _, key in self._rows.scan(name, low, prefix_end(low), reverse=False):
            self._spend(8)
            raw = self._rows.get(self._name, key)
            if raw is None:
                raise MachineFault(f"an index of {self._name} points at a row that is not there")
            yield decode_row(self._table, raw)

    def _index(self, index: Index, key: bytes, before: bytes | None, after: Row | None) -> None:
        name = index_table(self._name, index.name)
        old = None
        if before is not None:
            old = index_key(self._table, index, decode_row(self._table, before), key)
        new = index_key(self._table, index, after, key) if after is not None else None
        if old == new:
            return
        if new is not None and index.unique:
            prefix = new[: len(new) - len(key)]
            if next(self._rows.scan(name, prefix, prefix_end(prefix), reverse=False), None):
                raise Malformed(f"{self._table.name}: {index.name} demands distinct values")
        if old is not None:
            self._rows.put(name, old, None)
        if new is not None:
            self._rows.put(name, new, key)

    def _writable(self) -> None:
        if self._read_only:
            raise Malformed("a query can't write")


def index_table(table: str, index: str) -> str:
    return f"{table}#{index}"


def index_key(table: Table, index: Index, row: Row, key: bytes) -> bytes:
    values = tuple([row[c] for c in index.columns])
    return encode_key(table, values, index.columns) + key
