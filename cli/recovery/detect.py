"""Is a subnet stalled, and why? Judged from what its nodes say and can prove."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cli.lab.layout import NodeEntry, SubnetEntry
from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.protocol import artifacts, cup
from replica.protocol.crypto import bls
from replica.protocol.errors import ReprisError
from replica.protocol.ids import NodeId, Principal

RUNNING, NO_QUORUM, CRASH_LOOP, DIVERGENCE, HALTED, REGISTRY_STALE, SLOW = (
    "RUNNING",
    "NO_QUORUM",
    "CRASH_LOOP",
    "DIVERGENCE",
    "HALTED",
    "REGISTRY_STALE",
    "SLOW",
)
SIGNS = "yes"
"""What a replica's status says of its signing when nothing holds it back."""
CRASHES_MIN = 2
"""So many crashes in a row are no accident."""


@dataclass(frozen=True)
class NodeReport:
    node: NodeEntry
    status: dict[str, Any] | None
    """None: the node does not answer."""


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
            return NodeReport(node, agent.node_status(node.http_url))
        except ReprisError:
            return NodeReport(node, None)

    return agent.each(ask, subnet.nodes)


def certified_height(reports: list[NodeReport]) -> int:
    return max((r.status["certified_height"] for r in reports if r.status), default=0)


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


def crash_loops(reports: list[NodeReport], agent: Agent) -> list[str]:
    """Return which of the nodes that don't answer can't run their replica, and why."""
    silent = [r for r in reports if not r.status]
    troubles = agent.each(lambda report: trouble(report, agent), silent)
    return [f"{r.node.name}: {text}" for r, text in zip(silent, troubles, strict=True) if text]


def diagnose(
    subnet: SubnetEntry, reports: list[NodeReport], records: VersionedRecords, agent: Agent
) -> Diagnosis:
    """Name the cause why certification does not move."""
    height = certified_height(reports)
    view = records.view(subnet.id, records.version)
    answering = [r for r in reports if r.status]
    if view.is_halted:
        return Diagnosis(HALTED, "the registry has halted the subnet", height)
    for report in answering:
        assert report.status is not None
        pair = report.status["divergence"]
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
            return Diagnosis(DIVERGENCE, text, height, tuple(pair))
    if len(answering) < view.quorum:
        text = f"{len(answering)} of {len(reports)} nodes answer; {view.quorum} are needed"
        crashing = crash_loops(reports, agent)
        if len(answering) + len(crashing) >= view.quorum:
            return Diagnosis(CRASH_LOOP, "; ".join([text, *crashing]), height)
        return Diagnosis(NO_QUORUM, text, height)
    stale = [r for r in answering if r.status and r.status["registry_version"] < records.version]
    if len(answering) - len(stale) < view.quorum:
        return Diagnosis(REGISTRY_STALE, "too many nodes have an old registry", height)
    return Diagnosis(SLOW, "a quorum answers and agrees: the subnet is slow, not stuck", height)


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
