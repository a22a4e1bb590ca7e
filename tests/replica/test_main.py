"""`python -m replica`: what it says, and with which status it ends, when the machine fails."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import replica.__main__ as program
from nns import genesis
from replica.client import replaying
from replica.node import FAULT_EXIT
from replica.protocol.errors import MachineFault, Unavailable


@pytest.fixture
def node(tmp_path: Path) -> Path:
    made = genesis._make_node("n")
    plain = {
        "node_id": str(made.node),
        "http_port": 1,
        "p2p_port": 2,
        "orchestrator_port": 3,
        "nns_urls": [],
        "root_key": "00",
        "releases": str(tmp_path),
        "poll_ms": 1,
        "stable_age_ms": 1,
    }
    (tmp_path / "node.json").write_text(json.dumps(plain))
    return tmp_path


def test_a_replay_that_can_not_read_prints_no_root(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise MachineFault("reading the database: OperationalError: disk I/O error")

    monkeypatch.setattr("replica.replay.replay", fails)
    arguments = ["replay", "--node", str(node), "--height", "7", "--out", str(node / "out")]
    monkeypatch.setattr(sys, "argv", ["replica", *arguments])
    assert program.main() == FAULT_EXIT
    said = capsys.readouterr()
    assert said.out == "" and f"data in {node / 'data'}" in said.err
    assert said.err.rstrip().endswith("the newest checkpoint") and "disk I/O error" in said.err


def test_whoever_asked_for_it_is_told_why(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], FAULT_EXIT, b"", b"starts\nDISK OR MEMORY FAILED: x\n")
    monkeypatch.setattr(replaying.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(Unavailable, match="DISK OR MEMORY FAILED: x"):
        replaying.run(node, node, 7, node / "out")


def test_a_replica_whose_database_can_not_be_opened_ends_with_the_status_of_a_fault(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(*_: object) -> int:
        raise MachineFault("opening the database: disk I/O error")

    monkeypatch.setattr(program, "_run", fails)
    arguments = ["run", "--node", str(node), "--replica-version", "aa"]
    monkeypatch.setattr(sys, "argv", ["replica", *arguments])
    assert program.main() == FAULT_EXIT
    assert "ends unsigned" in capsys.readouterr().err.splitlines()[-1]


def test_the_fault_is_the_last_word_of_a_replica_that_ran(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ends with it has its say before: connections that are cut, tasks that are cancelled."""

    class Failing:
        def __init__(self, _replica: object) -> None:
            self.started = asyncio.Event()

        async def wait_certified(self) -> None: ...

        async def run(self) -> None:
            self.started.set()
            await asyncio.sleep(0.2)
            asyncio.get_running_loop().call_soon(sys.stderr.write, "Traceback of a peer's\n")
            raise MachineFault("reading the database: disk I/O error")

    class Quiet:
        subnet = b""

        def __init__(self, *_: object, **__: object) -> None: ...

    async def idle(_replica: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(program, "Service", Failing)
    monkeypatch.setattr(program, "Replica", Quiet)
    monkeypatch.setattr(program, "LocalRegistry", Quiet)
    monkeypatch.setattr(program, "_calm_collector", lambda: None)
    monkeypatch.setattr(program.stored_cup, "read", lambda _: Quiet())
    monkeypatch.setattr("replica.delegation.keep_delegation", idle)
    plain = json.loads((node / "node.json").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        plain["http_port"] = free.getsockname()[1]
    (node / "node.json").write_text(json.dumps(plain))
    arguments = ["run", "--node", str(node), "--replica-version", "aa"]
    monkeypatch.setattr(sys, "argv", ["replica", *arguments])
    assert program.main() == FAULT_EXIT
    lines = capsys.readouterr().err.splitlines()
    assert "peer" in lines[0] and "ends unsigned" in lines[-1]
