"""The commands of docs/repair-the-nns.md, in its order, on a swarm of one's own; real nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes.test_recovery_by_hand import Shell, wait

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    shell("swarm", "up", "--nns-nodes", "4")
    yield shell
    shell("swarm", "down")


def adopt(run: Shell, *arguments: str) -> dict[str, Any]:
    number = run(*arguments).strip()
    run("proposal", "vote", number, "--yes", "--identity", "council")
    found: dict[str, Any] = {}

    def decided() -> bool:
        found.update(run.json("proposal", "show", number))
        return found["status"] in ("executed", "failed")

    wait(f"proposal {number}", decided)
    assert found["status"] == "executed", found
    return found


def test_repairing_the_nns_by_hand(run: Shell, tmp_path: Path) -> None:
    _a_canister(run)
    _governance(run, tmp_path)
    _the_nns(run, tmp_path)


def _a_canister(run: Shell) -> None:
    built = run.json("canister", "build", str(REPOSITORY / "nns" / "ledger"))
    adopt(run, "canister", "snapshot", "ledger")
    (snapshot,) = run.json("canister", "snapshots", "ledger")
    found = adopt(run, "canister", "install", "ledger", "ledger.zip")
    assert found["action"]["InstallCode"]["wasm_module_hash"] == built["module_hash"]
    assert run.json("canister", "changes")[0]["state"] == "done"
    adopt(run, "canister", "snapshot", "ledger", "--load", snapshot["id"])
    assert run.json("canister", "status", "ledger")["module_hash"] == built["module_hash"]


def _governance(run: Shell, tmp_path: Path) -> None:
    built = run.json("canister", "build", str(REPOSITORY / "nns" / "governance"))
    run("recover", "governance", "propose", "governance.zip", "--identity", "operator-nns-0")
    run("recover", "governance", "propose", "governance.zip", "--identity", "default", code=9)
    pending = run("recover", "governance", "status", "-o", "json")
    assert json.loads(pending)[0]["proposed_module"] == built["module_hash"]
    (tmp_path / "proposal.json").write_text(pending)
    sign = ("recover", "governance", "sign", "proposal.json", "--module")
    run(*sign, "ledger.zip", "--identity", "operator-nns-1", code=7)
    for number in (1, 2):
        key = tmp_path / ".reprise" / "identities" / f"operator-nns-{number}.pem"
        run(*sign, "governance.zip", "--key", str(key), "--out", f"g{number}.json")
    assert run.json("ballot", "show", "g1.json")["signature"] == "holds"
    altered = json.loads((tmp_path / "g1.json").read_text())
    (tmp_path / "no.json").write_text(json.dumps({**altered, "choice": 2}))
    run("ballot", "show", "no.json", code=7)
    run("recover", "governance", "relay", "g1.json", "g2.json")
    wait("root", lambda: run.json("canister", "changes")[0]["mode"] == "upgrade")
    wait("the change", lambda: run.json("canister", "changes")[0]["state"] == "done")
    assert run.json("recover", "governance", "status") == []


def _the_nns(run: Shell, tmp_path: Path) -> None:
    replica = run.json("node", "status", "nns-2")["replica"]
    height = replica["finalized_height"] + 30
    for node in ("nns-2", "nns-3"):
        fault = {"diverge_at_height": height, "epoch": replica["epoch"], "salt": node}
        (tmp_path / ".reprise" / "nodes" / node / "fault.json").write_text(json.dumps(fault))
    wait("the stall", lambda: run.json("subnet", "status", "nns")["state"] == "DIVERGENCE")
    run("recover", "nns", "halt", "nns-0", "--identity", "operator-nns-1", code=9)
    for node in ("nns-0", "nns-1", "nns-2"):
        run("recover", "nns", "halt", node)
    wait(
        "the nodes to halt",
        lambda: sum(r["replica"] == "halted" for r in run.json("recover", "nns", "status")) == 3,
    )
    build = ("recover", "nns", "build", "--node", "nns-0")
    wait("a bundle", lambda: not run.status(*build))
    shown = run.json("recover", "nns", "show", "nns.bundle")
    assert shown["state_height"] == height - 1 and shown["ballots"] == []
    assert run.json("recover", "nns", "verify", "nns.bundle", "--node", "nns-1")["holds"] is True
    for number in (0, 1, 3):
        identity = f"operator-nns-{number}"
        out = ("--identity", identity, "--out", f"n{number}.json")
        run("recover", "nns", "sign", "nns.bundle", *out)
    run("recover", "nns", "sign", "nns.bundle", "--identity", "default", "--out", "stranger.json")
    some = ("recover", "nns", "apply", "nns.bundle", "n0.json", "n1.json")
    run(*some, "stranger.json", "--node", "nns-0")
    rows = {r["node"]: r for r in run.json("recover", "nns", "status")}
    assert rows["nns-0"]["recovery"] == "waiting" and rows["nns-0"]["signed"] == "2 of 3"
    nodes = [a for n in ("nns-0", "nns-1", "nns-2") for a in ("--node", n)]
    run(*some, "n3.json", *nodes)
    wait(
        "all nodes",
        lambda: all(
            (r["certified"] or 0) > shown["cup_height"] and r["epoch"] == shown["registry_version"]
            for r in run.json("recover", "nns", "status")
        ),
        150,
    )
    adopt(run, "proposal", "submit", "--title", "We are back", "--motion", "It works again.")
    record = run.json("registry", "get", "nns_recovery_record")
    assert int(record["decoded"]["state_height"]) == height - 1
    run(*some, "n3.json", "--node", "nns-0")  # again: it is applied, and stays so
    run("canister", "call", "journal", "append", '{"sequence": 0, "text": "after"}')


RUNAWAYS = {
    "forever": "while True:\n        pass",
    "power": "return str(10 ** 10 ** 9)",
    "text": "return 'x' * 10 ** 10",
    "deep": "def g(n):\n        return g(n + 1)\n    return str(g(0))",
}


def test_runaway_code_on_four_real_nodes(tmp_path: Path) -> None:
    from cli.lab import swarm as lab
    from cli.lab.drill import Drill
    from replica.abi import bundle as bundles
    from replica.client.agent import CallRejected
    from replica.protocol import candid
    from replica.protocol.hashing import sha256
    from replica.protocol.ids import canister_id

    methods = "".join(f"{name} : () -> (text); " for name in RUNAWAYS)
    did = f"service : () -> {{ {methods}}}"
    code = "from replica.abi.v1 import update\n" + "".join(
        f"\n\n@update\ndef {name}(ctx):\n    {body}\n" for name, body in RUNAWAYS.items()
    )
    toml = 'name = "runaway"\nabi = "v1"\n'
    files = [("__init__.py", code), ("canister.toml", toml), ("runaway.did", did)]
    module = bundles.pack([(n, t.encode()) for n, t in files])
    forbidden = bundles.pack(
        [(n, (t + ("\nimport socket\n" if n[0] == "_" else "")).encode()) for n, t in files]
    )
    trusted = (sha256(module), sha256(forbidden))
    options = lab.Options(interval_blocks=60, trusted_bundles=trusted)
    drill = Drill(tmp_path / "swarm", options, lambda _: None, None)
    try:
        drill.up()
        target = canister_id((1 << 20) + 7)
        agent = drill.swarm.agent(drill.swarm.app, drill.swarm.identity("initializer"))
        with pytest.raises(CallRejected, match=r"__init__\.py:\d+: import socket"):
            lab.install_module(agent, target, forbidden, [agent.sender])
        lab.install_module(agent, target, module, [agent.sender])
        empty = candid.encode([], [])
        for name in RUNAWAYS:
            with pytest.raises(CallRejected, match="BudgetExhausted") as caught:
                agent.call(target, name, empty)
            assert caught.value.error_code == "IC0502"
        done = drill.certified_height(drill.swarm.app)

        def roots() -> list[str]:
            """Roots of the first checkpoint after the calls, one a node that has it."""
            found = []
            for node in drill.swarm.app.nodes:
                known = (drill.status(node) or {}).get("checkpoints", {})
                later = sorted(int(h) for h in known if int(h) > done)
                found += [f"{later[0]} {known[str(later[0])]}"] if later else []
            return found

        lab.wait_for("checkpoints on four nodes", lambda: len(roots()) == 4, 90)
        assert len(set(roots())) == 1
    finally:
        drill.writer.stop()
        drill.close()
