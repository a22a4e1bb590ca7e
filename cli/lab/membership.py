"""The scenario membership-change: nodes join, leave and are replaced; the subnet's key stays.

The last change happens while f members are down: the others alone reshare the key.
"""

from __future__ import annotations

from collections.abc import Sequence

from cli import nns_client as nns
from cli.lab.drill import (
    Drill,
    Outcome,
    Voter,
    describe_settings,
    signed_cup_height,
    signs_above,
)
from cli.lab.layout import NodeEntry
from replica.client.local_registry import subnet_record
from replica.protocol import cup
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import NotVerified, ReprisError
from replica.protocol.ids import NodeId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse

CHANGE_S_MAX = 120.0


def membership_change(drill: Drill) -> Outcome:
    """Add a node, remove one, replace one, and replace one more while f are down."""
    swarm, phases = drill.swarm, drill.phases
    first, second, third = swarm.spares[:3]
    a, b, c, d = swarm.app.nodes[:4]
    with phases.phase("swarm up") as notes:
        drill.up()
        voter = drill.council()
        drill.wait_for("a first signed CUP", lambda: signed_cup_height(drill) > 0, 60)
        key = drill.refresh().subnet_public_key(swarm.app.id)
        notes.append(f"{len(swarm.nodes)} nodes; {describe_settings(drill)}")
        drill.watch_app()
    before = drill.certified_height(swarm.app)
    with phases.phase("add") as notes:
        notes.append(_change(drill, voter, [first], [], (a, b, c, d, first)))
    with phases.phase("remove") as notes:
        notes.append(_change(drill, voter, [], [a], (b, c, d, first)))
        drill.wait_for("the node that left to stop", lambda: drill.status(a) is None, 60)
        notes.append(f"{a.name} has stopped")
    with phases.phase("replace") as notes:
        notes.append(_change(drill, voter, [second], [b], (c, d, first, second)))
    with phases.phase("replace, f dealers dead") as notes:
        drill.supervisor.hold(c.folder)
        began = drill.now_s()
        notes.append(_change(drill, voter, [third], [c], (d, first, second, third)))
        rto = drill.now_s() - began
        notes.append(f"{c.name} was down all the time")
    with phases.phase("verify") as notes:
        if drill.refresh().subnet_public_key(swarm.app.id) != key:
            raise NotVerified("the subnet's public key changed")
        members = (d, first, second, third)
        after = drill.certified_height(drill.swarm.app)
        drill.wait_for("all members to sign", lambda: _all_sign(drill, members, after), 60)
        kept, text = drill.verify_journal()
        notes.append(f"{text}; all four present members are others than at first, but one")
    return drill.outcome(
        "membership-change",
        rto_seconds=rto,
        kept=kept,
        before=before,
        after=after,
    )


def _change(
    drill: Drill,
    voter: Voter,
    coming: Sequence[NodeEntry],
    going: Sequence[NodeEntry],
    expected: Sequence[NodeEntry],
) -> str:
    """Adopt a change of membership and wait until a signed CUP names the new key holders."""
    app = drill.swarm.app
    payload = {
        "subnet_id": app.id,
        "node_ids_add": [n.id for n in coming],
        "node_ids_remove": [n.id for n in going],
    }
    names = " and ".join([f"add {n.name}" for n in coming] + [f"remove {n.name}" for n in going])
    began = drill.now_s()
    drill.adopt(f"Subnet {app.name}: {names}", nns.CHANGE_MEMBERSHIP, payload, voter)
    record = parse(pb.SubnetRecord, drill.refresh().need(subnet_record(app.id)))
    if sorted(bytes(n.id) for n in expected) != sorted(record.membership):
        raise NotVerified("the registry holds other members than were voted for")
    committee = tuple(sorted(NodeId(n.id) for n in expected))
    drill.set_app(expected)
    holders = [n for n in expected if n not in going]
    drill.wait_for(
        "a CUP whose key the new members hold",
        lambda: any(p.summary.high.committee == committee for p in _packages(drill, holders)),
        CHANGE_S_MAX,
    )
    height = max(p.height for p in _packages(drill, holders))
    drill.wait_for(
        "the joining node to sign",
        lambda: all(signs_above(drill, n, height) for n in coming),
        CHANGE_S_MAX,
    )
    return f"{names}: {drill.now_s() - began:.1f} s, key reshared with the CUP at {height}"


def _packages(drill: Drill, nodes: Sequence[NodeEntry]) -> list[CatchUpPackage]:
    found = []
    for node in nodes:
        try:
            raw = drill.probe.get_bytes(node.http_url, "/_/catch_up_package")
            found.append(cup.decode(raw))
        except ReprisError:
            continue  # it is starting, or down
    return found


def _all_sign(drill: Drill, nodes: Sequence[NodeEntry], height: int) -> bool:
    return all(signs_above(drill, n, height) for n in nodes)
