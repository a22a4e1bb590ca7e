"""Journals: what was appended is there, what was torn is gone, what is damaged is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from replica.node import open_pool
from replica.protocol.errors import Malformed
from replica.runtime.journal import HEAD_BYTES, PAGE_BYTES, Journal, JournalReader, frame, scan


def _batches(draw: random.Random, count: int) -> list[list[bytes]]:
    return [
        [draw.randbytes(draw.choice((0, 1, 40, 3000))) for _ in range(draw.randrange(1, 6))]
        for _ in range(count)
    ]


def _flat(batches: list[list[bytes]]) -> list[bytes]:
    return [record for batch in batches for record in batch]


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_cut_off_or_with_holes_is_gone_and_those_before_it_are_not(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    path = tmp_path / "a.journal"
    journal = Journal(path)
    before = _batches(draw, 8)
    for batch in before:
        journal.append(batch)
    journal.close()
    synced = path.read_bytes()
    torn = bytearray(synced + frame(_batches(draw, 1)[0] + [draw.randbytes(9000)]))
    for start in range(0, len(torn), PAGE_BYTES):
        if draw.random() < 0.5:
            first, end = max(start, len(synced)), min(start + PAGE_BYTES, len(torn))
            torn[first:end] = bytes(max(0, end - first))
    del torn[draw.randrange(len(synced), len(torn)) :]
    path.write_bytes(torn)
    journal = Journal(path)
    assert journal.records == _flat(before)
    journal.append([b"after"])
    journal.close()
    assert scan(path.read_bytes())[0] == [*_flat(before), b"after"]


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_corruption(seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(b"".join([frame(b) for b in _batches(draw, 5)]))
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    with pytest.raises(Malformed):
        scan(bytes(data))


def test_zeros_are_no_batches() -> None:
    good = frame([b"a"])
    assert scan(good + bytes(100)) == ([b"a"], len(good))
    assert scan(bytes(3 * PAGE_BYTES)) == ([], 0)


def test_lengths_that_lead_nowhere_are_malformed() -> None:
    inner = frame([b"abc"])
    body = (200).to_bytes(4, "big") + b"abc"
    crafted = bytearray(frame([b"abc"]))
    crafted[HEAD_BYTES:] = body
    with pytest.raises(Malformed):
        scan(bytes(crafted))
    assert scan(inner)[0] == [b"abc"]
    assert scan(frame([]))[0] == []


def test_a_reader_sees_whole_batches_only(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    reader = JournalReader(path)
    assert list(reader.new_records()) == []
    second = frame([b"2", b"3"])
    path.write_bytes(frame([b"1"]) + second[:-1])
    assert list(reader.new_records()) == [b"1"]
    with open(path, "ab") as file:
        file.write(second[-1:])
    assert list(reader.new_records()) == [b"2", b"3"]
    assert list(reader.new_records()) == []


def test_rewriting_replaces_all_and_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "below" / "a.journal")
    journal.append([b"1", b"2"])
    journal.rewrite([b"2"])
    journal.append([b"3"])
    journal.close()
    assert Journal(journal.path).records == [b"2", b"3"]


def test_a_damaged_pool_is_left_alone_and_the_operator_is_told_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "pool-1.journal"
    journal = Journal(path)
    journal.append([b"a share"])
    journal.append([b"another"])
    journal.close()
    damaged = bytearray(path.read_bytes())
    damaged[HEAD_BYTES + 5] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(Malformed, match=r"damaged at byte 0: .* move it away") as told:
        open_pool(path)
    assert str(path) in str(told.value)
    assert path.read_bytes() == damaged
    path.rename(tmp_path / "kept")
    assert open_pool(path).records == []


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_page_before_a_whole_batch_is_damage_and_no_interrupted_write(seed: int) -> None:
    """A batch is written only once the one before it was synced."""
    draw = random.Random(seed)
    batches = [frame([draw.randbytes(6000)]) for _ in range(4)]
    data = bytearray(b"".join(batches))
    page = PAGE_BYTES * draw.randrange(1, len(b"".join(batches[:2])) // PAGE_BYTES)
    data[page : page + PAGE_BYTES] = bytes(PAGE_BYTES)
    with pytest.raises(Malformed, match="damaged at byte"):
        scan(bytes(data))


def test_what_lies_before_the_damage_is_salvaged_and_a_copy_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path)
    for record in (b"1", b"2", b"3"):
        journal.append([record])
    assert journal.is_sound() and journal.bytes_used == path.stat().st_size
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert not journal.is_sound()
    journal.close()
    salvaged = Journal(path, salvage=True)
    assert salvaged.records == [b"1"] and "damaged at byte" in salvaged.damage
    assert path.with_name("a.journal.damaged").read_bytes() == damaged
    salvaged.append([b"2"])
    assert salvaged.is_sound()
    salvaged.close()
    assert Journal(path).records == [b"1", b"2"]
