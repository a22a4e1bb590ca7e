"""Layers of rows: a message's overlay over a block's over uncertified blocks over the database.

Keys are bytes, rows are bytes (None: deleted); a table's name carries its canister, so that one
layer holds all canisters' changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

Changes = dict[str, dict[bytes, bytes | None]]
"""Table name to key to row; None deletes."""


class RowStore(Protocol):
    """The durable rows of the newest certified height."""

    def get(self, table: str, key: bytes) -> bytes | None: ...
    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Layer:
    """Uncommitted changes over something below."""

    def __init__(self, below: RowStore) -> None:
        self.below = below
        self.changes: Changes = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        changed = self.changes.get(table)
        if changed is not None and key in changed:
            return changed[key]
        return self.below.get(table, key)

    def put(self, table: str, key: bytes, row: bytes | None) -> None:
        self.changes.setdefault(table, {})[key] = row

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        changed = self.changes.get(table)
        below = self.below.scan(table, low, high, reverse=reverse)
        if not changed:
            return below
        mine = sorted(
            ((k, r) for k, r in changed.items() if k >= low and (high is None or k < high)),
            reverse=reverse,
        )
        return _merge(mine, below, reverse=reverse) if mine else below

    def merge_into(self, target: Changes) -> None:
        for table, rows in self.changes.items():
            target.setdefault(table, {}).update(rows)


def _merge(
    mine: list[tuple[bytes, bytes | None]],
    below: Iterator[tuple[bytes, bytes]],
    *,
    reverse: bool,
) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for key, row in below:
        while position < len(mine) and (
            mine[position][0] > key if reverse else mine[position][0] < key
        ):
            own = mine[position]
            position += 1
            if own[1] is not None:
                yield own[0], own[1]
        if position < len(mine) and mine[position][0] == key:
            own = mine[position]
            position += 1
            if own[1] is not None:
                yield own[0], own[1]
        else:
            yield key, row
    for own in mine[position:]:
        if own[1] is not None:
            yield own[0], own[1]
