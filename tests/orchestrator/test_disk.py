"""A disk that is full or read-only: the status says so, and what must be written finds room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.lab import swarm as lab
from cli.lab.layout import NodeEntry
from cli.recovery.detect import NodeReport, trouble
from orchestrator import disk as disks
from orchestrator.__main__ import check, open_node
from orchestrator.agent import Orchestrator, Surroundings
from orchestrator.disk import NodeDisk
from orchestrator.replays import Promises
from replica.client.agent import World
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Principal
from replica.runtime import durable
from replica.runtime import reserve as reserves
from replica.runtime import settings as node_settings
from replica.runtime.settings import NodeSettings
from tests.cli.test_swarm_folder import OPTIONS, Small

MIB = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    swarm = lab.create(tmp_path / "swarm", OPTIONS, Small())
    return node_settings.load(swarm.nodes[1].folder)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk has left, in MiB, besides what the reserve takes."""
    left = [1000]
    for module in (disks, reserves):
        monkeypatch.setattr(module, "free_bytes", lambda _: left[0] * MIB)
    return left


def _failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "replica.log")

    return fail


def test_room_is_kept_while_there_is_some_and_given_back_when_there_is_none(
    settings: NodeSettings, free: list[int]
) -> None:
    said: list[str] = []
    disk = NodeDisk(settings, said.append, 16 * MIB)
    disk.worked()
    assert settings.reserve_path.stat().st_size == 16 * MIB
    assert settings.reserve_path.stat().st_blocks * 512 >= 16 * MIB
    assert settings.promise_reserve_path.stat().st_size == disks.PROMISE_RESERVE_BYTES
    disk.make_room()
    assert settings.reserve_path.exists()
    free[0] = 15
    disk.worked()
    assert disk.problem == "the disk is nearly full: 15360 KiB are left"
    disk.make_room()
    assert not settings.reserve_path.exists() and "gives back 16 MiB" in said[-1]
    for left, is_kept in ((21, False), (31, False), (32, True)):
        free[0] = left
        disk.worked()
        assert not disk.problem and settings.reserve_path.exists() == is_kept
    pool = settings.data / "pool-1-a.journal"
    for pool_mib, left, size_mib in ((9, 31, 16), (9, 60, 32), (0, 60, 16), (1, 1000, 24)):
        with open(pool, "wb") as file:
            file.truncate(pool_mib * MIB)
        free[0] = left
        disk.worked()
        assert settings.reserve_path.stat().st_size == size_mib * MIB
    pool.unlink()
    assert sorted(p.name for p in settings.data.iterdir()) == [
        "owner",
        "registry.journal",
        "reserve",
    ]


def test_a_promise_finds_room_on_a_full_disk(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch, free: list[int]
) -> None:
    disk = NodeDisk(settings, lambda _: None, 16 * MIB)
    disk.worked()
    promises = Promises(settings, World(), disk.promise_room.give_back)
    real = os.fsync

    def full(descriptor: int) -> None:
        if settings.promise_reserve_path.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    promises.give(5, 17)
    assert settings.promised_epoch() == (5, 17)
    assert not list(settings.folder.glob("promise.json.*"))
    monkeypatch.setattr(os, "fsync", _failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        promises.give(6, 18)
    assert settings.promised_epoch() == (5, 17)


@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "disk is read-only"), (errno.EIO, "fails")],
)
def test_what_the_disk_refuses_stands_in_the_status_until_it_works(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch, code: int, told: str
) -> None:
    """Also when it is the replica's log that can't be opened."""
    said: list[str] = []
    process: Any = SimpleNamespace(
        version=None,
        run_start=None,
        cup_epoch=None,
        crashes=0,
        last_words="",
        not_before_ns=0,
        pid=None,
        is_running=lambda: False,
        start=_failing(code),
        stop=lambda: None,
    )
    orchestrator = Orchestrator(settings, Surroundings(process, World(), log=said.append))
    monkeypatch.setattr(orchestrator.releases, "has", lambda _: True)
    monkeypatch.setattr(orchestrator.releases, "ready", lambda _: settings.folder)
    for _ in range(3):
        check(orchestrator)
        assert told in orchestrator.status()["disk_error"]
        assert "replica.log" in orchestrator.status()["disk_error"]
    assert len([line for line in said if told in line]) == 1
    process.start = lambda *_: None
    check(orchestrator)
    assert orchestrator.status()["disk_error"] == ""
    monkeypatch.setattr(orchestrator.attestor, "attest", _failing(code))
    with pytest.raises(Unavailable, match=told):
        orchestrator.attest(7)
    process.start = _failing(errno.ENOENT)
    with pytest.raises(OSError, match="No such file"):
        check(orchestrator)


def test_an_orchestrator_starts_on_a_full_disk(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable.os, "fsync", _failing(errno.ENOSPC))
    orchestrator = Orchestrator(settings)
    assert orchestrator.records.version == 1
    check(orchestrator)
    assert "the disk is full" in orchestrator.status()["disk_error"]


def test_a_node_that_can_not_be_opened_says_so_once_and_comes_up_when_it_is_put_right(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings.folder / "keys.json"
    kept = path.read_bytes()
    path.write_bytes(b"")
    said: list[str] = []
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            path.write_bytes(kept)

    monkeypatch.setattr("orchestrator.__main__.log", said.append)
    monkeypatch.setattr("orchestrator.__main__.time.sleep", wait)
    assert open_node(settings.folder).records.version == 1
    assert len(waits) == 3 and len(said) == 1
    assert "keys.json can't be read (it is empty)" in said[0]


def test_what_is_wrong_with_a_node_is_told_from_its_orchestrators_words(tmp_path: Path) -> None:
    node = NodeEntry("app-1", Principal(b"1"), "app", "", "", tmp_path)
    for words, status, told in (
        ({"disk_error": "the disk is full"}, None, "the disk is full"),
        ({"disk_error": "the disk is full"}, {"status": "running"}, "the disk is full"),
        ({}, None, ""),
        ({"replica_crashes": 3}, None, "the replica keeps crashing: argh"),
        ({"replica_crashes": 3}, {"status": "running"}, ""),
        (
            {"replica_crashes": 3, "disk_error": "the disk fails"},
            None,
            "the disk fails; the replica keeps crashing: argh",
        ),
    ):
        answer = {"replica_crashes": 0, "replica_last_words": "argh", **words}
        agent: Any = SimpleNamespace(orchestrator_status=lambda _, a=answer: a)
        assert trouble(NodeReport(node, status), agent) == told
