"""The commands of docs/recover-a-subnet.md, in its order, on a swarm of one's own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout

    def status(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        sys.stderr.write(done.stderr)  # shown when the test fails
        return done.returncode

    def json(self, *arguments: str):  # type: ignore[no-untyped-def]
        return json.loads(self(*arguments, "-o", "json"))


def wait(what: str, condition, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.3)


def test_recovery_by_hand(tmp_path: Path) -> None:
    run = Shell(tmp_path)
    run("swarm", "up")
    try:
        entry = run("canister", "call", "journal", "append", '{"sequence": 0, "text": "kept"}')
        replica = run.json("node", "status", "app-2")["replica"]
        height = replica["finalized_height"] + 40
        for node in ("app-2", "app-3"):
            fault = {"diverge_at_height": height, "epoch": replica["epoch"], "salt": node}
            path = tmp_path / ".reprise" / "nodes" / node / "fault.json"
            path.write_text(json.dumps(fault))
        wait("the stall", lambda: run.json("subnet", "status", "app")["state"] == "DIVERGENCE")
        assert run("recover", "subnet", "plan", "app", code=9) == "", "it is not halted yet"
        halt = run("subnet", "halt", "app").strip()
        assert run.json("proposal", "show", halt)["status"] == "open", "nobody decides alone"
        run("proposal", "vote", halt, "--yes", "--identity", "council")
        wait(
            "the nodes to halt",
            lambda: sum(r["status"] == "halted" for r in run.json("node", "list")) == 4,
        )
        plan = run.json("recover", "subnet", "plan", "app")
        assert plan["state_height"] == height - 1
        assert plan["cup_height"] > height + 70
        recover = run("recover", "subnet", "propose").strip()
        assert run.json("proposal", "verify", recover)["holds"] is True
        run("proposal", "vote", recover, "--yes", "--identity", "council")
        wait(
            "all nodes",
            lambda: all(
                r["certified"] and r["certified"] > plan["cup_height"]
                for r in run.json("node", "list")
                if r["subnet"] == "app"
            ),
        )
        assert run.json("proposal", "verify", recover)["holds"] is True, "also afterwards"
        number = str(json.loads(entry)["number"])
        assert run("canister", "query", "journal", "get", number) == entry
        again = run("canister", "call", "journal", "append", '{"sequence": 0, "text": "kept"}')
        assert again == entry
        subnet = run.json("subnet", "list")[1]["id"]
        key = f"catch_up_package_contents_{subnet}"
        value = run("registry", "get", key, "--raw").strip()
        database = tmp_path / ".reprise" / "nodes" / "nns-0" / "data" / "state.db"
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "SELECT value FROM c0_registry_values WHERE key = ? ORDER BY version DESC", (key,)
            ).fetchall()
        assert rows[0][0].hex() == value, "SQL and the certified read give the same CUP"
        assert len(rows) == 2
    finally:
        run("swarm", "down")
