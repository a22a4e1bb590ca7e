"""Reading one SQL table by key, prepared once: most of what execution asks of the database.

The rows below all layers change at flushes only. In between, what was read is remembered within
bounds, and a key above the last one is known not to be there without asking: so appending to a
table, the commonest thing canisters do, reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

PAGE_FIRST, PAGE_MAX, PAGE_GROWTH = 8, 512, 8
REMEMBERED_MAX = 2048

Row = tuple[Any, ...]
Page = list[Row]


class _Statement:
    """A statement compiled for one kind of database."""

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._names: list[str] | None = compiled.positiontup if compiled.positional else None
        self._constants: dict[str, Any] = dict(compiled.params)
        """What the library adds of its own, such as an offset of 0."""

    def run(self, connection: sa.Connection, **values: object) -> Page:
        parameters: Any = {**self._constants, **values}
        if self._names is not None:
            parameters = tuple([parameters[n] for n in self._names])
        # The driver's own cursor: the library's result would cost as much as what is read.
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self.text, parameters)
            return [tuple(r) for r in cursor.fetchall()]
        finally:
            cursor.close()


class TableReader:
    """Reads rows by key; told of every write."""

    def __init__(self, table: sa.Table, dialect: sa.Dialect) -> None:
        key: Any = table.c._key
        limit: Any = sa.bindparam("limit", type_=sa.Integer)
        low: Any = sa.bindparam("low")
        high: Any = sa.bindparam("high")
        self._get = _Statement(sa.select(table).where(key == sa.bindparam("key")), dialect)
        self._scans: dict[tuple[bool, bool], _Statement] = {}
        for reverse in (False, True):
            ordered = sa.select(table).order_by(key.desc() if reverse else key).limit(limit)
            for bounded in (False, True):
                query = ordered.where(key >= low)
                if bounded:
                    query = query.where(key < high)
                self._scans[reverse, bounded] = _Statement(query, dialect)
        self._rows: dict[bytes, Row | None] = {}
        self._pages: dict[tuple[bytes, bytes | None, bool], Page] = {}
        self._last: bytes | None = None
        """No key is above this one; None: not known yet."""

    def may_hold(self, key: bytes) -> bool:
        """Return False when a key is certainly not there."""
        return self._last is None or key <= self._last

    def written(self, keys: list[bytes]) -> None:
        """Forget what a write may have changed."""
        self._rows.clear()
        self._pages.clear()
        if self._last is not None and keys:
            self._last = max(self._last, max(keys))

    def get(self, connection: sa.Connection, key: bytes) -> Row | None:
        if key in self._rows:
            return self._rows[key]
        if key > self._last_key(connection):
            return None
        found = self._get.run(connection, key=key)
        if len(self._rows) >= REMEMBERED_MAX:
            self._rows.clear()
        row = self._rows[key] = found[0] if found else None
        return row

    def scan(
        self, connection: sa.Connection, low: bytes, high: bytes | None, reverse: bool
    ) -> Iterator[Row]:
        """Yield rows in key order, a page at a time, so that no cursor stays open."""
        size = PAGE_FIRST
        while low <= self._last_key(connection):
            page = self._page(connection, low, high, reverse, size)
            yield from page
            if len(page) < size:
                return
            if reverse:
                high = bytes(page[-1][0])
            else:
                low = bytes(page[-1][0]) + b"\x00"
            size = min(PAGE_MAX, size * PAGE_GROWTH)

    def _page(
        self,
        connection: sa.Connection,
        low: bytes,
        high: bytes | None,
        reverse: bool,
        size: int,
    ) -> Page:
        place = (low, high, reverse)
        known = self._pages.get(place) if size == PAGE_FIRST else None
        if known is not None:
            return known
        values: dict[str, object] = {"low": low, "limit": size}
        if high is not None:
            values["high"] = high
        page = self._scans[reverse, high is not None].run(connection, **values)
        if size == PAGE_FIRST:
            if len(self._pages) >= REMEMBERED_MAX:
                self._pages.clear()
            self._pages[place] = page
        return page

    def _last_key(self, connection: sa.Connection) -> bytes:
        if self._last is None:
            found = self._scans[True, False].run(connection, low=b"", limit=1)
            self._last = bytes(found[0][0]) if found else b""
        return self._last
