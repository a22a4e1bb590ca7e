"""A journal's bytes: what is whole is read, what a crash tore is cut off, all else is damage."""

from __future__ import annotations

import io
import random

import pytest

from replica.protocol.errors import LimitExceeded, Malformed
from replica.runtime import journal_format as form
from replica.runtime.journal_format import HEAD_BYTES, Chain, Found, seal

SALT, OTHER = b"saltsalt", b"another."
HEADER = form.header("pool of a node", SALT)
PAGE, SECTOR = 4096, 512
Batch = list[bytes]


def parts_of(batches: list[Batch], salt: bytes = SALT) -> list[bytes]:
    whose = "pool of a node" if salt == SALT else "pool of another"
    return list(form.encode(whose, salt, batches))


def read(data: bytes) -> Found:
    file = io.BytesIO(data)
    found = form.read_header(file)
    assert found is not None and found[0] == "pool of a node"
    return form.scan(file, found[1], len(data))


def flat(batches: list[Batch]) -> list[bytes]:
    return [record for batch in batches for record in batch]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    draw = random.Random(1)
    return [[draw.randbytes(draw.randrange(120, 260))] for _ in range(60)]


@pytest.mark.parametrize(
    ("what", "change", "told"),
    [
        ("one is gone", lambda p: p[:31] + p[32:], "batch 31 stands where batch 30 should"),
        ("one is there twice", lambda p: p[:32] + p[31:], "batch 30 stands where batch 31"),
        ("two are swapped", lambda p: [*p[:31], p[32], p[31], *p[33:]], "stands where batch 30"),
        ("the first is gone", lambda p: p[:1] + p[2:], "batch 1 stands where batch 0"),
        ("the last is there twice", lambda p: [*p, p[-1]], "batch 59 stands where batch 60"),
    ],
)
def test_a_batch_that_does_not_follow_is_damage(
    batches: list[Batch], what: str, change: object, told: str
) -> None:
    whole = parts_of(batches)
    assert read(b"".join(whole)).records == flat(batches)
    found = read(b"".join(change(whole)))  # type: ignore[operator]
    assert told in found.damage, what
    assert found.records == flat(batches)[: len(found.records)]


@pytest.mark.parametrize("at", [0, 7, 59, 60])
def test_a_batch_of_another_journal_is_damage(batches: list[Batch], at: int) -> None:
    whole, foreign = parts_of(batches), parts_of(batches, OTHER)
    found = read(b"".join([*whole[: at + 1], foreign[1], *whole[at + 2 :]]))
    assert "a batch of another journal" in found.damage
    assert found.records == flat(batches[:at])


def test_a_batch_of_the_same_journal_at_another_time_is_damage(batches: list[Batch]) -> None:
    """As a page of it comes back from a cache: number and salt are right, the chain is not."""
    other = [*batches[:10], [b"what it held before"], *batches[11:]]
    found = read(b"".join(parts_of(batches)[:12] + parts_of(other)[12:]))
    assert "stands where batch 11 should" in found.damage


def test_pages_that_go_astray_are_damage_where_a_whole_batch_or_a_length_follows(
    batches: list[Batch],
) -> None:
    whole = b"".join(parts_of(batches))
    foreign = b"".join(parts_of(batches, OTHER))
    large = b"".join(parts_of([[bytes(40_000)]], OTHER))
    for start in range(0, len(whole), PAGE):
        for page in (foreign[start:], large, bytes(PAGE), large[PAGE:]):
            data = bytearray(whole)
            size = len(data[start : start + PAGE])
            data[start : start + size] = page[:size].ljust(size, b"\0")
            try:
                found = read(bytes(data)).damage
            except (Malformed, AssertionError):
                found = "its header"
            assert found, (start, page[:20])


def torn(before: bytes, after: bytes, draw: random.Random, unit: int) -> bytes:
    """What a power cut may leave of an append: each unit is the new one, the old one or zeros."""
    out = bytearray(after[: draw.randrange(len(before), len(after) + 1)])
    for start in range(len(before) // unit * unit, len(out), unit):
        if draw.random() < 0.5:
            first = max(start, len(before))
            out[first : start + unit] = bytes(len(out[first : start + unit]))
    return bytes(out)


@pytest.mark.parametrize("unit", [PAGE, SECTOR])
@pytest.mark.parametrize("seed", range(60))
def test_a_torn_last_batch_is_cut_off_and_nothing_before_it(seed: int, unit: int) -> None:
    """Also where its content holds what users put there: whole journals, to their own taste."""
    draw = random.Random(seed)
    before = [[draw.randbytes(draw.choice((0, 40, 3000))) for _ in range(3)] for _ in range(8)]
    bait = b"".join(parts_of([[b"bait"], [b"more"], []], draw.randbytes(8)))
    old = b"".join(parts_of(before))
    last = [draw.randbytes(5000) + bait, bait + draw.randbytes(5000) + bait]
    left = torn(old, b"".join(parts_of([*before, last])), draw, unit)
    found = read(left)
    assert not found.damage
    assert found.records in (flat(before), flat([*before, last]))
    assert found.records == flat(before) or left.endswith(bait)


@pytest.mark.parametrize("seed", range(80))
def test_a_flipped_bit_is_damage_unless_it_may_be_an_interrupted_write(seed: int) -> None:
    draw = random.Random(seed)
    before = [[draw.randbytes(draw.choice((0, 1, 40, 3000)))] for _ in range(5)]
    parts = parts_of(before)
    data = bytearray(b"".join(parts))
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    if bit // 8 < len(MAGIC := form.MAGIC):
        assert form.read_header(io.BytesIO(data)) is None and MAGIC
        return
    try:
        found = read(bytes(data))
    except Malformed:
        assert bit // 8 < len(HEADER)
        return
    is_last = bit // 8 >= len(data) - len(parts[-1])
    assert bool(found.damage) == (not is_last)
    assert found.records == flat(before)[: len(found.records)]
    assert not is_last or found.records == flat(before[:-1])


def test_the_header_says_whose_it_is_and_a_later_format_is_named() -> None:
    file = io.BytesIO(HEADER)
    assert form.read_header(file) == ("pool of a node", form.after_header(HEADER, SALT))
    assert len(form.header("x" * form.IDENTITY_BYTES_MAX, SALT)) <= SECTOR
    later = bytearray(HEADER)
    later[len(form.MAGIC)] = 3
    with pytest.raises(Malformed, match="format 3; this release reads formats 1 and 2"):
        form.read_header(io.BytesIO(later))
    for size in range(len(form.MAGIC), len(HEADER)):
        with pytest.raises(Malformed, match="its header is"):
            form.read_header(io.BytesIO(HEADER[:size]))


def test_a_record_that_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="a record of"):
        list(form.grouped([b"a", bytes(form.RECORD_BYTES_MAX + 1)], 100))
    assert list(form.grouped([b"aa", b"b", b"cc", bytes(50)], 12)) == [
        [b"aa", b"b"],
        [b"cc"],
        [bytes(50)],
    ]
    batch, chain = seal(Chain(SALT, 0, 0, bytes(16)), [])
    assert len(batch) == HEAD_BYTES == chain.position


def test_lengths_that_lead_nowhere_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form.split((200).to_bytes(4, "big") + b"abc") is None
    whole = b"".join(parts_of([[b"abc"], [b"d"]]))
    monkeypatch.setattr(form, "split", lambda _: None)
    assert "a record leaves the batch" in read(whole).damage
    monkeypatch.setattr(form, "BATCH_BYTES_MAX", 3)
    assert "a batch of 7 bytes" in read(whole).damage
