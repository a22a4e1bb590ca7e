"""The drills as tests: real processes, sockets, signatures and databases on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]
MEMORY_BYTES_MAX = 250 << 20


def drill(*arguments: str) -> dict[str, Any]:
    outcome, said = carried_out(*arguments)
    assert outcome["outcome"] == "recovered", said
    assert outcome["state_preserved"] is True
    assert all(n["resident_bytes_max"] < MEMORY_BYTES_MAX for n in outcome["nodes"])
    return outcome


def carried_out(*arguments: str) -> tuple[dict[str, Any], str]:
    """Return what came of a drill, over its bars or not, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "drill", "run", *arguments, "--json"],
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome, done.stderr


def phase_names(outcome: dict[str, Any]) -> list[str]:
    return [p["name"] for p in outcome["phases"]]


def test_a_release_is_swapped_under_load() -> None:
    outcome = drill("upgrade")
    assert len(outcome["proposal_ids"]) == 2
    assert "download ahead" in phase_names(outcome)


@pytest.mark.parametrize("name", ["canister-failure", "root-failure", "governance-failure"])
def test_a_broken_nns_canister_is_repaired(name: str) -> None:
    outcome = drill(name)
    assert "serve again" in phase_names(outcome)
    assert outcome["height_after"] > outcome["height_before"]


def test_the_nns_is_recovered_offline() -> None:
    outcome = drill("nns-stall")
    assert outcome["height_after"] > outcome["height_before"] + 70
    assert phase_names(outcome)[-2:] == ["last node", "verify"]


def test_a_diverged_subnet_is_recovered_by_a_vote() -> None:
    outcome = drill("subnet-divergence")
    assert outcome["height_after"] > outcome["height_before"] + 70
    assert len(outcome["proposal_ids"]) == 2
    fetched = {n["name"]: n["bytes_fetched"] for n in outcome["nodes"]}
    assert fetched.pop("app-3") > 0
    assert set(fetched.values()) == {0}, "only the wiped node fetches"
    names = [p["name"] for p in outcome["phases"]]
    assert names[0] == "swarm up" and names[-1] == "verify"


def test_members_come_and_go() -> None:
    """Added, removed, replaced, and replaced once more while f members are down."""
    outcome = drill("membership-change")
    assert len(outcome["proposal_ids"]) == 4
    assert phase_names(outcome)[1:5] == ["add", "remove", "replace", "replace, f dealers dead"]


def test_lost_nodes_are_replaced_with_new_keys() -> None:
    outcome = drill("subnet-loss")
    assert len(outcome["proposal_ids"]) == 2
    assert "propose, vote, deal keys" in phase_names(outcome)
    assert outcome["rto_seconds"] < 120


def test_one_node_heals_by_itself_in_three_cases() -> None:
    outcome = drill("node-catch-up")
    restarted, behind, wiped = outcome["cases"]
    assert restarted["bytes_fetched"] == 0
    assert behind["bytes_reused"] > behind["bytes_fetched"] > 0
    assert wiped["bytes_fetched"] > 0
    assert all(c["signs_again"] and c["subnet_never_stopped"] for c in outcome["cases"])


def test_a_swarm_by_hand(tmp_path: Path) -> None:
    """What a newcomer does after `swarm up`, and that `swarm down` leaves no process."""

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout

    run("swarm", "up")
    try:
        rows = json.loads(run("node", "list", "-o", "json"))
        assert len(rows) == 5 and {r["status"] for r in rows} == {"running"}
        assert len(json.loads(run("subnet", "list", "-o", "json"))) == 2
        _agreement(run)
        proposals = json.loads(run("proposal", "list", "-o", "json"))
        assert [(p["id"], p["status"]) for p in proposals] == [(1, "open")]
        run("proposal", "vote", "1", "--yes")
        assert json.loads(run("proposal", "show", "1", "-o", "json"))["status"] == "executed"
        run("proposal", "vote", "1", "--yes", code=9)
        _journal(run)
        run("cup", "show", "app-0")
        run("cup", "verify", "app-0")
        subnet = json.loads(run("subnet", "list", "-o", "json"))[1]["id"]
        run("registry", "get", f"catch_up_package_contents_{subnet}")
        run("registry", "get", "no_such_key", code=5)
        run("recover", "subnet", "plan", "app", code=9)
        neuron = run("neuron", "stake", "12.5").strip()
        assert neuron in run("neuron", "list")
        run("identity", "new", "carol")
        run(
            "canister",
            "call",
            "journal",
            "append",
            '{"sequence": 0, "text": "x"}',
            "--identity",
            "carol",
        )
        run("proposal", "vote", "1", "--no", "--identity", "carol", code=5)
        run("canister", "status", "registry")
    finally:
        run("swarm", "down")
    assert not _processes(tmp_path), "processes are left"
    assert not (tmp_path / ".reprise").exists()


def _agreement(run: Any) -> None:
    """Four processes agree on states at equal heights and on the roots of their checkpoints."""
    import time

    for _ in range(100):
        replicas = [
            json.loads(run("node", "status", f"app-{i}", "-o", "json"))["replica"] for i in range(4)
        ]
        roots = [r["checkpoints"] for r in replicas]
        common = set.intersection(*[set(r) for r in roots]) - {"0"}
        if common and all(r["cup_height"] > 0 for r in replicas):
            for height in common:
                assert len({r[height] for r in roots}) == 1
            by_height: dict[int, set[str]] = {}
            for r in replicas:
                by_height.setdefault(r["executed_height"], set()).add(r["state_digest"])
            assert all(len(d) == 1 for d in by_height.values())
            return
        time.sleep(0.3)
    raise AssertionError("no common checkpoint")


def _journal(run: Any) -> None:
    entry = json.loads(
        run("canister", "call", "journal", "append", '{"sequence": 7, "text": "hello"}')
    )
    again = json.loads(
        run("canister", "call", "journal", "append", '{"sequence": 7, "text": "hello"}')
    )
    assert entry == again, "a repeated write is answered with the first one's entry"
    assert json.loads(run("canister", "query", "journal", "get", str(entry["number"]))) == entry
    assert json.loads(run("canister", "call", "journal", "relay", '"hi"')) == "relayed: hi"


def _processes(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


def test_one_diverged_node_heals_at_the_next_cup(tmp_path: Path) -> None:
    """Others certify another state than its own: it starts over, and syncs once a CUP is past."""
    from cli.lab import divergence
    from cli.lab import swarm as lab
    from cli.lab.drill import Drill

    drill = Drill(tmp_path / "swarm", lab.Options(interval_blocks=60), lambda _: None, None)
    node = drill.swarm.app.nodes[3]
    try:
        drill.up()
        height = divergence.inject(drill, (node,))

        def healed() -> bool:
            status = drill.status(node)
            return status is not None and status["shares_signed_at"] > height + 5

        lab.wait_for("the diverged node", healed, 120)
        status = drill.status(node)
        assert status is not None and status["cup_height"] > height
        assert status["state_sync"]["bytes_fetched"] > 0
        assert "DIVERGED" in (node.folder / "replica.log").read_text()
        count = drill.writer.count
        lab.wait_for("the client", lambda: drill.writer.count > count, 30)
    finally:
        drill.writer.stop()
        drill.close()


def test_a_lost_nns_goes_on_with_a_new_root_key() -> None:
    outcome = drill("nns-loss")
    assert outcome["height_after"] > outcome["height_before"] + 70
    assert phase_names(outcome)[-3:] == ["sync", "govern again", "verify"]


def test_one_bad_member_is_borne_and_named() -> None:
    """Two attacks, briefly; `reprise drill run bad-member` makes all of them, a minute each."""
    attacks = ("--attack", "orphan-blocks", "--attack", "wrong-signatures")
    outcome, said = carried_out("bad-member", *attacks, "--seconds", "6")
    _, *cases = outcome["cases"]
    assert outcome["state_preserved"] is True, said
    assert [c["attack"] for c in cases] == ["orphan-blocks", "wrong-signatures"]
    for case in cases:  # how fast blocks are made in six seconds is no matter of a test
        assert case["frames"] > 100, "it attacks"
        assert case["named_by"] >= 2 and case["restarts"] == 0, case
        assert case["blocks_a_second"] > 0, case


def test_nodes_that_go_back_to_an_old_copy_contradict_nothing() -> None:
    outcome = drill("old-snapshot", "--heights", "60")
    *cases, total = outcome["cases"]
    assert len({c["node"] for c in cases}) == 3
    assert all(c["back_s"] < 30 for c in cases)
    assert all(c["killed_at"] >= c["copied_at"] + 60 for c in cases)
    assert total == {"contradictions": 0}
