"""Attestations and promises when several are asked for at once, by threads of their own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nns import genesis
from orchestrator import replays
from orchestrator.attestation import Attestor
from orchestrator.replays import Promises, Replays
from replica.client.agent import Agent, World
from replica.protocol import canonical
from replica.protocol.attestation import Attestation
from replica.protocol.errors import Conflict, Malformed, Rejected, Unavailable
from replica.protocol.ids import Principal, SubnetId
from replica.protocol.nns_recovery import Order
from replica.runtime.settings import NodeSettings

SUBNET = SubnetId(Principal(b"\x01"))
ROOT, STATE = "0a" * 32, "0b" * 32


@dataclass
class Busy(World):
    """Replays take a while here, and two in one folder spoil each other."""

    heights: list[int] = field(default_factory=list)

    def replay(
        self, release: Path, node: Path, height: int, out: Path, order: Order | None = None
    ) -> dict[str, Any]:
        self.heights.append(height)
        checkpoint = out / f"{height:016x}"
        checkpoint.mkdir(parents=True)  # fails where another one works
        (checkpoint / "rows").write_bytes(b"rows")
        time.sleep(0.05)
        return {"checkpoint": str(checkpoint), "certified_root": ROOT, "state_hash": STATE}


@dataclass
class Halted(Agent):
    """Says what a halted replica says of itself."""

    epoch: int = 7
    registry_version: int = 9

    def node_status(self, url: str) -> dict[str, Any]:
        return {
            "status": "halted",
            "epoch": self.epoch,
            "registry_version": self.registry_version,
            "cup_height": 10,
            "finalized_height": 40,
            "certified_height": 38,
        }


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    node = genesis._make_node("n")
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    (tmp_path / "keys.json").write_text(json.dumps(node.to_plain()))
    return NodeSettings(tmp_path, node.node, 1, 2, 3, (), b"", tmp_path / "releases", 1, 1)


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    ready = threading.Barrier(count)

    def start(number: int) -> Any:
        ready.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@dataclass
class Asked:
    """A halted node that is asked for attestations."""

    settings: NodeSettings
    world: Busy = field(default_factory=Busy)

    def __post_init__(self) -> None:
        self.replica = Halted([], b"", world=self.world)
        self.promises = Promises(self.settings, self.world)
        shared = Replays(self.settings, self.world)
        self.attestor = Attestor(self.settings, self.replica, shared, self.promises)

    def attest(self, height: int) -> bytes:
        return self.attestor.attest(SUBNET, height, self.settings.releases)


@pytest.fixture
def node(settings: NodeSettings) -> Asked:
    return Asked(settings)


def test_who_asks_again_waits_and_gets_the_same_word(node: Asked) -> None:
    words = at_once(4, lambda _: node.attest(38))
    assert len(set(words)) == 1 and node.world.heights == [38]
    word = canonical.decode(Attestation, words[0])
    assert (word.epoch, word.height, word.state_hash.hex()) == (7, 38, STATE)
    assert node.settings.promised_epoch() == (7, 9)


def test_different_heights_are_replayed_one_after_another(node: Asked) -> None:
    at_once(6, lambda i: node.attest(33 + i))
    assert sorted(node.world.heights) == [33, 34, 35, 36, 37, 38]
    assert not (node.settings.data / "replay").exists()
    kept = sorted(p.name for p in (node.settings.data / "checkpoints").iterdir())
    assert kept == [f"{33 + i:016x}" for i in range(6)]


def test_an_attestation_that_failed_is_made_when_it_is_asked_for_again(
    node: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise Unavailable("no block")

    with monkeypatch.context() as broken:
        broken.setattr(node.world, "replay", fail)
        with pytest.raises(Unavailable):
            node.attest(38)
    assert node.settings.promised_epoch() is None, "nothing was said, nothing is promised"
    assert canonical.decode(Attestation, node.attest(38)).height == 38


def test_a_replica_that_starts_meanwhile_spoils_no_replay(
    node: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes what is unfinished among its checkpoints, and it may make the same one."""
    checkpoints = node.settings.data / "checkpoints"

    def start_replica(_: Path) -> None:
        for path in checkpoints.iterdir():
            assert len(path.name) == 16, f"{path.name} would be removed"
        (checkpoints / f"{38:016x}").mkdir()
        (checkpoints / f"{38:016x}" / "rows").write_bytes(b"rows of its own")

    monkeypatch.setattr(replays, "sync_folder", start_replica)
    node.attest(38)
    assert [p.name for p in checkpoints.iterdir()] == [f"{38:016x}"]
    assert (checkpoints / f"{38:016x}" / "rows").read_bytes() == b"rows of its own"
    assert not (node.settings.data / "replay").exists()


@pytest.mark.parametrize("height", [9, 41])
def test_only_heights_from_the_package_to_the_tip_are_attested(node: Asked, height: int) -> None:
    with pytest.raises(Rejected, match="not between"):
        node.attest(height)
    assert node.world.heights == [] and node.settings.promised_epoch() is None


def test_promises_never_become_weaker(node: Asked) -> None:
    at_once(8, lambda i: node.promises.give(3, 10 + i))
    assert node.settings.promised_epoch() == (3, 17)
    node.promises.give(3, 12)
    assert node.settings.promised_epoch() == (3, 17), "a later version binds for longer"
    node.promises.give(4, 2)
    assert node.settings.promised_epoch() == (4, 2)
    with pytest.raises(Conflict, match="past epoch 3"):
        node.promises.give(3, 99)
    assert node.settings.promised_epoch() == (4, 2)


def test_a_damaged_promise_is_never_taken_for_another_or_none(settings: NodeSettings) -> None:
    assert settings.promised_epoch() is None
    settings.promise(3, 17)
    assert settings.promised_epoch() == (3, 17)
    text = settings.promise_path.read_text()
    settings.promise_path.write_text(text.replace("3", "2", 1))
    with pytest.raises(Malformed, match=r"promise\.json is damaged: .* until its subnet has been"):
        settings.promised_epoch()
