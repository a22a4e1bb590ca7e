"""What is remembered of a table between flushes is what the database would say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replica.abi.tables import declare, encode_key, encode_row, index_table
from replica.state import reading
from replica.state.store import Store

TABLE = declare({"t": {"columns": {"n": "nat64"}, "key": ["n"], "indexes": {"by_n": ["n"]}}})[0]
INDEX = index_table("c/t", "by_n")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'rows.db'}")
    made.declare("c/t", "c__t", TABLE)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(10))
def test_scans_yield_what_is_there_whatever_was_asked_before(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    held: dict[bytes, bytes] = {}
    for height in range(12):
        changes: dict[bytes, bytes | None] = {}
        for n in draw.sample(range(400), draw.choice((1, 5, 60))):
            key = encode_key(TABLE, (n,))
            row = encode_row(TABLE, {"n": n})
            changes[key] = None if key in held and draw.random() < 0.5 else row
        store.load({"c/t": changes})
        held.update({k: v for k, v in changes.items() if v is not None})
        for key in [k for k, v in changes.items() if v is None]:
            del held[key]
        for _ in range(120):
            low, high = (encode_key(TABLE, (draw.randrange(410),)) for _ in range(2))
            bound = draw.choice((high, None, low + b"\x00"))
            reverse = draw.random() < 0.3
            wanted = [
                (k, v)
                for k, v in sorted(held.items(), reverse=reverse)
                if low <= k and (bound is None or k < bound)
            ]
            assert list(store.scan("c/t", low, bound, reverse=reverse)) == wanted, height
            assert store.get("c/t", low) == held.get(low)


def test_what_is_put_beside_others_keys_asks_the_database_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an author's entries do in an index: others' lie above, and no two ask for one key."""
    key = lambda n: n.to_bytes(8, "big")  # noqa: E731
    store.load({INDEX: {key(n): b"x" for n in (1, 2, 900, 901)}})
    asked: list[str] = []
    run = reading.Statement.run

    def counting(self: reading.Statement, *args: object, **values: object) -> reading.Page:
        asked.append(self.text)
        return run(self, *args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(reading.Statement, "run", counting)
    for n in (*range(3, 300), *range(890, 600, -1)):  # upwards, downwards
        assert not list(store.scan(INDEX, key(n), key(n + 1)))
        if n % 50 == 0:
            store.load({INDEX: {key(n): b"x"}})
    assert len(asked) <= 3, "where the table ends, and what comes before and after"
    found = [int.from_bytes(k, "big") for k, _ in store.scan(INDEX, key(240), key(999))]
    assert found == [250, 650, 700, 750, 800, 850, 900, 901]
