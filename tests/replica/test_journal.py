"""Journals as files: what was appended is there, what failed is over, who is foreign is told."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replica.protocol.errors import LimitExceeded, Malformed, Unavailable
from replica.runtime import journal as journals
from replica.runtime import journal_format as form
from replica.runtime.journal import ForeignJournal, Journal, JournalReader, read
from replica.runtime.pool_journal import open_pool
from simulation.system.disk import Disk, Disks

PAGE_BYTES = 4096
WHOSE = "pool of node a in subnet b, epoch 1, release c"


def _batches(draw: random.Random, count: int) -> list[list[bytes]]:
    return [
        [draw.randbytes(draw.choice((0, 1, 40, 3000))) for _ in range(draw.randrange(1, 6))]
        for _ in range(count)
    ]


def _flat(batches: list[list[bytes]]) -> list[bytes]:
    return [record for batch in batches for record in batch]


def _first_format(batches: list[list[bytes]]) -> bytes:
    """Return a journal as the release before wrote it."""
    out = b""
    for batch in batches:
        body = b"".join([len(r).to_bytes(4, "big") + r for r in batch])
        length = len(body).to_bytes(4, "big")
        out += length + b"".join([zlib.crc32(p).to_bytes(4, "big") for p in (length, body)]) + body
    return out


def _filled(path: Path, batches: list[list[bytes]], identity: str = WHOSE) -> Journal:
    made = Journal(path, identity)
    for batch in batches:
        made.append(batch)
    return made


@contextmanager
def _breaking(where: int, error: BaseException) -> Iterator[list[str]]:
    """Have the disk fail for good at the `where`-th of all calls that write to it."""
    names = ("open", "fsync", "fdatasync", "rename", "unlink")
    real: dict[str, Callable[..., object]] = {name: getattr(os, name) for name in names}
    calls: list[str] = []

    def broken(name: str) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            calls.append(name)
            if len(calls) > where:
                raise error
            return real[name](*arguments, **more)

        return call

    for name in names:
        setattr(os, name, broken(name))
    try:
        yield calls
    finally:
        for name in names:
            setattr(os, name, real[name])


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_batch_is_gone_and_those_before_it_are_not(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "a.journal"
    before = _batches(draw, 8)
    journal = _filled(path, before)
    synced = path.read_bytes()
    journal.append(_batches(draw, 1)[0] + [draw.randbytes(9000)])
    journal.close()
    torn = bytearray(path.read_bytes())
    for start in range(0, len(torn), PAGE_BYTES):
        if draw.random() < 0.5:
            first, end = max(start, len(synced)), min(start + PAGE_BYTES, len(torn))
            torn[first:end] = bytes(max(0, end - first))
    del torn[draw.randrange(len(synced), len(torn)) :]
    path.write_bytes(torn)
    journal = Journal(path, WHOSE)
    assert journal.records == _flat(before) and journal.cut_bytes == len(torn) - len(synced)
    journal.append([b"after"])
    journal.close()
    assert read(path).records == [*_flat(before), b"after"] and not read(path).damage


def test_power_that_is_cut_again_and_again_while_a_batch_is_written_loses_and_refuses_nothing(
    tmp_path: Path,
) -> None:
    """Each page is the new one, the old one or zeros; a reopened journal may meet the next cut."""
    cuts = 0
    for seed in range(150):
        folder = tmp_path / str(seed)
        folder.mkdir()
        draw = random.Random(seed)
        luck = random.Random(seed + 1000)
        disk, disks = Disk(folder, lambda *_, luck=luck: luck.random()), Disks()
        disk.settle()
        disks.add(disk, lambda: None)
        promised: list[bytes] = []
        with disks.watched():
            for _ in range(4):
                journal = Journal(folder / "a.journal", WHOSE)
                assert journal.records[: len(promised)] == promised
                promised = journal.records
                for _ in range(draw.randrange(3)):
                    batch = [draw.randbytes(draw.randrange(100, 12_000))]
                    journal.append(batch)
                    promised = [*promised, *batch]
                torn, _ = form.seal(journal._chain, [draw.randbytes(draw.randrange(12_000))])
                assert journal._file is not None
                journal._file.write(torn)
                remains = disk.remains()
                journal.close()
                disk.become(remains)
                cuts += 1
        assert Journal(folder / "a.journal", WHOSE).records[: len(promised)] == promised
    assert cuts == 600


def test_what_was_never_synced_is_on_the_disk_before_it_is_offered(tmp_path: Path) -> None:
    """The writer is killed between its write and its sync; then the one after it loses power."""
    for seed in range(30):
        folder = tmp_path / str(seed)
        folder.mkdir()
        luck = random.Random(seed)
        disk, disks = Disk(folder, lambda *_, luck=luck: luck.random()), Disks()
        disk.settle()
        disks.add(disk, lambda: None)
        with disks.watched():
            journal = _filled(folder / "a.journal", [[b"promised"]])
            data, _ = form.seal(journal._chain, [b"written" * 1000])
            assert journal._file is not None
            journal._file.write(data)
            journal.close()
            offered = Journal(folder / "a.journal", WHOSE)
            assert offered.records == [b"promised", b"written" * 1000]
            remains = disk.remains()
            offered.close()
            disk.become(remains)
        assert Journal(folder / "a.journal", WHOSE).records == [b"promised", b"written" * 1000]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_opening_and_rewriting_that_are_broken_off_at_any_step_keep_all_records(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.journal"
    draw = random.Random(3)
    held = _flat(_batches(draw, 5))
    _filled(path, [held]).close()
    where = 0
    while True:
        with _breaking(where, error) as calls:
            try:
                opened = Journal(path, WHOSE)
                opened.rewrite([*held[1:], b"new"])
            except type(error):
                pass
            else:
                break
        again = Journal(path, WHOSE)
        assert again.records in (held, [*held[1:], b"new"])
        again.rewrite(held)
        again.close()
        where += 1
    assert where == len(calls) and set(calls) >= {"open", "fsync", "rename"} and where >= 10
    opened.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.journal"]


@pytest.mark.parametrize("what", ["write", "sync", "rewrite", "rewrite's last sync"])
def test_a_journal_whose_disk_failed_once_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "a.journal"
    journal = _filled(path, [[b"1"]])

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        if what == "write":
            broken.setattr(journal, "_write", fail)
        elif what == "rewrite's last sync":
            broken.setattr("replica.runtime.durable.sync_directory", fail)
        else:
            broken.setattr(os, "fdatasync" if what == "sync" else "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            journal.rewrite([b"2"]) if "rewrite" in what else journal.append([b"2"])
    assert not journal.is_sound()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"a\.journal: .*Input/output error"):
            journal.append([b"3"])
    journal.close()
    again = Journal(path, WHOSE)
    assert again.records in ([b"1"], [b"1", b"2"], [b"2"])
    again.append([b"3"])
    assert again.is_sound()


def test_much_at_once_is_split_and_comes_back_and_too_much_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, WHOSE)
    journal.append([bytes([i]) * (1 << 20) for i in range(65)])
    journal.close()
    again = Journal(path, WHOSE)
    assert [r[0] for r in again.records] == list(range(65))
    monkeypatch.setattr(form, "RECORD_BYTES_MAX", 1 << 20)
    before = path.read_bytes()
    with pytest.raises(LimitExceeded):
        again.append([b"a", bytes((1 << 20) + 1)])
    assert path.read_bytes() == before and not again.failed


def test_a_journal_of_somebody_else_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    _filled(path, [[b"1"]], "pool of node x").close()
    before = path.read_bytes()
    for salvage in (False, True):
        with pytest.raises(ForeignJournal, match=r"is the pool of node x, not the pool of node a"):
            Journal(path, WHOSE, salvage=salvage)
    with pytest.raises(ForeignJournal, match="move it to where it belongs"):
        open_pool(path, WHOSE)
    with pytest.raises(ForeignJournal):
        JournalReader(path, WHOSE).new_records()
    with pytest.raises(ForeignJournal):
        read(path, WHOSE)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.journal"]


@pytest.mark.parametrize("seed", range(10))
def test_a_journal_of_the_first_format_is_read_and_written_anew(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "a.journal"
    held = [[b"first"], *_batches(draw, 6)]
    path.write_bytes(_first_format(held))
    reader = JournalReader(path)
    assert reader.new_records() == read(path).records == _flat(held)
    more = [*held, [b"appended by the release before"]]
    path.write_bytes(_first_format(more))
    assert reader.new_records() == [b"appended by the release before"]
    path.write_bytes(_first_format(more)[:-3])  # torn meanwhile
    journal = Journal(path, WHOSE)
    assert journal.records == _flat(held) and read(path, WHOSE).records == _flat(held)
    journal.append([b"new"])
    assert reader.new_records() == [*_flat(held), b"new"]
    assert path.read_bytes().startswith(form.MAGIC)


def test_damage_in_a_journal_of_the_first_format_is_damage_still(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    whole = _first_format([[b"1" * 6000], [b"2" * 6000], [b"3"]])
    large = _first_format([[bytes(40_000)]])[:PAGE_BYTES]
    for at, page in ((5000, bytes(PAGE_BYTES)), (0, bytes(PAGE_BYTES)), (0, large)):
        data = bytearray(whole)
        data[at : at + len(page)] = page
        path.write_bytes(data)
        with pytest.raises(Malformed, match="damaged"):
            Journal(path)
        assert path.read_bytes() == data


@pytest.mark.parametrize("content", [b"", bytes(100), bytes(3 * PAGE_BYTES), b"noise" * 100])
def test_what_is_no_journal_is_not_taken_for_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=r"a\.journal: it is"):
        Journal(path)
    salvaged = Journal(path, salvage=True)
    assert salvaged.records == [] and salvaged.damage
    assert path.with_name("a.journal.damaged").read_bytes() == content


def test_a_reader_sees_whole_batches_only_and_follows_a_file_that_is_written_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.journal"
    reader = JournalReader(path)
    assert reader.new_records() == []
    journal = _filled(path, [[b"1"]])
    data, _ = form.seal(journal._chain, [b"2", b"3"])
    assert journal._file is not None
    journal._file.write(data[:-1])
    assert reader.new_records() == [b"1"] and reader.new_records() == []
    journal._file.write(data[-1:])
    assert reader.new_records() == [b"2", b"3"] and reader.new_records() == []
    journal.rewrite([b"1", b"2", b"3", b"4" * 5000])
    assert reader.new_records() == [b"1", b"2", b"3", b"4" * 5000]
    journal.append([b"5"])
    assert reader.new_records() == [b"5"]
    damaged = bytearray(path.read_bytes())
    damaged[150] ^= 1
    path.write_bytes(damaged)
    assert reader.new_records() == [], "what it has read is not looked at again"
    journal.rewrite([b"6"])
    assert reader.new_records() == [b"6"]


def test_rewriting_replaces_all_and_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "below" / "a.journal")
    journal.append([b"1", b"2"])
    journal.rewrite([b"2"])
    journal.append([b"3"])
    assert journal.is_sound() and journal.bytes_used == journal.path.stat().st_size
    journal.close()
    assert Journal(journal.path).records == [b"2", b"3"]


def test_a_damaged_pool_is_left_alone_and_the_operator_is_told_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "pool-1.journal"
    _filled(path, [[b"a share"], [b"another"]]).close()
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"a share")] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(Malformed, match=r"damaged at byte \d+: .* move it away") as told:
        open_pool(path, WHOSE)
    assert str(path) in str(told.value)
    assert path.read_bytes() == damaged
    path.rename(tmp_path / "kept")
    assert open_pool(path, WHOSE).records == []


def test_what_lies_before_the_damage_is_salvaged_and_one_copy_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    for round_ in range(3):
        journal = Journal(path, salvage=True)
        journal.rewrite([])
        for record in (b"1", b"2", b"3"):
            journal.append([record * 9])
        assert journal.is_sound()
        damaged = bytearray(path.read_bytes())
        damaged[damaged.index(b"2" * 9)] ^= 1 + round_
        path.write_bytes(damaged)
        assert not journal.is_sound()
        journal.close()
        salvaged = Journal(path, salvage=True)
        assert salvaged.records == [b"1" * 9] and "damaged at byte" in salvaged.damage
        assert path.with_name("a.journal.damaged").read_bytes() == damaged
        salvaged.append([b"2"])
        assert salvaged.is_sound()
        salvaged.close()
        assert Journal(path).records == [b"1" * 9, b"2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.journal", "a.journal.damaged"]


@pytest.mark.parametrize("what", ["removed", "emptied", "older copy", "another's place", "longer"])
def test_a_file_that_is_not_what_was_written_is_not_sound(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.journal"
    journal = _filled(path, [[b"1"], [b"2"]])
    older = path.read_bytes()
    journal.append([b"3"])
    assert journal.is_sound()
    if what == "removed":
        path.unlink()
    elif what == "emptied":
        os.truncate(path, 0)
    elif what == "older copy":
        path.write_bytes(older)
    elif what == "longer":
        path.write_bytes(path.read_bytes() + b"more")
    else:
        (tmp_path / "copy").write_bytes(path.read_bytes())
        os.rename(tmp_path / "copy", path)
    assert not journal.is_sound()
    journal.rewrite([b"1", b"2", b"3"])
    assert journal.is_sound() and Journal(path, WHOSE).records == [b"1", b"2", b"3"]


def test_one_append_is_one_write_and_one_sync(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", WHOSE)
    with _breaking(1000, AssertionError()) as calls:
        journal.append([b"a" * 5000, b"b"])
    assert calls == ["fdatasync"]


def test_little_more_than_the_records_is_held_while_a_journal_is_opened(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.journal"
    journal = Journal(path, WHOSE)
    journal.append([bytes(50_000) for _ in range(600)])
    journal.close()
    tracemalloc.start()
    try:
        again = Journal(path, WHOSE)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(again.records) == 600
    assert most - held < 2 * journals.APPENDED_BYTES + 4 * journals.REWRITTEN_BYTES
