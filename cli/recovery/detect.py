"""Is a subnet stalled, and why? Judged from what its nodes say and can prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import flooders, reports
from cli.recovery.reports import NodeReport, certified_height
from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.client.subnet_view import SubnetView
from replica.protocol import artifacts, cup
from replica.protocol.crypto import bls
from replica.protocol.errors import ReprisError
from replica.protocol.ids import NodeId, Principal

RUNNING, NO_QUORUM, CRASH_LOOP, DIVERGENCE, HALTED, REGISTRY_STALE = (
    "RUNNING",
    "NO_QUORUM",
    "CRASH_LOOP",
    "DIVERGENCE",
    "HALTED",
    "REGISTRY_STALE",
)
SIGNS = "yes"
"""What a replica's status says of its signing when nothing holds it back."""
STANDING, UNCERTIFIED, SLOW = "STANDING", "UNCERTIFIED", "SLOW"
"""None of the above: nothing moved; blocks are made, nothing is certified; something moved."""
CRASHES_MIN = 2
"""So many crashes in a row are no accident."""


@dataclass(frozen=True)
class Diagnosis:
    cause: str
    text: str
    certified_height: int
    shares: tuple[dict[str, Any], ...] = ()
    """For DIVERGENCE: two signed shares that contradict each other, checked."""


def look(subnet: SubnetEntry, agent: Agent) -> list[NodeReport]:
    """Ask all nodes of a subnet at once."""

    def ask(node: NodeEntry) -> NodeReport:
        try:
            return NodeReport(node, agent.node_status(node.http_url), agent.world.monotonic_s())
        except ReprisError:
            return NodeReport(node, None, agent.world.monotonic_s())

    return agent.each(ask, subnet.nodes)


def trouble(report: NodeReport, agent: Agent) -> str:
    """Return what a node says is wrong: that it signs nothing, its disk, a replica that is down."""
    signing = str((report.status or {}).get("signing", SIGNS))
    troubles = [] if signing == SIGNS else [signing]
    try:
        found = agent.orchestrator_status(report.node.orchestrator_url)
    except ReprisError:
        return "; ".join(troubles)
    troubles.append(str(found.get("disk_error", "")))
    if not report.status and found["replica_crashes"] >= CRASHES_MIN:
        troubles.append(f"the replica keeps crashing: {found['replica_last_words']}")
    return "; ".join(t for t in troubles if t)


def crash_loops(found: Sequence[NodeReport], agent: Agent) -> list[str]:
    """Return which of the nodes that don't answer can't run their replica, and why."""
    silent = [r for r in found if not r.status]
    troubles = agent.each(lambda report: trouble(report, agent), silent)
    return [f"{r.node.name}: {text}" for r, text in zip(silent, troubles, strict=True) if text]


def diagnose(
    subnet: SubnetEntry,
    before: Sequence[NodeReport],
    after: Sequence[NodeReport],
    records: VersionedRecords,
    agent: Agent,
) -> Diagnosis:
    """Name the cause why certification did not move between two looks."""
    height = certified_height(after)
    view = records.view(subnet.id, records.version)
    if view.is_halted:
        return Diagnosis(HALTED, "the registry has halted the subnet", height)
    return (
        _divergence(subnet, after, records, agent)
        or _no_quorum(view, after, agent)
        or _stale_registry(view, after, records)
        or judge_movement(view, before, after, crash_loops(after, agent))
    )


def _divergence(
    subnet: SubnetEntry, found: Sequence[NodeReport], records: VersionedRecords, agent: Agent
) -> Diagnosis | None:
    for report in found:
        pair = report.status["divergence"] if report.status else None
        if not pair:
            continue
        package = catch_up_package(report.node, subnet, records, agent)
        if all(share_is_valid(s, package) for s in pair):
            a, b = pair
            text = (
                f"at height {a['height']} {Principal.from_text(a['signer']).short} signed state "
                f"{a['root'][:12]}, {Principal.from_text(b['signer']).short} signed "
                f"{b['root'][:12]}; both signatures hold"
            )
            return Diagnosis(DIVERGENCE, text, certified_height(found), tuple(pair))
    return None


def _no_quorum(view: SubnetView, found: Sequence[NodeReport], agent: Agent) -> Diagnosis | None:
    answering = [r for r in found if r.status]
    if len(answering) >= view.quorum:
        return None
    height = certified_height(found)
    silent = ", ".join(r.node.name for r in found if not r.status)
    text = f"{len(answering)} of {len(found)} nodes answer, not {silent}; {view.quorum} are needed"
    crashing = crash_loops(found, agent)
    if len(answering) + len(crashing) >= view.quorum:
        return Diagnosis(CRASH_LOOP, "; ".join([text, *crashing]), height)
    return Diagnosis(NO_QUORUM, text, height)


def _stale_registry(
    view: SubnetView, found: Sequence[NodeReport], records: VersionedRecords
) -> Diagnosis | None:
    statuses = [r.status for r in found if r.status]
    fresh = [s for s in statuses if s["registry_version"] >= records.version]
    if len(fresh) >= view.quorum:
        return None
    text = "too many nodes have an old registry"
    return Diagnosis(REGISTRY_STALE, text, certified_height(found))


def judge_movement(
    view: SubnetView,
    before: Sequence[NodeReport],
    after: Sequence[NodeReport],
    troubles: Sequence[str] = (),
) -> Diagnosis:
    """Tell a subnet that stands from a slow one, and say what is known of its nodes.

    `troubles`: what orchestrators of silent nodes say.
    """
    moved = reports.movement(before, after)
    known = "; ".join([*idle_nodes(view, after), *troubles, *flooders.describe(before, after)])
    more = f"; {known}" if known else ""
    height = certified_height(after)
    if not moved.is_any:
        many = f"{sum(1 for r in after if r.status)} of {len(after)} nodes answer"
        text = f"no height of any node moved; {many}{more or '; why is not known'}"
        return Diagnosis(STANDING, text, height)
    if moved.is_making_blocks and not moved.is_certifying:
        first, last = moved.notarized
        text = f"blocks go on, from height {first} to {last}, but nothing is certified{more}"
        return Diagnosis(UNCERTIFIED, text, height)
    return Diagnosis(SLOW, f"heights still move: the subnet is slow{more}", height)


def idle_nodes(view: SubnetView, found: Sequence[NodeReport]) -> list[str]:
    """Return which nodes do not do their part and why, and how many a quorum lacks."""
    out = [f"{r.node.name} does not answer" for r in found if not r.status]
    for report in found:
        reason = reports.idle_reason(report.status) if report.status else ""
        if reason:
            out.append(f"{report.node.name}: {reason}")
    signing = sum(reports.is_signing(r) for r in found)
    if signing < view.quorum:
        out.append(f"{signing} of {len(found)} nodes sign; {view.quorum} are needed")
    return out


def catch_up_package(
    node: NodeEntry, subnet: SubnetEntry, records: VersionedRecords, agent: Agent
) -> cup.CatchUpPackage | None:
    """Return a node's catch-up package if the subnet's key or the registry vouches for it."""
    built = records.registry_cup(subnet.id)
    try:
        package = cup.decode(agent.get_bytes(node.http_url, "/_/catch_up_package"))
        if package.subnet != subnet.id:
            return built
        if package.is_signed:
            package.verify(records.subnet_public_key(subnet.id))
            return package
    except ReprisError:
        return built
    return built


def share_is_valid(share: dict[str, Any], package: cup.CatchUpPackage | None) -> bool:
    """Check a certification share against the signer's public share in a proven package."""
    if package is None:
        return False
    transcript = package.high_at(share["height"])
    index = transcript.index_of(NodeId(Principal.from_text(share["signer"])))
    if index is None:
        return False
    message = artifacts.certification_message(bytes.fromhex(share["root"]))
    key = transcript.share_keys[index]
    return bls.VERIFIER.verify_threshold(key, message, bytes.fromhex(share["signature"]))


__all__ = ["Diagnosis", "NodeReport", "certified_height", "diagnose", "look"]
