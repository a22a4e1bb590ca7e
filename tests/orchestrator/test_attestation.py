"""Attestations and promises when several are asked for at once, by threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nns import genesis
from replica.client.agent import Agent, World
from replica.protocol.nns_recovery import Order
from replica.runtime.settings import NodeSettings

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
def settings(tmp_path: Path, made: genesis.Genesis) -> NodeSettings:
    node = made.subnets[0].nodes[0]
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    genesis.write_node_keys(tmp_path, node)
    return NodeSettings(
        tmp_path, node.node, 1, 2, 3, (), made.root_key, tmp_path / "releases", 1, 1
    )


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    ready = threading.Barrier(count)

    def start(number: int) -> Any:
        ready.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))
