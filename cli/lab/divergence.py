"""The scenario subnet-divergence: what `make drill` runs.

More than f replicas compute another state: no certification, no CUP. Restarting does not help; a
recovery proposal does.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Sequence

from cli import nns_client as nns
from cli.lab import swarm as lab
from cli.lab import workload
from cli.lab.drill import (
    Drill,
    Outcome,
    Voter,
    describe_settings,
    signed_cup_height,
    signs_above,
)
from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import detect
from cli.recovery import plan as recovery
from replica.abi.v1 import account_identifier
from replica.client.local_registry import cup_contents
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotVerified
from replica.protocol.ids import Principal

STAKE_E8S = 250 * lab.E8S
PLAN = "plan.json"


def subnet_divergence(drill: Drill) -> Outcome:
    """More than f replicas compute another state: no certification, no CUP, until a vote."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    with phases.phase("swarm up") as notes:
        drill.up()
        notes.append(f"{len(swarm.nodes)} nodes; {describe_settings(drill)}")
    with phases.phase("stake") as notes:
        voter = _stake(drill)
        drill.wait_for("a first signed CUP", lambda: signed_cup_height(drill) > 0, 60)
        notes.append(
            f"neuron {voter.neuron} claimed; first signed CUP at {signed_cup_height(drill)}"
        )
    with phases.phase("fault") as notes:
        faulty = (app.nodes[2], app.nodes[3])
        height = inject(drill, faulty)
        drill.wait_for("the fault", lambda: has_struck(drill, faulty, height), 60, 0.03)
        fault_at = drill.now_s()
        before = height - 1
        notes.append(f"2 of {len(app.nodes)} replicas compute another state at height {height}")
    with phases.phase("detect") as notes:
        diagnosis = wait_for_stall(drill, app)
        notes.append(f"{diagnosis.cause}: {diagnosis.text}")
        if diagnosis.cause != detect.DIVERGENCE:
            raise NotVerified(f"the cause is {diagnosis.cause}, not DIVERGENCE")
    wiped = app.nodes[3]
    with phases.phase("halt") as notes:
        payload = {"subnet_id": app.id, "operational_level": 2}
        drill.adopt("Halt the stalled subnet", nns.SET_OPERATIONAL_LEVEL, payload, voter)
        _wipe(drill, wiped)
        drill.wait_for("the nodes to halt", lambda: halted(drill) >= 3, 60)
        notes.append(f"proposal {drill.proposals[-1]}; {wiped.name} lost its disk")
    plan = plan_recovery(drill)
    with phases.phase("propose and vote") as notes:
        if drill.kill is not None:
            drill.kill.operator("recover", "subnet", "propose", str(drill.folder / PLAN))
        drill.adopt(f"Recover subnet {app.name}", nns.RECOVER_SUBNET, plan.payload, voter)
        notes.append(f"proposal {drill.proposals[-1]} executed; CUP at {plan.cup_height}")
    with phases.phase("adopt") as notes:
        drill.wait_for(
            "a new certified block", lambda: drill.certified_height(app) > plan.cup_height, 60, 0.05
        )
        rto = drill.now_s() - fault_at
        notes.append(f"certified height {drill.certified_height(app)}")
    with phases.phase("sync") as notes:
        drill.wait_for("the wiped node", lambda: signs_above(drill, wiped, plan.cup_height), 90)
        notes.append(_sync_text(drill, wiped))
    with phases.phase("new signed CUP") as notes:
        drill.wait_for(
            "a CUP signed by the subnet", lambda: signed_cup_height(drill) > plan.cup_height, 90
        )
        notes.append(f"at height {signed_cup_height(drill)}")
    with phases.phase("verify") as notes:
        count = drill.writer.count
        drill.wait_for("the client to go on", lambda: drill.writer.count > count + 3, 60)
        drill.writer.stop()
        entries = workload.read_all(drill.app, swarm, [drill.writer])
        kept = not drill.writer.fault and workload.preserved(drill.writer, entries)
        stored = _stored_cup(drill)
        notes.append(f"{drill.writer.count} certified entries, all there once; {stored}")
    after = drill.certified_height(app)
    return drill.outcome(
        "subnet-divergence",
        rto_seconds=rto,
        kept=kept,
        before=before,
        after=after,
    )


def _stake(drill: Drill) -> Voter:
    """Move tokens to a new key and stake them there."""
    key = Ed25519Key(drill.world.entropy(32))
    arg = {
        "memo": 0,
        "amount": {"e8s": STAKE_E8S + 10 * nns.FEE_E8S},
        "fee": {"e8s": nns.FEE_E8S},
        "from_subaccount": None,
        "to": account_identifier(key.principal),
        "created_at_time": {"timestamp_nanos": drill.world.now_ns()},
    }
    result = drill.patiently(lambda: nns.call(drill.nns, "ledger", "transfer", arg))
    if "Ok" not in result and "TxDuplicate" not in result.get("Err", {}):
        raise NotVerified(f"the ledger refused: {result}")
    agent = drill.swarm.agent(drill.swarm.nns, key)
    neuron = drill.patiently(lambda: nns.stake(agent, STAKE_E8S, 1))
    return Voter(agent, neuron)


def inject(drill: Drill, nodes: tuple[NodeEntry, ...]) -> int:
    status = drill.status(nodes[0])
    while status is None:
        drill.world.pause(0.1)
        status = drill.status(nodes[0])
    height = status["finalized_height"] + 25
    for node in nodes:
        fault = {"diverge_at_height": height, "epoch": status["epoch"], "salt": node.name}
        path = node.folder / "fault.json"
        path.with_suffix(".new").write_text(json.dumps(fault))
        os.replace(path.with_suffix(".new"), path)
    return int(height)


def executed(drill: Drill, node: NodeEntry) -> int:
    status = drill.status(node)
    return 0 if status is None else int(status["executed_height"])


def has_struck(drill: Drill, faulty: Sequence[NodeEntry], height: int) -> bool:
    """Whether one has computed another state: of two that are, one may lag behind for long."""
    return any(executed(drill, node) >= height for node in faulty)


def wait_for_stall(
    drill: Drill, subnet: SubnetEntry, expected: Sequence[str] = (detect.DIVERGENCE,)
) -> detect.Diagnosis:
    """Wait until certified height has not moved for the subnet's limit; name the cause.

    Another cause than those expected is believed only when it stays for a while.
    """
    limit = drill.refresh().view(subnet.id, drill.records.version).stall_limit_ns / 1e9
    height, since = -1, drill.now_s()
    before: list[detect.NodeReport] = []
    while True:
        reports = detect.look(subnet, drill.probe)
        now = detect.certified_height(reports)
        if now > height:
            height, since, before = now, drill.now_s(), reports
        elif drill.now_s() - since > limit:
            found = detect.diagnose(subnet, before, reports, drill.records, drill.probe)
            if found.cause in (*expected, detect.HALTED):
                return found
            if drill.now_s() - since > limit + 30:
                return found
        drill.world.pause(0.2)


def _wipe(drill: Drill, node: NodeEntry) -> None:
    """The node loses its disk: state, pool, CUP and registry; its keys lie elsewhere."""
    drill.supervisor.hold(node.folder)
    shutil.rmtree(node.folder / "data")
    (node.folder / "data").mkdir()
    (node.folder / "fault.json").unlink(missing_ok=True)
    drill.supervisor.release(node.folder)


def halted(drill: Drill) -> int:
    reports = detect.look(drill.swarm.app, drill.probe)
    return sum(1 for r in reports if r.status and r.status["status"] == "halted")


def plan_recovery(
    drill: Drill, members: Sequence[Principal] | None = None, options: Sequence[str] = ()
) -> recovery.Plan:
    """Plan as the operator does, in a phase of its own, and say what was found.

    `options`: those of the command that make it choose these members.
    """
    app, path = drill.swarm.app, drill.folder / PLAN
    with drill.phases.phase("attest and plan") as notes:
        if drill.kill is not None:
            drill.kill.operator("recover", "subnet", "plan", app.name, "--out", str(path), *options)
        plan: recovery.Plan = drill.patiently(
            lambda: recovery.make(app, drill.nns, drill.probe, drill.refresh(), members=members), 90
        )
        path.write_text(json.dumps(plan.to_plain()))
        notes.append(f"state of height {plan.state_height}, {plan.lost_blocks} blocks dropped")
    for finding in plan.findings:
        drill.say(f"      {finding}")
    return plan


def _sync_text(drill: Drill, node: NodeEntry) -> str:
    status = drill.status(node)
    moved = status["state_sync"] if status else {}
    return (
        f"{node.name} signs again; {moved.get('bytes_fetched', 0)} bytes fetched, "
        f"{moved.get('bytes_reused', 0)} reused"
    )


def _stored_cup(drill: Drill) -> str:
    """Find the recovery CUP by certified read and by SQL on the NNS node's database."""
    key = cup_contents(drill.swarm.app.id)
    value = drill.refresh().need(key)
    found = sql_values(drill.swarm.nns.nodes[0], key)
    if value not in found:
        raise NotVerified("the database of the NNS node does not hold the recovery CUP")
    return "the CUP is in the NNS database"


def sql_values(node: NodeEntry, key: str) -> list[bytes]:
    """Return a registry key's values by plain SQL on a node's database, newest first."""
    with sqlite3.connect(f"file:{node.folder}/data/state.db?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT value FROM c0_registry_values WHERE key = ? ORDER BY version DESC", (key,)
        ).fetchall()
    return [r[0] for r in rows]
