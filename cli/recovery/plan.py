"""Planning the recovery of a subnet: gather, judge, attest, dry-run.

Nothing here is believed on anyone's word: heights count only with a quorum's signature, states only
when n - f members attest them, and the registry's dry run has the last word before a proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from cli import nns_client
from cli.lab.layout import NodeEntry, SubnetEntry, registered
from replica.client.agent import Agent, World
from replica.client.evidence import judge as judge_evidence
from replica.client.evidence import members_of
from replica.client.local_registry import VersionedRecords, cup_contents, node_record
from replica.protocol import artifacts, attestation, canonical, cbor, cup
from replica.protocol.artifacts import Block, Certification, Finalization
from replica.protocol.attestation import Attestation, Evidence
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.errors import Malformed, NotVerified, Rejected, ReprisError
from replica.protocol.ids import Height, Principal, RegistryVersion, SubnetId, TimeNs

ATTEST_S_MAX = 120.0


@dataclass
class Gathered:
    """The best of what all nodes hold, verified."""

    package: cup.CatchUpPackage
    finalization: Finalization | None = None
    block: Block | None = None
    certification: Certification | None = None
    silent: list[str] = field(default_factory=list)
    lying: list[str] = field(default_factory=list)

    @property
    def height(self) -> Height:
        """R: the higher of the last CUP's height and the highest certified height."""
        certified = self.certification.height if self.certification else 0
        return Height(max(self.package.height, certified))


@dataclass(frozen=True)
class Plan:
    """A recovery ready to be proposed."""

    subnet: str
    payload: dict[str, Any]
    changes: list[dict[str, Any]]
    findings: list[str]
    lost_blocks: int
    state_height: int
    cup_height: int

    def to_plain(self) -> dict[str, Any]:
        raw = nns_client.function_payload(nns_client.RECOVER_SUBNET, self.payload)
        return {
            "subnet": self.subnet,
            "state_height": self.state_height,
            "state_hash": self.payload["state_hash"].hex(),
            "cup_height": self.cup_height,
            "lost_blocks": self.lost_blocks,
            "diff_hash": self.payload["diff_hash"].hex(),
            "findings": self.findings,
            "changed_keys": [c["key"] for c in self.changes],
            "payload": raw.hex(),
        }


def with_holders(
    subnet: SubnetEntry, records: VersionedRecords, package: cup.CatchUpPackage
) -> SubnetEntry:
    """Return the subnet with all nodes that a package counts on: some may be members no more."""
    known = {n.id for n in subnet.nodes}
    former = [
        registered(records, node, subnet.name)
        for node in sorted(package.holders)
        if node not in known and records.get(node_record(node)) is not None
    ]
    return replace(subnet, nodes=(*subnet.nodes, *former))


def gather(
    subnet: SubnetEntry,
    agent: Agent,
    records: VersionedRecords,
    base: cup.CatchUpPackage | None = None,
) -> Gathered:
    """Collect and verify every node's newest quorum-signed artifacts.

    `base`: a proven package of the epoch in force; default: the registry's.
    """
    registry_cup = base if base is not None else records.registry_cup(subnet.id)
    if registry_cup is None:
        raise Rejected(f"the registry has no catch-up package of {subnet.id}")
    found = Gathered(registry_cup)
    key = records.subnet_public_key(subnet.id)
    members = members_of(records, subnet.id, records.version)
    for node in subnet.nodes:
        try:
            plain = cbor.loads(agent.get_bytes(node.http_url, "/_/evidence"))
        except ReprisError:
            found.silent.append(node.name)
            continue
        try:
            _merge(found, plain, key, members, registry_cup)
        except (ReprisError, KeyError) as error:
            found.lying.append(f"{node.name}: {error}")
    return found


def _merge(
    found: Gathered,
    plain: dict[str, bytes],
    key: bytes,
    members: attestation.Members,
    registry_cup: cup.CatchUpPackage,
) -> None:
    package = cup.decode(plain["cup"])
    if package.epoch == registry_cup.epoch and package.height > found.package.height:
        package.verify(key)
        found.package = package
    if "certification" in plain:
        certification = artifacts.decode(plain["certification"])
        if not isinstance(certification, Certification):
            raise Malformed("not a certification")
        best = found.certification.height if found.certification else -1
        if certification.epoch == registry_cup.epoch and certification.height > best:
            attestation.check_certification(certification, registry_cup.epoch, key)
            found.certification = certification
    if "finalization" in plain:
        final = artifacts.decode(plain["finalization"])
        block = canonical.decode(Block, plain["block"])
        if not isinstance(final, Finalization):
            raise Malformed("not a finalization")
        best = found.finalization.height if found.finalization else -1
        if final.epoch == registry_cup.epoch and final.height > best:
            keys = attestation.members_at(found.package, block.height, members)
            attestation.check_finalization(final, block, found.package, keys)
            found.finalization, found.block = final, block


def attest(
    subnet: SubnetEntry,
    height: Height,
    records: VersionedRecords,
    world: World,
    on_answer: Callable[[str], None] = lambda _: None,
) -> tuple[list[Attestation], list[str]]:
    """Ask every orchestrator to replay to a height and attest; return (attestations, problems)."""

    def ask(node: NodeEntry) -> Attestation | str:
        try:
            with world.client(ATTEST_S_MAX) as client:
                response = client.get(
                    f"{node.orchestrator_url}/attestation", params={"height": height}
                )
            if response.status_code != 200:
                return f"{node.name}: {response.text[:200]}"
            made = canonical.decode(Attestation, response.content)
        except (httpx2.HTTPError, ReprisError) as error:
            return f"{node.name}: {error or type(error).__name__}"
        if made.node != node.id:
            return f"{node.name}: attests as another node"
        keys = records.node_keys(made.node)
        if not verify_ed25519(keys.signing, made.message, made.signature):
            return f"{node.name}: its attestation is not signed by it"
        on_answer(f"{node.name} attests {made.state_hash.hex()[:12]} at height {made.height}")
        return made

    answers = world.each(ask, subnet.nodes)
    return (
        [a for a in answers if isinstance(a, Attestation)],
        [a for a in answers if isinstance(a, str)],
    )


def make(
    subnet: SubnetEntry,
    nns: Agent,
    agent: Agent,
    records: VersionedRecords,
    say: Callable[[str], None] = lambda _: None,
    members: Sequence[Principal] | None = None,
) -> Plan:
    """Make a plan. Raises: NotVerified, Rejected, with what is missing.

    `members`: who makes up the subnet from now on, with new keys, because more than f of the
    present members are gone for good; None: it goes on with the members and keys that it has.
    """
    view = records.view(subnet.id, records.version)
    if subnet.id == records.nns():
        raise Rejected("the NNS can't vote on its own recovery; see `reprise recover nns --help`")
    if not view.is_halted:
        raise Rejected(
            f"subnet {subnet.name} is not halted; first `reprise subnet halt {subnet.name}`"
        )
    base = records.registry_cup(subnet.id)
    if base is not None:
        subnet = with_holders(subnet, records, base)
    found = gather(subnet, agent, records)
    subnet = with_holders(subnet, records, found.package)
    say(
        f"R = {found.height}: CUP {found.package.height}, certified "
        f"{found.certification.height if found.certification else 'nothing above'}"
    )
    attestations, problems = attest(subnet, found.height, records, agent.world, say)
    evidence = Evidence(
        found.package.encode(),
        found.block,
        found.finalization,
        found.certification,
        tuple(sorted(attestations, key=lambda a: a.node)),
    )
    registry_cup = records.registry_cup(subnet.id)
    assert registry_cup is not None
    judged = judge_evidence(
        evidence, subnet.id, records, records.version, registry_cup, replacing=bool(members)
    )
    interval = view.interval_length + 1
    cup_height = attestation.recovery_height(judged.proven_height, interval)
    time_ns = attestation.recovery_time(
        judged.proven_time_ns, judged.proven_height, view.unit_delay_ns
    )
    payload: dict[str, Any] = {
        "subnet_id": subnet.id,
        "height": cup_height,
        "time_ns": TimeNs(max(time_ns, agent.world.now_ns())),
        "state_hash": judged.state_hash,
        "replacement_nodes": sorted(members) if members else None,
        "registry_store_uri": None,
        "evidence": canonical.encode(evidence),
        "unhalt": True,
        "diff_hash": None,
    }
    dry = nns_client.query(nns, "registry", "simulate_recover_subnet", payload)
    payload["diff_hash"] = dry["diff_hash"]
    lost = max(0, judged.proven_height - judged.state_height)
    return Plan(
        subnet=subnet.name,
        payload=payload,
        changes=list(dry["changes"]),
        findings=_findings(subnet, found, judged, attestations, problems, lost, cup_height)
        + _replacement_findings(view.members, members),
        lost_blocks=lost,
        state_height=judged.state_height,
        cup_height=cup_height,
    )


def _findings(
    subnet: SubnetEntry,
    found: Gathered,
    judged: attestation.Judgement,
    attestations: list[Attestation],
    problems: list[str],
    lost: int,
    cup_height: int,
) -> list[str]:
    names = {n.id: n.name for n in subnet.nodes}
    out = [
        f"highest catch-up package: {found.package.height}"
        + (" (signed by the subnet)" if found.package.is_signed else " (from the registry)"),
        f"highest certified state: {judged.state_height}",
        f"highest finalized block: {judged.proven_height}",
        f"{len(judged.attesting)} members attest state {judged.state_hash.hex()[:16]}: "
        + ", ".join(names[n] for n in judged.attesting),
    ]
    others = [a for a in attestations if a.state_hash != judged.state_hash]
    out += [f"{names[a.node]} attests another state: {a.state_hash.hex()[:16]}" for a in others]
    out += [f"silent: {name}" for name in found.silent]
    out += [f"refused: {text}" for text in found.lying]
    out += [f"no attestation from {text}" for text in problems]
    out.append("certified entries lost: none")
    out.append(
        f"{lost} finalized blocks above the certified state are dropped; no client saw their "
        "results certified, and their requests can be sent again"
    )
    out.append(f"the subnet resumes at height {cup_height} with the state of {judged.state_height}")
    return out


def _replacement_findings(
    present: Sequence[Principal], members: Sequence[Principal] | None
) -> list[str]:
    if not members:
        return []
    return [
        *(f"leaves: {n}" for n in present if n not in members),
        *(f"joins: {n}" for n in sorted(members) if n not in present),
        "what only the nodes that leave knew to be certified can't be known any more",
        "the NNS deals the new members a new key; the subnet's delegation is issued anew",
    ]


def verify_payload(payload: dict[str, Any], records: VersionedRecords) -> attestation.Judgement:
    """Re-derive what a recovery proposal's evidence proves; for voters. Raises: NotVerified."""
    subnet = payload["subnet_id"]
    if payload["evidence"] is None:
        raise NotVerified("the proposal carries no evidence")
    evidence = attestation.decode(payload["evidence"])
    version = _last_version_of(cup.decode(evidence.cup).epoch, subnet, records)
    registry_cup = records.registry_cup(subnet, version)
    if registry_cup is None:
        raise NotVerified("the registry has no catch-up package of that subnet")
    replacing = bool(payload["replacement_nodes"])
    judged = judge_evidence(evidence, subnet, records, version, registry_cup, replacing=replacing)
    if judged.state_hash != payload["state_hash"]:
        raise NotVerified("the evidence proves another state hash than is proposed")
    return judged


def _last_version_of(epoch: int, subnet: SubnetId, records: VersionedRecords) -> RegistryVersion:
    """Return the newest registry version at which an epoch was in force: evidence of an executed
    proposal is judged as of then."""
    key = cup_contents(subnet)
    for delta in records.deltas:
        if delta.version > epoch and any(m.key == key for m in delta.mutations):
            return RegistryVersion(delta.version - 1)
    return records.version
