"""The scenario nns-loss: more than f nodes of the NNS burn down, and the root key with them.

Nobody can ever sign for the NNS again as before. Those who are left and two spare nodes make a new
root key; operators of n - f of the old members sign it, and so everybody else comes to trust it.
"""

from __future__ import annotations

from functools import partial

from cli.lab.drill import Drill, Outcome, describe_settings, signs_above
from cli.lab.loss import burn_down
from cli.lab.nns_stall import govern_again, halt, halted, memory, sign
from cli.recovery import nns as recovery
from replica.client import succession
from replica.protocol.errors import NotVerified, ReprisError
from replica.protocol.ids import NodeId


def nns_loss(drill: Drill) -> Outcome:
    """Lose f + 1 nodes of the NNS for good; go on with spare nodes and another root key."""
    swarm, phases, subnet = drill.swarm, drill.phases, drill.swarm.nns
    survivors, lost, joining = subnet.nodes[:2], subnet.nodes[2:], swarm.spares[:2]
    with phases.phase("swarm up") as notes:
        drill.up()
        notes.append(f"{len(swarm.nodes)} nodes; {describe_settings(drill)}")
    voter = drill.council()
    remembered, version = memory(drill), drill.refresh().version
    fault_at, before = burn_down(drill, subnet, lost)
    with phases.phase("halt") as notes:
        for node in survivors:
            key = swarm.identity(f"operator-{node.name}")
            drill.patiently(partial(halt, drill, node, key))
        drill.wait_for("the nodes to halt", lambda: halted(drill, survivors) == 2, 60)
        notes.append("those who are left sign nothing more")
    path = drill.folder / "nns.bundle"
    pairs = [(NodeId(old.id), NodeId(new.id)) for old, new in zip(lost, joining)]
    with phases.phase("build") as notes:
        if drill.kill is not None:
            options = [f"{old.name}={new.name}" for old, new in zip(lost, joining)]
            replaced = [part for pair in options for part in ("--replace", pair)]
            drill.kill.operator("recover", "nns", "build", "--out", str(path), *replaced)
        changes = recovery.Changes(replaced=tuple(pairs))
        folder = survivors[0].folder
        bundle = drill.patiently(
            lambda: recovery.build(folder, changes, notes.append, drill.world), 90
        )
        path.write_bytes(bundle.encode())
    with phases.phase("verify and sign offline") as notes:
        # An operator outlives his node: three of the four sign.
        ballots = [sign(drill, bundle, node) for node in subnet.nodes[:3]]
        full = bundle.with_ballots(tuple(b.encode() for b in ballots))
        path.write_bytes(full.encode())
        notes.append(f"{len(ballots)} ballots over {bundle.recovery.subject.hex()[:16]}")
    with phases.phase("apply") as notes:
        for node in (*survivors, *joining):
            drill.patiently(partial(recovery.apply, full, node, drill.world))
        notes.append("handed to those who are left and to the spare nodes")
    with phases.phase("resume") as notes:
        members = (*survivors, *joining)
        # What a client does who finds that nothing verifies any more: `reprise root-key accept`.
        urls = [n.orchestrator_url for n in members]
        old_key = swarm.root_key
        _, key = drill.patiently(lambda: succession.find(drill.nns, urls, old_key), 90)
        drill.set_nns(members, key)
        drill.wait_for(
            "a new certified NNS block",
            lambda: drill.certified_height(drill.swarm.nns) > bundle.recovery.height,
            90,
            0.05,
        )
        rto = drill.now_s() - fault_at
        notes.append(f"the NNS is certified at {drill.certified_height(drill.swarm.nns)}")
        notes.append(_check_keys(drill, old_key))
    with phases.phase("sync") as notes:
        for node in joining:
            drill.wait_for(
                f"{node.name} to sign",
                lambda n=node: signs_above(drill, n, bundle.recovery.height),  # type: ignore[misc]
                120,
            )
        notes.append("the spare nodes sign")
    with phases.phase("govern again") as notes:
        voter.agent = drill.swarm.agent(drill.swarm.nns, drill.swarm.identity("council"))
        kept, text = govern_again(drill, bundle, voter, remembered, version, 90)
        notes.append(text)
    with phases.phase("verify") as notes:
        journal_kept, text = drill.verify_journal()
        notes.append(f"{text}, under the new root key; neurons and ledger as before: {kept}")
    return drill.outcome(
        "nns-loss",
        rto_seconds=rto,
        kept=kept and journal_kept,
        before=before,
        after=drill.certified_height(drill.swarm.nns),
    )


def _check_keys(drill: Drill, old_key: bytes) -> str:
    """Who knows only the old key must not believe what the new one signs."""
    agent = drill.swarm.agent(drill.swarm.nns)
    drill.patiently(lambda: agent.read_state([(b"time",)], subnet=drill.swarm.nns.id))
    agent.root_key = old_key
    try:
        agent.read_state([(b"time",)], subnet=drill.swarm.nns.id)
    except ReprisError as error:
        return f"under the old root key: {error}"
    raise NotVerified("a certificate of the new root key verifies under the old one")
