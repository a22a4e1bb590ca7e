"""Layers of rows: a message's overlay over a block's over uncertified blocks over the database.

Keys are bytes, rows are bytes (None: deleted); a table's name carries its canister, so that one
layer holds all canisters' changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sortedcontainers import SortedList

from replica.state.access import Latch

Changes = dict[str, dict[bytes, bytes | None]]
"""Table name to key to row; None deletes."""


class RowStore(Protocol):
    """The durable rows of the newest certified height."""

    @property
    def latch(self) -> Latch:
        """Tells whether what was read is worth anything."""
        ...

    def get(self, table: str, key: bytes) -> bytes | None: ...
    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Layer:
    """Uncommitted changes over something below."""

    def __init__(self, below: RowStore) -> None:
        self.below, self.latch = below, below.latch
        self.changes: Changes = {}
        self._order: dict[str, SortedList[bytes]] = {}
        """Changed keys in order, of tables that were scanned."""

    def get(self, table: str, key: bytes) -> bytes | None:
        changed = self.changes.get(table)
        if changed is not None and key in changed:
            return changed[key]
        return self.below.get(table, key)

    def put(self, table: str, key: bytes, row: bytes | None) -> None:
        changed = self.changes.setdefault(table, {})
        if table in self._order and key not in changed:
            self._order[table].add(key)
        changed[key] = row

    def scan(
        self,
        table: str,
        low: bytes,
        high: bytes | None,
        *,
        reverse: bool = False,
        is_topmost: bool = True,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows in key order, as they are now: what is put meanwhile does not show.

        Only the topmost layer changes while it is scanned; those below are read as they are met.
        """
        below = (
            self.below.scan(table, low, high, reverse=reverse, is_topmost=False)
            if isinstance(self.below, Layer)
            else self.below.scan(table, low, high, reverse=reverse)
        )
        changed = self.changes.get(table)
        if not changed:
            return below
        order = self._order.get(table)
        if order is None or len(order) != len(changed):
            order = self._order[table] = SortedList(changed)
        first = order.bisect_left(low)
        if first == len(order) or (high is not None and order[first] >= high):
            return below  # nothing of this layer is in between
        keys = order.irange(low, high, (True, False), reverse=reverse)
        mine = ((k, changed[k]) for k in keys)
        return _merge(iter(list(mine)) if is_topmost else mine, below, reverse=reverse)

    def merge_into(self, target: Layer) -> None:
        """Hand the changes down. Raises: MachineFault when a read below has failed."""
        self.latch.check()
        for table, rows in self.changes.items():
            if table in target._order:
                for key, row in rows.items():
                    target.put(table, key, row)
            else:
                target.changes.setdefault(table, {}).update(rows)


def _merge(
    mine: Iterator[tuple[bytes, bytes | None]],
    below: Iterator[tuple[bytes, bytes]],
    *,
    reverse: bool,
) -> Iterator[tuple[bytes, bytes]]:
    own = next(mine, None)
    for key, row in below:
        while own is not None and (own[0] > key if reverse else own[0] < key):
            if own[1] is not None:
                yield own[0], own[1]
            own = next(mine, None)
        if own is not None and own[0] == key:
            if own[1] is not None:
                yield own[0], own[1]
            own = next(mine, None)
        else:
            yield key, row
    while own is not None:
        if own[1] is not None:
            yield own[0], own[1]
        own = next(mine, None)
