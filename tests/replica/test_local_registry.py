"""The registry store: whatever becomes of its file, its writer heals it and its readers go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from replica.client.local_registry import LocalRegistry
from replica.protocol import canonical
from replica.protocol.errors import Malformed
from replica.protocol.ids import RegistryVersion
from replica.protocol.registry_transport import Delta, Mutation, encode_batch
from replica.runtime import journal_format as form
from replica.runtime.journal import ForeignJournal, Journal

COUNT = 6
DELTAS = [
    Delta(RegistryVersion(v), encode_batch((Mutation("key", str(v).encode() * 50),)))
    for v in range(1, COUNT + 3)
]
OWNER, OTHER = "registry store of node a", "registry store of node b"


def _store(path: Path, count: int = COUNT) -> LocalRegistry:
    made = LocalRegistry(path, writable=True, identity=OWNER)
    for delta in DELTAS[:count]:
        made.append([delta])
    return made


def _without(path: Path, batch: int) -> None:
    with open(path, "rb") as file:
        header = form.read_header(file)
    assert header is not None
    parts = list(form.encode(header[0], header[1].salt, [[canonical.encode(d)] for d in DELTAS]))
    path.write_bytes(b"".join(p for i, p in enumerate(parts[: COUNT + 1]) if i != batch + 1))


def _older(path: Path) -> None:
    _store(path.with_name("older"), 2)
    path.write_bytes(path.with_name("older").read_bytes())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "its header gone": lambda path: os.truncate(path, 20),
    "an older copy in its place": _older,
    "the first batch missing": lambda path: _without(path, 0),
    "a batch missing": lambda path: _without(path, 3),
    "the last batch missing": lambda path: _without(path, COUNT - 1),
    "a bit flipped": _flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(500)),
}


@pytest.mark.parametrize("first", ["mend", "append"])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_store_that_is_damaged_under_its_writer_heals_and_readers_go_on(
    tmp_path: Path, what: str, first: str
) -> None:
    path = tmp_path / "registry.journal"
    store = _store(path)
    reader = LocalRegistry(path, identity=OWNER)
    assert reader.version == COUNT
    DAMAGES[what](path)
    assert not reader.refresh(), "it waits"
    if first == "append":
        store.append(DELTAS[COUNT : COUNT + 1])
        assert not reader.refresh() or reader.version == COUNT + 1
    assert store.mend() and not store.mend()
    store.append(DELTAS[: COUNT + 2])
    assert reader.refresh() and reader.version == COUNT + 2
    assert LocalRegistry(path, identity=OWNER).version == COUNT + 2
    assert LocalRegistry(path, writable=True, identity=OWNER).deltas == DELTAS[: COUNT + 2]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_store_that_was_damaged_while_its_writer_was_down_is_salvaged(
    tmp_path: Path, what: str
) -> None:
    path = tmp_path / "registry.journal"
    _store(path)
    DAMAGES[what](path)
    store = LocalRegistry(path, writable=True, identity=OWNER)
    assert store.deltas == DELTAS[: store.version]
    store.append(DELTAS)
    assert LocalRegistry(path, identity=OWNER).version == len(DELTAS)
    assert not store.mend()


@pytest.mark.parametrize("step", ["fsync", "rename", "last sync", "open"])
def test_a_mend_that_fails_at_any_step_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The writer must not go on in a file that has lost its name."""
    path = tmp_path / "registry.journal"
    store = _store(path)
    _flip(path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        name = "replica.runtime.durable.sync_directory" if step == "last sync" else f"os.{step}"
        broken.setattr(name, fail)
        with pytest.raises(OSError, match="Input/output"):
            store.mend()
    store.append(DELTAS[COUNT : COUNT + 1])
    assert store._journal is not None and store._journal.is_sound()
    assert LocalRegistry(path, identity=OWNER).version == COUNT + 1


def test_an_append_that_fails_is_tried_again_in_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.journal"
    store = _store(path)
    before = path.stat().st_ino

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        broken.setattr(os, "fsync", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                store.append(DELTAS[COUNT : COUNT + 1])
            assert store.version == COUNT
        assert LocalRegistry(path, writable=True, identity=OWNER).version >= COUNT, "a full disk"
    store.append(DELTAS[COUNT : COUNT + 1])
    assert path.stat().st_ino != before
    assert LocalRegistry(path, identity=OWNER).version == store.version == COUNT + 1


def test_a_gap_in_a_whole_journal_is_damage_and_what_comes_before_it_is_kept(
    tmp_path: Path,
) -> None:
    """As a release before may have left it, whose batches did not name each other."""
    path = tmp_path / "registry.journal"
    for _ in range(2):
        journal = Journal(path)
        journal.rewrite([canonical.encode(d) for d in (*DELTAS[:3], *DELTAS[4:])])
        journal.close()
        with pytest.raises(Malformed, match="delta 5 does not follow version 3"):
            LocalRegistry(path)
        store = LocalRegistry(path, writable=True)
        assert store.version == 3 and "delta 5 does not follow" in store.damage
        assert path.with_name("registry.journal.damaged").exists()
        store.append(DELTAS)
        assert LocalRegistry(path).version == len(DELTAS)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_store_of_another_node_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.journal"
    _store(path)
    for writable in (False, True):
        with pytest.raises(
            ForeignJournal, match="store of node a, not the registry store of node b"
        ):
            LocalRegistry(path, writable=writable, identity=OTHER)
    assert LocalRegistry(path).version == COUNT
