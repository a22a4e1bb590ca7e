"""The scenario nns-stall: half of the NNS computes another state; operators recover it offline."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from cli import nns_client as nns
from cli.lab import divergence
from cli.lab.drill import Drill, Outcome, Voter, describe_settings
from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import detect
from cli.recovery import nns as recovery
from replica.client import release
from replica.protocol import ballot as ballots
from replica.protocol.errors import NotVerified
from replica.protocol.nns_recovery import Bundle


def nns_stall(drill: Drill) -> Outcome:
    """Two of four NNS nodes diverge for good: nobody can vote, so operators sign a bundle."""
    swarm, phases, subnet = drill.swarm, drill.phases, drill.swarm.nns
    with phases.phase("swarm up") as notes:
        drill.up()
        notes.append(f"{len(swarm.nodes)} nodes; {describe_settings(drill)}")
    voter = drill.council()
    drill.watch_app()
    with phases.phase("fault") as notes:
        before = memory(drill)
        version = drill.refresh().version
        height = divergence.inject(drill, (subnet.nodes[2], subnet.nodes[3]))
        drill.wait_for(
            "the fault", lambda: divergence.executed(drill, subnet.nodes[2]) >= height, 90, 0.05
        )
        fault_at = drill.now_s()
        notes.append(f"2 of 4 NNS replicas compute another state at height {height}")
    with phases.phase("detect") as notes:
        found = divergence.wait_for_stall(drill, subnet)
        notes.append(f"{found.cause}: {found.text}")
        if found.cause != detect.DIVERGENCE:
            raise NotVerified(f"the cause is {found.cause}, not DIVERGENCE")
    with phases.phase("restart") as notes:
        _restart(drill, subnet.nodes[2:])
        stuck = drill.certified_height(subnet)
        if stuck != height - 1:
            raise NotVerified(f"restarting moved the NNS to {stuck}")
        notes.append(f"both restarted; the NNS is still certified up to {stuck} only")
    acting = subnet.nodes[:3]
    with phases.phase("halt") as notes:
        for node in acting:
            key = swarm.identity(f"operator-{node.name}")
            drill.patiently(partial(halt, drill, node, key))
        drill.wait_for("the nodes to halt", lambda: halted(drill, acting) == 3, 60)
        notes.append("three operators ordered their nodes to sign nothing more")
    path = drill.folder / "nns.bundle"
    with phases.phase("build") as notes:
        if drill.kill is not None:
            drill.kill.operator("recover", "nns", "build", "--out", str(path))
        fix = drill.folder / "fix.zip"
        fix.write_bytes(release.build(label="a fix for the stalled NNS"))
        change, package = recovery.release_change(fix, ())
        changes = recovery.Changes(change, package)
        bundle = drill.patiently(
            lambda: recovery.build(subnet.nodes[0].folder, changes, lambda _: None, drill.world), 90
        )
        path.write_bytes(bundle.encode())
        r = bundle.recovery
        notes.append(
            f"state of {r.state_height} resumes at {r.height} with release {change.version[:12]}"
        )
    with phases.phase("sign offline") as notes:
        signed = [sign(drill, bundle, node) for node in acting]
        notes.append(f"{len(signed)} ballots over {bundle.recovery.subject.hex()[:16]}")
    with phases.phase("apply") as notes:
        short = bundle.with_ballots(tuple(b.encode() for b in signed[:2]))
        full = bundle.with_ballots(tuple(b.encode() for b in signed))
        told = drill.patiently(lambda: recovery.apply(short, subnet.nodes[0], drill.world))
        notes.append(f"2 of {told['needed']} signed: {told['state']}")
        for node in acting:
            drill.patiently(partial(recovery.apply, full, node, drill.world))
        rows = recovery.status(subnet.nodes, drill.probe)
        notes.append("then " + ", ".join(f"{r['node']} {r['recovery']}" for r in rows))
    with phases.phase("resume") as notes:
        drill.wait_for(
            "a new certified NNS block",
            lambda: drill.certified_height(subnet) > bundle.recovery.height,
            90,
            0.05,
        )
        rto = drill.now_s() - fault_at
        drill.wait_for(
            "every node that acted to run the new release",  # one may be starting again just now
            lambda: all(_release(drill, n) == change.version for n in acting),
            60,
        )
        notes.append(f"the NNS is certified at {drill.certified_height(subnet)}")
    with phases.phase("govern again") as notes:
        kept, text = govern_again(drill, bundle, voter, before, version, 60)
        notes.append(text)
    with phases.phase("last node") as notes:
        last = subnet.nodes[3]
        drill.wait_for("the node that had no part", lambda: _joined(drill, last, bundle), 120)
        moved = (drill.status(last) or {}).get("state_sync", {})
        notes.append(f"{last.name} signs again; {moved.get('bytes_fetched')} bytes fetched")
    with phases.phase("verify") as notes:
        journal_kept, text = drill.verify_journal()
        notes.append(f"{text}; neurons, ledger and registry as before: {kept}")
    return drill.outcome(
        "nns-stall",
        rto_seconds=rto,
        kept=kept and journal_kept,
        before=height - 1,
        after=drill.certified_height(subnet),
    )


def govern_again(
    drill: Drill,
    bundle: Bundle,
    voter: Voter,
    before: dict[str, Any],
    version: int,
    follow_s: float,
) -> tuple[bool, str]:
    """Adopt a change on the recovered NNS; return whether it remembers what was before it.

    `before`: what it remembered; `version`: the registry's then; `follow_s`: how long the
    application subnet may take to see the change.
    """
    after = drill.patiently(lambda: memory(drill))
    recovered = bundle.recovery.registry_version
    drill.wait_for("the registry", lambda: drill.patiently(drill.refresh).version >= recovered, 60)
    kept = after == before and drill.records.version == version + 1 == recovered
    payload = _notary_delay(drill, drill.options.notary_delay_ms + 1)
    number = drill.adopt("A change after the recovery", nns.UPDATE_SUBNET, payload, voter)
    wanted = drill.refresh().version
    drill.wait_for("the application subnet", lambda: _follows(drill, wanted), follow_s)
    return kept, f"proposal {number} executed; application nodes hold registry {wanted}"


def memory(drill: Drill) -> dict[str, Any]:
    """What the NNS must remember: neurons and the ledger's tip."""
    blocks = nns.query(drill.nns, "ledger", "query_encoded_blocks", {"start": 0, "length": 2000})
    neurons = nns.own_neurons(drill.nns)
    return {
        "neurons": sorted((n["id"]["id"], n["cached_neuron_stake_e8s"]) for n in neurons),
        "blocks": blocks["blocks"],
    }


def _restart(drill: Drill, nodes: tuple[NodeEntry, ...]) -> None:
    for node in nodes:
        drill.supervisor.hold(node.folder)
        drill.supervisor.release(node.folder)
    drill.wait_for("the restarted nodes", lambda: all(drill.status(n) for n in nodes), 60)


def _release(drill: Drill, node: NodeEntry) -> str | None:
    """Return which release a node's replica runs; None: it runs none just now."""
    status = drill.status(node)
    return None if status is None else status.get("replica_version")


def halt(drill: Drill, node: NodeEntry, key: Any) -> int:
    _, records, _ = recovery.open_node(node.folder)
    return recovery.halt(node, records, key, drill.probe)


def halted(drill: Drill, nodes: tuple[NodeEntry, ...]) -> int:
    reports = detect.look(SubnetEntry("nns", drill.swarm.nns.id, nodes), drill.probe)
    return sum(1 for r in reports if r.status and r.status["status"] == "halted")


def sign(drill: Drill, bundle: Bundle, node: NodeEntry) -> ballots.Ballot:
    """What an operator does on a machine without a network: a file goes in, a file comes out."""
    signed = recovery.sign(bundle, drill.swarm.identity(f"operator-{node.name}"))
    path = drill.folder / f"{node.name}.ballot.json"
    path.write_text(json.dumps(ballots.to_plain(signed)))
    return recovery.read_ballots([path])[0]


def _notary_delay(drill: Drill, millis: int) -> dict[str, Any]:
    did = nns.interface("registry")
    record: Any = did.resolve(did.methods["update_subnet"].args[0])
    payload: dict[str, Any] = {f.name: None for f in record.fields}
    return payload | {
        "subnet_id": drill.swarm.app.id,
        "initial_notary_delay_millis": millis,
    }


def _follows(drill: Drill, version: int) -> bool:
    found = [drill.status(n) for n in drill.swarm.app.nodes]
    return all(s is not None and s["registry_version"] >= version for s in found)


def _joined(drill: Drill, node: NodeEntry, bundle: Bundle) -> bool:
    status = drill.status(node)
    return (
        status is not None
        and status["epoch"] == bundle.recovery.registry_version
        and status["shares_signed_at"] > bundle.recovery.height
    )
