"""The scenario subnet-loss: more than f nodes burn down; spare nodes and new keys replace them.

The keys went with the nodes, so nobody can ever sign for the subnet again. The NNS deals new ones,
and issues the subnet's delegation anew; what was certified is kept by those who are left.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from cli import nns_client as nns
from cli.lab.divergence import PLAN, halted, plan_recovery, wait_for_stall
from cli.lab.drill import (
    Drill,
    Outcome,
    describe_settings,
    signed_cup_height,
    signs_above,
)
from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import detect
from replica.client.local_registry import threshold_key
from replica.protocol import certificate
from replica.protocol.errors import NotVerified


def subnet_loss(drill: Drill) -> Outcome:
    """Lose f + 1 nodes for good; replace them by spare nodes through one proposal."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    survivors, lost, joining = app.nodes[:2], app.nodes[2:], drill.swarm.spares[:2]
    with phases.phase("swarm up") as notes:
        drill.up()
        voter = drill.council()
        drill.wait_for("a first signed CUP", lambda: signed_cup_height(drill) > 0, 60)
        key = drill.refresh().subnet_public_key(app.id)
        notes.append(f"{len(swarm.nodes)} nodes; {describe_settings(drill)}")
    fault_at, before = burn_down(drill, app, lost)
    with phases.phase("halt") as notes:
        payload = {"subnet_id": app.id, "operational_level": 2}
        drill.adopt("Halt the stalled subnet", nns.SET_OPERATIONAL_LEVEL, payload, voter)
        drill.wait_for("the nodes to halt", lambda: halted(drill) >= len(survivors), 60)
        notes.append(f"proposal {drill.proposals[-1]}")
    members = [n.id for n in (*survivors, *joining)]
    pairs = [f"{old.name}={new.name}" for old, new in zip(lost, joining)]
    options = [part for pair in pairs for part in ("--replace", pair)]
    plan = plan_recovery(drill, members, options)
    with phases.phase("propose, vote, deal keys") as notes:
        if drill.kill is not None:
            drill.kill.operator("recover", "subnet", "propose", str(drill.folder / PLAN))
        drill.adopt(f"Replace nodes of {app.name}", nns.RECOVER_SUBNET, plan.payload, voter)
        if drill.refresh().subnet_public_key(app.id) == key:
            raise NotVerified("the subnet's key is the one that was lost")
        notes.append(f"proposal {drill.proposals[-1]} executed; CUP at {plan.cup_height}, new key")
    drill.set_app((*survivors, *joining))
    with phases.phase("adopt") as notes:
        app = drill.swarm.app
        drill.wait_for(
            "a new certified block", lambda: drill.certified_height(app) > plan.cup_height, 90, 0.05
        )
        rto = drill.now_s() - fault_at
        notes.append(f"certified height {drill.certified_height(app)}")
    with phases.phase("sync") as notes:
        for node in joining:
            drill.wait_for(
                f"{node.name} to sign",
                lambda n=node: signs_above(drill, n, plan.cup_height),  # type: ignore[misc]
                90,
            )
        drill.wait_for(
            "a CUP signed by the subnet", lambda: signed_cup_height(drill) > plan.cup_height, 90
        )
        notes.append(f"all members sign; signed CUP at {signed_cup_height(drill)}")
    with phases.phase("verify") as notes:
        notes.append(_check_delegation(drill, key))
        kept, text = drill.verify_journal()
        notes.append(text)
    return drill.outcome(
        "subnet-loss",
        rto_seconds=rto,
        kept=kept,
        before=before,
        after=drill.certified_height(app),
    )


def burn_down(drill: Drill, subnet: SubnetEntry, lost: Sequence[NodeEntry]) -> tuple[float, int]:
    """Lose nodes for good, and see why their subnet stands still.

    Returns when that was, and the height that was certified before.
    """
    with drill.phases.phase("fault") as notes:
        for node in lost:
            burn(drill, node)
        fault_at = drill.now_s()
        before = drill.certified_height(subnet)
        notes.append(f"{' and '.join(n.name for n in lost)} are gone, disks and keys")
    with drill.phases.phase("detect") as notes:
        found = wait_for_stall(drill, subnet, (detect.NO_QUORUM,))
        notes.append(f"{found.cause}: {found.text}")
        if found.cause != detect.NO_QUORUM:
            raise NotVerified(f"the cause is {found.cause}, not NO_QUORUM")
    return fault_at, before


def burn(drill: Drill, node: NodeEntry) -> None:
    """Nothing is left of a node: processes, disk, keys."""
    drill.supervisor.kill(node.folder)
    shutil.rmtree(node.folder)


def _check_delegation(drill: Drill, lost_key: bytes) -> str:
    """A client's certificate must now be signed by the new key, which the NNS certifies."""
    found = drill.patiently(lambda: drill.app.read_state([(b"time",)], subnet=drill.swarm.app.id))
    if found.delegation is None:
        raise NotVerified("the subnet's certificates carry no delegation")
    shown = certificate.verify_delegation(found.delegation, drill.swarm.root_key, None)
    present = drill.refresh().subnet_public_key(drill.swarm.app.id)
    if shown != present or shown == lost_key:
        raise NotVerified("the delegation is not for the subnet's new key")
    history = nns.query(
        drill.nns, "registry", "get_history", {"key": threshold_key(drill.swarm.app.id)}
    )
    return f"the delegation is for the new key, version {history[-1]['version']} of the registry"
