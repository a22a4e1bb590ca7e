"""Buckets of checkpoints: few changed rows rewrite few files, to what writing all would give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.lab.catch_up import REQUESTS_S
from replica.state import checkpoint
from replica.state.access import Latch
from replica.state.rows import Layer

TABLE = "canister/table"
KEYS = 400
BORDERS = [k for k in range(KEYS) if checkpoint.is_border(k.to_bytes(2, "big"))]


class Counting:
    """Rows in memory; counts how many were read."""

    latch = Latch()

    def __init__(self) -> None:
        self.rows = Layer(_Nothing())
        self.read = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        self.read += 1
        return self.rows.get(table, key)

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        for found in self.rows.scan(table, low, high, reverse=reverse):
            self.read += 1
            yield found


class _Nothing:
    latch = Latch()

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def scan(
        self, table: str, low: bytes, high: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        return iter(())


def written(folder: Path, base: Path | None, rows: Counting, dirty: set[bytes]) -> dict[str, bytes]:
    folder.mkdir()
    checkpoint.Writer(folder, base)._table("buckets", TABLE, rows, dirty)
    buckets = folder / "buckets"
    return {p.name: p.read_bytes() for p in buckets.iterdir()} if buckets.is_dir() else {}


# Borders are one key in 64: drawn as often as all the others, since they are what is hard.
numbers = st.one_of(st.integers(0, KEYS - 1), st.sampled_from(BORDERS))
changes = st.dictionaries(numbers, st.sampled_from([None, b"one", b"two"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(changes, min_size=2, max_size=4))
def test_what_changed_is_written_as_if_all_were(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[dict[int, bytes | None]]
) -> None:
    root = tmp_path_factory.mktemp("checkpoints")
    rows = Counting()
    base: Path | None = None
    for i, changed in enumerate(rounds):
        for number, row in changed.items():
            rows.rows.put(TABLE, number.to_bytes(2, "big"), row)
        dirty = {n.to_bytes(2, "big") for n in changed}
        found = written(root / f"{i}", base, rows, dirty)
        assert found == written(root / f"{i}-whole", None, rows, set())
        base = root / f"{i}"


def test_each_bucket_is_read_once_however_many_of_its_rows_changed(tmp_path: Path) -> None:
    """Found under load: each of 20,000 new rows was looked for on its own, and the subnet stood
    still for a quarter of a minute while its replicas wrote their checkpoints."""
    rows = Counting()
    old, new = 2_000, 8_000
    for number in range(old):
        rows.rows.put(TABLE, number.to_bytes(4, "big"), b"row")
    written(tmp_path / "base", None, rows, set())
    dirty = {number.to_bytes(4, "big") for number in range(old, old + new)}
    for key in dirty:
        rows.rows.put(TABLE, key, b"row")
    rows.read = 0
    found = written(tmp_path / "next", tmp_path / "base", rows, dirty)
    assert len(found) > new / 64 / 2
    assert rows.read < 2 * new, "about once each, and each border once more"


def test_the_drill_waits_as_long_as_a_file_of_requests_is_written_to() -> None:
    """It can't ask this room, which is not open to tools."""
    assert REQUESTS_S * 1e9 == checkpoint.INGRESS_SPAN_NS
