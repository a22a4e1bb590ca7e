"""Drills: a disaster on a local swarm of real processes, recovered as an operator would.

Each scenario is a function of a `Drill`, which owns the swarm, the client that keeps writing and
the phase clock. A scenario's steps use the same code as the commands of the command line.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import nns_client as nns
from cli.lab import swarm as lab
from cli.lab import workload
from cli.lab.layout import NodeEntry, SubnetEntry, Swarm
from cli.lab.phases import Phases
from cli.lab.supervisor import Supervisor
from cli.recovery import detect
from cli.recovery import plan as recovery
from replica.client import certified_registry
from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotVerified, ReprisError

Say = Callable[[str], None]
STAKE_E8S = 250 * lab.E8S


@dataclass
class Outcome:
    """What a drill prints with --json."""

    scenario: str
    outcome: str
    rto_seconds: float
    phases: list[dict[str, object]]
    state_preserved: bool
    height_before: int
    height_after: int
    nodes: list[dict[str, Any]]
    proposal_ids: list[int]
    seed: int | None = None
    cases: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class Drill:
    """A swarm that a disaster is about to happen to."""

    def __init__(self, folder: Path, options: lab.Options, say: Say, kill: Killer | None) -> None:
        self.folder, self.options, self.say = folder, options, say
        self.phases = Phases(say, on_phase=kill.strike if kill else lambda _: None)
        self.kill = kill
        self.swarm: Swarm = lab.create(folder, options)
        self.supervisor = Supervisor([n.folder for n in self.swarm.nodes])
        self.records = VersionedRecords()
        self.proposals: list[int] = []
        self.writer = workload.Writer(self.swarm, Ed25519Key(secrets.token_bytes(32)), pad=512)
        operator = self.swarm.identity("default")
        self.nns = self.swarm.agent(self.swarm.nns, operator)
        self.app = self.swarm.agent(self.swarm.app)
        self.probe = Agent([], self.swarm.root_key, timeout_s=1.0)
        if kill is not None:
            kill.drill = self

    def up(self) -> None:
        self.supervisor.start()
        lab.initialize(self.swarm, lambda _: None)
        self.writer.start()
        lab.wait_for("the client's first entries", lambda: self.writer.count >= 5, 30)

    def close(self) -> None:
        self.supervisor.stop()

    def refresh(self) -> VersionedRecords:
        """Fetch the newest registry; retried while the NNS restarts."""
        certified_registry.fetch(self.nns, self.records)
        return self.records

    def status(self, node: NodeEntry) -> dict[str, Any] | None:
        try:
            return self.probe.node_status(node.http_url)
        except ReprisError:
            return None

    def certified_height(self, subnet: SubnetEntry) -> int:
        return detect.certified_height(detect.look(subnet, self.probe))

    def adopt(self, title: str, number: int, payload: dict[str, Any], voter: Voter) -> int:
        """Propose with the operator's neuron; the staked neuron's vote makes the majority."""
        neuron = patiently(lambda: nns.default_neuron(self.nns))
        summary = "A drill on a local swarm."
        proposal = self._propose_once(neuron, title, summary, number, payload)
        self.proposals.append(proposal)
        info = patiently(lambda: nns.proposal_info(self.nns, proposal))
        if info["status"] != 1:
            raise NotVerified(f"half of the voting power must not decide: {info['status']}")
        voter.vote(proposal)
        info = patiently(lambda: nns.wait_decided(self.nns, proposal))
        if info["status"] != 4:
            failure = info["failure_reason"] or {"error_message": "rejected"}
            raise NotVerified(f"proposal {proposal}: {failure['error_message']}")
        return proposal

    def _propose_once(
        self, neuron: int, title: str, summary: str, number: int, payload: dict[str, Any]
    ) -> int:
        made = patiently(lambda: nns.propose(self.nns, neuron, title, summary, number, payload))
        return int(made)


@dataclass
class Voter:
    """The neuron that was staked during the drill."""

    agent: Agent
    neuron: int

    def vote(self, proposal: int) -> None:
        def cast() -> None:
            try:
                nns.vote(self.agent, self.neuron, proposal, nns.YES)
            except nns.GovernanceError as error:
                if "voted already" not in str(error):
                    raise

        patiently(cast)


def patiently(action: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Repeat an action while nodes restart; refusals are final."""
    from replica.client.agent import CallRejected
    from replica.protocol.errors import Rejected

    end = time.monotonic() + timeout_s
    while True:
        try:
            return action()
        except (Rejected, CallRejected) as error:
            if isinstance(error, nns.GovernanceError | CallRejected) or time.monotonic() > end:
                raise
        except ReprisError:
            if time.monotonic() > end:
                raise
        time.sleep(0.3)


class Killer:
    """For crash drills: one kill -9 in every phase, the victim rotating over all processes."""

    def __init__(self, offset: int) -> None:
        self.turn = offset
        self.drill: Drill | None = None
        self.kills: list[str] = []

    def strike(self, phase: str) -> None:
        """Kill the next victim half a second into a phase."""
        if self.drill is not None and phase not in ("swarm up", "verify"):
            threading.Timer(0.5, self._kill, [phase]).start()

    def _kill(self, phase: str) -> None:
        drill = self.drill
        assert drill is not None
        nodes = drill.swarm.nodes
        node = nodes[self.turn % len(nodes)]
        orchestrator = (self.turn // len(nodes)) % 2 == 1
        self.turn += 1
        try:
            if orchestrator:
                pid, what = drill.supervisor.pid(node.folder), "orchestrator"
            else:
                status = drill.probe._get(node.orchestrator_url, "/status").json()
                pid, what = status["replica_pid"], "replica"
            if pid:
                os.kill(pid, signal.SIGKILL)
                self.kills.append(f"{phase}: {what} of {node.name}")
        except (ReprisError, ProcessLookupError):
            self.kills.append(f"{phase}: {node.name} was down already")

    def operator(self, *arguments: str) -> None:
        """Start a command as the operator would, and kill -9 it halfway; it is simply run again."""
        drill = self.drill
        assert drill is not None
        command = [sys.executable, "-m", "cli.main", *arguments, "--swarm", str(drill.folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(0.9)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.kills.append(f"the operator's `reprise {' '.join(arguments[:3])}`")


# --- subnet-divergence -----------------------------------------------------------------------


def subnet_divergence(drill: Drill) -> Outcome:
    """More than f replicas compute another state: no certification, no CUP, until a vote."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    with phases.phase("swarm up") as notes:
        drill.up()
        notes.append(f"{len(swarm.nodes)} nodes; {_settings(drill)}")
    with phases.phase("stake") as notes:
        voter = _stake(drill)
        lab.wait_for("a first signed CUP", lambda: _signed_cup(drill) > 0, 60)
        notes.append(f"neuron {voter.neuron} claimed; first signed CUP at {_signed_cup(drill)}")
    with phases.phase("fault") as notes:
        height = _inject(drill, (app.nodes[2], app.nodes[3]))
        lab.wait_for("the fault", lambda: _executed(drill, app.nodes[2]) >= height, 60, 0.03)
        fault_at = time.monotonic()
        before = height - 1
        notes.append(f"2 of {len(app.nodes)} replicas compute another state at height {height}")
    with phases.phase("detect") as notes:
        diagnosis = _detect(drill)
        notes.append(f"{diagnosis.cause}: {diagnosis.text}")
        if diagnosis.cause != detect.DIVERGENCE:
            raise NotVerified(f"the cause is {diagnosis.cause}, not DIVERGENCE")
    wiped = app.nodes[3]
    with phases.phase("halt") as notes:
        payload = {"subnet_id": app.id, "operational_level": 2}
        drill.adopt("Halt the stalled subnet", nns.SET_OPERATIONAL_LEVEL, payload, voter)
        _wipe(drill, wiped)
        lab.wait_for("the nodes to halt", lambda: _halted(drill) >= 3, 60)
        notes.append(f"proposal {drill.proposals[-1]}; {wiped.name} lost its disk")
    with phases.phase("attest and plan") as notes:
        plan_file = drill.folder / "plan.json"
        if drill.kill is not None:
            drill.kill.operator("recover", "subnet", "plan", app.name, "--out", str(plan_file))
        plan = patiently(lambda: _plan(drill), 90)
        plan_file.write_text(json.dumps(plan.to_plain()))
        notes.append(f"state of height {plan.state_height}, {plan.lost_blocks} blocks dropped")
    for finding in plan.findings:
        drill.say(f"      {finding}")
    with phases.phase("propose and vote") as notes:
        if drill.kill is not None:
            drill.kill.operator("recover", "subnet", "propose", str(plan_file))
        drill.adopt(f"Recover subnet {app.name}", nns.RECOVER_SUBNET, plan.payload, voter)
        notes.append(f"proposal {drill.proposals[-1]} executed; CUP at {plan.cup_height}")
    with phases.phase("adopt") as notes:
        lab.wait_for(
            "a new certified block", lambda: drill.certified_height(app) > plan.cup_height, 60, 0.05
        )
        rto = time.monotonic() - fault_at
        notes.append(f"certified height {drill.certified_height(app)}")
    with phases.phase("sync") as notes:
        lab.wait_for("the wiped node", lambda: _signs_above(drill, wiped, plan.cup_height), 90)
        notes.append(_sync_text(drill, wiped))
    with phases.phase("new signed CUP") as notes:
        lab.wait_for("a CUP signed by the subnet", lambda: _signed_cup(drill) > plan.cup_height, 90)
        notes.append(f"at height {_signed_cup(drill)}")
    with phases.phase("verify") as notes:
        count = drill.writer.count
        lab.wait_for("the client to go on", lambda: drill.writer.count > count + 3, 60)
        drill.writer.stop()
        entries = workload.read_all(drill.app, swarm)
        kept = not drill.writer.fault and workload.preserved(drill.writer, entries)
        stored = _stored_cup(drill)
        notes.append(f"{drill.writer.count} certified entries, all there once; {stored}")
    after = drill.certified_height(app)
    return Outcome(
        scenario="subnet-divergence",
        outcome="recovered" if kept else "failed",
        rto_seconds=round(rto, 3),
        phases=phases.to_plain(),
        state_preserved=kept,
        height_before=before,
        height_after=after,
        nodes=_nodes(drill),
        proposal_ids=drill.proposals,
        error=drill.writer.fault,
    )


def _settings(drill: Drill) -> str:
    view = drill.refresh().view(drill.swarm.app.id, drill.records.version)
    return (
        f"notary delay {view.notary_delay_ns // 10**6} ms, back-off "
        f"{view.backoff_ns // 10**6} ms per height, CUP every {view.interval_length + 1} heights"
    )


def _stake(drill: Drill) -> Voter:
    """Move tokens to a new key and stake them there."""
    from replica.abi.v1 import account_identifier

    key = Ed25519Key(secrets.token_bytes(32))
    arg = {
        "memo": 0,
        "amount": {"e8s": STAKE_E8S + 10 * nns.FEE_E8S},
        "fee": {"e8s": nns.FEE_E8S},
        "from_subaccount": None,
        "to": account_identifier(key.principal),
        "created_at_time": {"timestamp_nanos": time.time_ns()},
    }
    result = patiently(lambda: nns.call(drill.nns, "ledger", "transfer", arg))
    if "Ok" not in result and "TxDuplicate" not in result.get("Err", {}):
        raise NotVerified(f"the ledger refused: {result}")
    agent = drill.swarm.agent(drill.swarm.nns, key)
    neuron = patiently(lambda: nns.stake(agent, STAKE_E8S, 1))
    return Voter(agent, neuron)


def _inject(drill: Drill, nodes: tuple[NodeEntry, ...]) -> int:
    status = drill.status(nodes[0])
    while status is None:
        time.sleep(0.1)
        status = drill.status(nodes[0])
    height = status["finalized_height"] + 25
    for node in nodes:
        fault = {"diverge_at_height": height, "epoch": status["epoch"], "salt": node.name}
        path = node.folder / "fault.json"
        path.with_suffix(".new").write_text(json.dumps(fault))
        os.replace(path.with_suffix(".new"), path)
    return int(height)


def _executed(drill: Drill, node: NodeEntry) -> int:
    status = drill.status(node)
    return 0 if status is None else int(status["executed_height"])


def _detect(drill: Drill) -> detect.Diagnosis:
    """Wait until certified height has not moved for the subnet's limit; name the cause."""
    app = drill.swarm.app
    limit = drill.refresh().view(app.id, drill.records.version).stall_limit_ns / 1e9
    height, since = -1, time.monotonic()
    while True:
        reports = detect.look(app, drill.probe)
        now = detect.certified_height(reports)
        if now > height:
            height, since = now, time.monotonic()
        elif time.monotonic() - since > limit:
            found = detect.diagnose(app, reports, drill.records)
            if found.cause in (detect.DIVERGENCE, detect.HALTED):
                return found
            if time.monotonic() - since > limit + 30:
                return found
        time.sleep(0.2)


def _wipe(drill: Drill, node: NodeEntry) -> None:
    """The node loses its disk: state, pool, CUP and registry; its keys lie elsewhere."""
    drill.supervisor.hold(node.folder)
    shutil.rmtree(node.folder / "data")
    (node.folder / "data").mkdir()
    (node.folder / "fault.json").unlink(missing_ok=True)
    drill.supervisor.release(node.folder)


def _halted(drill: Drill) -> int:
    reports = detect.look(drill.swarm.app, drill.probe)
    return sum(1 for r in reports if r.status and r.status["status"] == "halted")


def _plan(drill: Drill) -> recovery.Plan:
    return recovery.make(drill.swarm.app, drill.nns, drill.probe, drill.refresh(), lambda _: None)


def _signs_above(drill: Drill, node: NodeEntry, height: int) -> bool:
    status = drill.status(node)
    return status is not None and status["shares_signed_at"] > height


def _sync_text(drill: Drill, node: NodeEntry) -> str:
    status = drill.status(node)
    moved = status["state_sync"] if status else {}
    return (
        f"{node.name} signs again; {moved.get('bytes_fetched', 0)} bytes fetched, "
        f"{moved.get('bytes_reused', 0)} reused"
    )


def _signed_cup(drill: Drill) -> int:
    reports = detect.look(drill.swarm.app, drill.probe)
    return max(
        (r.status["cup_height"] for r in reports if r.status and r.status["cup_signed"]), default=0
    )


def _stored_cup(drill: Drill) -> str:
    """Find the recovery CUP by certified read and by SQL on the NNS node's database."""
    from replica.client.local_registry import cup_contents

    key = cup_contents(drill.swarm.app.id)
    value = drill.refresh().need(key)
    found = sql_values(drill.swarm.nns.nodes[0], key)
    if value not in found:
        raise NotVerified("the database of the NNS node does not hold the recovery CUP")
    return "the CUP is in the NNS database"


def sql_values(node: NodeEntry, key: str) -> list[bytes]:
    """Return a registry key's values by plain SQL on a node's database, newest first."""
    import sqlite3

    with sqlite3.connect(f"file:{node.folder}/data/state.db?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT value FROM c0_registry_values WHERE key = ? ORDER BY version DESC", (key,)
        ).fetchall()
    return [r[0] for r in rows]


def _nodes(drill: Drill) -> list[dict[str, Any]]:
    out = []
    for node in drill.swarm.app.nodes:
        status = drill.status(node) or {}
        moved = status.get("state_sync", {})
        out.append(
            {
                "id": str(node.id),
                "name": node.name,
                "bytes_fetched": moved.get("bytes_fetched"),
                "bytes_reused": moved.get("bytes_reused"),
                "certified_height": status.get("certified_height"),
                "resident_bytes_max": status.get("resident_bytes_max"),
            }
        )
    return out


# --- node-catch-up ---------------------------------------------------------------------------


def node_catch_up(drill: Drill) -> Outcome:
    """One node falls behind and heals by itself: restarted, two CUPs behind, wiped."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    with phases.phase("swarm up") as notes:
        drill.up()
        _fill(drill, 400)
        filled = drill.certified_height(app)
        node = app.nodes[3]
        lab.wait_for(
            "a CUP that holds the journal",
            lambda: (drill.status(node) or {}).get("cup_height", 0) > filled,
            90,
        )
        notes.append(_settings(drill))
    before = drill.certified_height(app)
    cases = [
        _case(drill, "restarted", node, lambda: None),
        _case(drill, "two CUPs behind", node, lambda: _two_cups(drill)),
        _case(drill, "wiped", node, lambda: _clear(node)),
    ]
    with phases.phase("verify") as notes:
        drill.writer.stop()
        entries = workload.read_all(drill.app, swarm)
        kept = not drill.writer.fault and workload.preserved(drill.writer, entries)
        notes.append(f"{drill.writer.count} certified entries, all there once")
    good = (
        kept
        and cases[0]["bytes_fetched"] == 0
        and cases[1]["bytes_reused"] > cases[1]["bytes_fetched"] > 0
        and cases[2]["bytes_fetched"] > 0
        and all(c["signs_again"] and c["subnet_never_stopped"] for c in cases)
    )
    return Outcome(
        scenario="node-catch-up",
        outcome="recovered" if good else "failed",
        rto_seconds=max(c["rto_seconds"] for c in cases),
        phases=phases.to_plain(),
        state_preserved=kept,
        height_before=before,
        height_after=drill.certified_height(app),
        nodes=_nodes(drill),
        proposal_ids=[],
        cases=cases,
        error=drill.writer.fault,
    )


def _case(
    drill: Drill, name: str, node: NodeEntry, while_down: Callable[[], None]
) -> dict[str, Any]:
    """Take a node down, do something to it, bring it back, and watch it catch up."""
    others = SubnetEntry("others", drill.swarm.app.id, drill.swarm.app.nodes[:3])
    with drill.phases.phase(name) as notes:
        at_stop = drill.certified_height(others)
        drill.supervisor.hold(node.folder)
        while_down()
        at_start = drill.certified_height(others)
        start = time.monotonic()
        drill.supervisor.release(node.folder)
        lab.wait_for(
            f"{node.name} to sign again", lambda: _signs_above(drill, node, at_start), 90, 0.05
        )
        rto = time.monotonic() - start
        moved = (drill.status(node) or {})["state_sync"]
        at_end = drill.certified_height(others)
        notes.append(
            f"{moved['bytes_fetched']} bytes fetched, {moved['bytes_reused']} reused; "
            f"the others went from {at_stop} to {at_end}"
        )
    return {
        "case": name,
        "rto_seconds": round(rto, 3),
        "bytes_fetched": moved["bytes_fetched"],
        "bytes_reused": moved["bytes_reused"],
        "signs_again": True,
        "subnet_never_stopped": at_stop < at_end and (at_start > at_stop or name == "restarted"),
    }


def _fill(drill: Drill, count: int) -> None:
    """Let several clients write until the journal has some size."""
    clients = [
        workload.Writer(drill.swarm, Ed25519Key(secrets.token_bytes(32)), pad=512) for _ in range(8)
    ]
    for client in clients:
        client.start()
    lab.wait_for("a journal of some size", lambda: sum(c.count for c in clients) >= count, 90)
    for client in clients:
        client.stop()


def _two_cups(drill: Drill) -> None:
    first = _signed_cup(drill)
    interval = drill.options.interval_blocks
    lab.wait_for("two more CUPs", lambda: _signed_cup(drill) >= first + 2 * interval, 90)


def _clear(node: NodeEntry) -> None:
    shutil.rmtree(node.folder / "data")
    (node.folder / "data").mkdir()


# --- running ---------------------------------------------------------------------------------

SCENARIOS: dict[str, tuple[Callable[[Drill], Outcome], str, float]] = {
    "subnet-divergence": (
        subnet_divergence,
        "half of a subnet computes another state; governance recovers it",
        60.0,
    ),
    "node-catch-up": (
        node_catch_up,
        "one node restarts, falls two CUPs behind, loses its disk; it heals by itself",
        60.0,
    ),
}


def run(
    name: str,
    options: lab.Options,
    say: Say,
    keep: Path | None = None,
    kill_offset: int | None = None,
) -> Outcome:
    """Run a scenario on a fresh swarm in a folder of its own; always takes the swarm down."""
    scenario, _, _ = SCENARIOS[name]
    folder = keep if keep is not None else Path(tempfile.mkdtemp(prefix="reprise-drill-"))
    killer = Killer(kill_offset) if kill_offset is not None else None
    drill = Drill(folder, options, say, killer)
    try:
        return scenario(drill)
    except (ReprisError, NotVerified, OSError) as error:
        return Outcome(
            name,
            "failed",
            0.0,
            drill.phases.to_plain(),
            False,
            0,
            0,
            _nodes(drill),
            drill.proposals,
            error=f"{type(error).__name__}: {error}",
        )
    finally:
        if killer is not None:
            for kill in killer.kills:
                say(f"  kill -9  {kill}")
        drill.writer.__dict__.get("_stop", threading.Event()).set()
        drill.close()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
