"""One SQL table by key, its statements prepared once: most of what execution asks of the database.

The rows below all layers change at flushes only. In between, what was read is remembered within
bounds, also between which two keys nothing is, and a key above the last one is known not to be
there without asking: so appending to a table or an index, the commonest thing canisters do, reads
next to nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import sqlalchemy as sa
from sortedcontainers import SortedDict

from replica.state.access import Access

PAGE_FIRST, PAGE_MAX, PAGE_GROWTH = 8, 512, 8
PAGE_BETWEEN = 2
"""First page between two keys: most often of an index, where one row or none is expected."""
REMEMBERED_MAX = 2048

Row = tuple[Any, ...]
Page = list[Row]


class Statement:
    """A statement compiled for one kind of database, run by the driver's own cursor.

    The library's results and parameters would cost as much as the rows that they carry.
    """

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._names: list[str] | None = compiled.positiontup if compiled.positional else None
        self._constants: dict[str, Any] = dict(compiled.params)
        """What the library adds of its own, such as an offset of 0."""

    def run(self, access: Access, **values: object) -> Page:
        """Return the rows. Raises: MachineFault."""

        def read() -> Page:
            with closing(access.connection.connection.cursor()) as cursor:
                cursor.execute(self.text, self._bound({**self._constants, **values}))
                return [tuple(r) for r in cursor.fetchall()]

        return access.attempt("reading the database", read)

    def run_many(self, access: Access, rows: list[dict[str, object]]) -> None:
        """Run it for each row, in a transaction of the caller's, who deals with errors."""
        with closing(access.connection.connection.cursor()) as cursor:
            cursor.executemany(self.text, [self._bound(r) for r in rows])

    def _bound(self, values: dict[str, object]) -> Any:
        return values if self._names is None else tuple([values[n] for n in self._names])


class TableReader:
    """Reads rows by key, and writes them: so that it knows what it may still remember."""

    def __init__(
        self, table: sa.Table, dialect: sa.Dialect, encoded: Callable[[Row], bytes]
    ) -> None:
        """`encoded`: what a row of the database is to those who ask."""
        self._encode = encoded
        self._encoded: dict[bytes, bytes] = {}
        key: Any = table.c._key
        limit: Any = sa.bindparam("limit", type_=sa.Integer)
        low: Any = sa.bindparam("low")
        high: Any = sa.bindparam("high")
        self._delete = Statement(table.delete().where(key == sa.bindparam("key")), dialect)
        self._insert = Statement(table.insert(), dialect)
        self._get = Statement(sa.select(table).where(key == sa.bindparam("key")), dialect)
        self._scans: dict[tuple[bool, bool], Statement] = {}
        for reverse in (False, True):
            ordered = sa.select(table).order_by(key.desc() if reverse else key).limit(limit)
            for bounded in (False, True):
                query = ordered.where(key >= low)
                if bounded:
                    query = query.where(key < high)
                self._scans[reverse, bounded] = Statement(query, dialect)
        self._rows: dict[bytes, Row | None] = {}
        self._pages: dict[tuple[bytes, bytes | None, bool], Page] = {}
        self._gaps: SortedDict[bytes, bytes | None] = SortedDict()
        """From one key (included) to another, nothing is; None: to the end. Each reaches from right
        after a row to the next, so no two overlap."""
        self._last: bytes | None = None
        """No key is above this one; None: not known yet."""

    def _may_hold(self, key: bytes) -> bool:
        """Return False when a key is certainly not there."""
        return self._last is None or key <= self._last

    def write(
        self,
        access: Access,
        keys: list[bytes],
        rows: list[dict[str, object]],
        *,
        fresh: bool,
    ) -> None:
        """Replace what is at the keys by rows, which have some of these. `fresh`: all is new."""
        gone: list[dict[str, object]] = [{"key": k} for k in keys if self._may_hold(k)]
        self._rows.clear()
        self._pages.clear()
        self._encoded.clear()
        if len(rows) < len(keys):  # some are gone: what was on both sides of them is one now
            self._gaps.clear()
        for key in keys if self._gaps else ():
            self._split_gap(key)
        if self._last is not None:
            self._last = max(self._last, max(keys))
        if gone and not fresh:
            self._delete.run_many(access, gone)
        if rows:
            self._insert.run_many(access, rows)

    def get(self, access: Access, key: bytes) -> bytes | None:
        if key in self._rows:
            row = self._rows[key]
        elif key > self._last_key(access):
            return None
        else:
            found = self._get.run(access, key=key)
            if len(self._rows) >= REMEMBERED_MAX:
                self._rows.clear()
            row = self._rows[key] = found[0] if found else None
        return None if row is None else self._row(access, row)

    def _row(self, access: Access, found: Row) -> bytes:
        """Return a row as those who ask want it. Raises: MachineFault when it is not what was
        written: the database looks at no row's bytes itself."""
        key: bytes = found[0]
        row = self._encoded.get(key)
        if row is None:
            if len(self._encoded) >= REMEMBERED_MAX:
                self._encoded.clear()
            try:
                row = self._encode(found)
                _check(found, row)
            except Exception as error:
                raise access.latch.trip("a row of the database is damaged", error) from error
            self._encoded[key] = row
        return row

    def scan(
        self, access: Access, low: bytes, high: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) in key order, a page at a time, so that no cursor stays open."""
        if self._is_gap(low, high):
            return
        size = PAGE_FIRST if reverse or high is None else PAGE_BETWEEN
        while low <= self._last_key(access):
            page = self._page(access, low, high, reverse, size)
            for found in page:
                yield found[0], self._row(access, found)
            if len(page) < size:
                return
            if reverse:
                high = page[-1][0]
            else:
                low = page[-1][0] + b"\x00"
            size = min(PAGE_MAX, size * PAGE_GROWTH)

    def _page(
        self,
        access: Access,
        low: bytes,
        high: bytes | None,
        reverse: bool,
        size: int,
    ) -> Page:
        place = (low, high, reverse)
        is_first = size <= PAGE_FIRST
        known = self._pages.get(place) if is_first else None
        if known is not None:
            return known
        if size == PAGE_BETWEEN:
            assert high is not None
            page = self._between(access, low, high)
        else:
            values: dict[str, object] = {"low": low, "limit": size}
            if high is not None:
                values["high"] = high
            page = self._scans[reverse, high is not None].run(access, **values)
        if is_first:
            if len(self._pages) >= REMEMBERED_MAX:
                self._pages.clear()
            self._pages[place] = page
        return page

    def _between(self, access: Access, low: bytes, high: bytes) -> Page:
        """Return a short page; where nothing is between two keys, remember how far that is so."""
        found = self._scans[False, False].run(access, low=low, limit=PAGE_BETWEEN)
        page = [row for row in found if row[0] < high]
        if not page:
            self._note_gap(access, low, found)
        return page

    def _note_gap(self, access: Access, low: bytes, after: Page) -> None:
        """Remember how far nothing is on both sides of a key: what comes next may lie on either."""
        before = self._scans[True, True].run(access, low=b"", high=low, limit=1)
        for row in (*before, *after[:1]):
            self._row(access, row)
        if len(self._gaps) >= REMEMBERED_MAX:
            self._gaps.clear()
        start = before[0][0] + b"\x00" if before else b""
        self._gaps[start] = after[0][0] if after else None

    def _gap_at(self, key: bytes) -> tuple[bytes, bytes | None] | None:
        """Return where the gap that holds a key starts and ends; None: none is known to."""
        at = self._gaps.bisect_right(key) - 1
        if at < 0:
            return None
        start, end = self._gaps.peekitem(at)
        return (start, end) if end is None or key < end else None

    def _is_gap(self, low: bytes, high: bytes | None) -> bool:
        """Whether it is known that nothing is between two keys."""
        gap = self._gap_at(low)
        if gap is None:
            return False
        end = gap[1]
        return end is None or (high is not None and high <= end)

    def _split_gap(self, key: bytes) -> None:
        """A row is put at a key."""
        gap = self._gap_at(key)
        if gap is None:
            return
        start, end = gap
        del self._gaps[start]
        if len(self._gaps) >= REMEMBERED_MAX:
            self._gaps.clear()
        if start < key:
            self._gaps[start] = key
        self._gaps[key + b"\x00"] = end

    def _last_key(self, access: Access) -> bytes:
        if self._last is None:
            found = self._scans[True, False].run(access, low=b"", limit=1)
            if found:
                self._row(access, found[0])
            self._last = found[0][0] if found else b""
        return self._last


def check_of(key: bytes, row: bytes) -> int:
    """Return the number that tells a row from what a disk may make of it."""
    return zlib.crc32(row, zlib.crc32(key))


def _check(found: Row, row: bytes) -> None:
    if type(found[0]) is not bytes or found[1] != check_of(found[0], row):
        raise ValueError(f"its checksum is not {found[1]}")
