"""Rows as SQL keeps them and back: key, checksum, declared columns for key, canonical bytes."""

from __future__ import annotations

from replica.abi.tables import Table, decode_row, encode_row
from replica.state.reading import Row


def to_columns(table: Table, raw: bytes) -> dict[str, object]:
    row = decode_row(table, raw)
    for column in table.columns:
        value = row[column.name]
        if column.type == "nat64" and value is not None:
            row[column.name] = value.to_bytes(8, "big")
        elif isinstance(value, bytes):
            row[column.name] = bytes(value)
    return row


def to_target(found: Row) -> bytes:
    return bytes(found[2])


def to_row(table: Table, found: Row) -> bytes:
    row: dict[str, object] = {}
    for column, value in zip(table.columns, found[2:], strict=True):
        if value is not None:
            if column.type == "nat64":
                value = int.from_bytes(value, "big")
            elif column.type == "bool":
                value = bool(value)  # SQLite keeps numbers
            elif column.type in ("blob", "principal"):
                value = bytes(value)
        row[column.name] = value
    return encode_row(table, row)
