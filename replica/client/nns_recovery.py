"""Judging a recovery bundle of the NNS: every orchestrator and every operator runs this.

Believes nobody: registry deltas are certified by the root key, the state is attested by n - f
members, and n - f nodes' operators, as of that registry version, must have signed.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.client import local_registry as keys
from replica.client import new_committee
from replica.client.evidence import judge as judge_evidence
from replica.client.local_registry import VersionedRecords
from replica.client.subnet_view import SubnetView
from replica.protocol import attestation, cup, nns_recovery, registry_transport
from replica.protocol.attestation import Judgement
from replica.protocol.ballot import YES
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Conflict, NotVerified, Rejected
from replica.protocol.ids import NodeId, Principal, RegistryVersion, SubnetId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.nns_recovery import RECOVERY_RECORD, Bundle, Recovery
from replica.protocol.registry_transport import Delta


@dataclass(frozen=True)
class Verdict:
    """What a bundle proves, and how far its quorum is."""

    package: CatchUpPackage
    """The catch-up package that it stands for."""
    judgement: Judgement
    records: VersionedRecords
    """The registry up to and with the recovery's version."""
    before: tuple[NodeId, ...]
    """The members as they were; n - f of their operators must sign."""
    needed: int
    """n - f."""
    signed: tuple[NodeId, ...]
    """Nodes whose operators have signed."""
    faults: tuple[str, ...]
    """Why some ballots count for nothing."""

    @property
    def has_quorum(self) -> bool:
        return len(self.signed) >= self.needed


def operators(records: VersionedRecords, view: SubnetView) -> dict[NodeId, Principal]:
    """Return the operator of every member, as of the view's registry version."""
    out = {}
    for member in view.members:
        record = parse(pb.NodeRecord, records.need(keys.node_record(member), view.version))
        out[member] = Principal(record.node_operator_id)
    return out


def certified_records(bundle: Bundle, root_key: bytes) -> VersionedRecords:
    """Return the registry that the bundle's certified answers lead to. Raises: NotVerified."""
    records = VersionedRecords()
    for raw in bundle.deltas:
        found = registry_transport.verify_response(raw, records.version, root_key)
        for delta in found.deltas:
            records.apply(delta)
    wanted = bundle.recovery.registry_version
    if records.version + 1 != wanted:
        raise NotVerified(
            f"a wrong registry version: the recovery writes version {wanted}, but the certified "
            f"ones end at {records.version}"
        )
    return records


def base_of(
    records: VersionedRecords, subnet: SubnetId, last: Bundle | None
) -> CatchUpPackage | int:
    """Return the unsigned catch-up package in force, or just its epoch when it is not here.

    `last`: the recovery that was applied before, if any.
    """
    epoch = records.epoch(subnet)
    if last is not None and last.recovery.registry_version == epoch:
        return _package(last.recovery, records)
    registry = records.registry_cup(subnet)
    return registry if registry is not None and int(registry.epoch) == epoch else epoch


def _package(recovery: Recovery, records: VersionedRecords) -> CatchUpPackage:
    view = records.view(recovery.subnet, recovery.registry_version)
    newest = cup.decode(attestation.decode(recovery.evidence).cup)
    return nns_recovery.package_of(recovery, newest, view.replica_version, view.interval_length)


def judge(
    bundle: Bundle,
    root_key: bytes,
    held: VersionedRecords,
    local: CatchUpPackage | None,
    last: Bundle | None,
    now_s: int,
) -> Verdict:
    """Check a bundle against what a node holds.

    `root_key`: DER. `held`: the node's registry store; `local`: its catch-up package.
    Raises: NotVerified, Conflict, Rejected, Malformed, with the reason.
    """
    recovery = bundle.recovery
    records = certified_records(bundle, root_key)
    if records.nns() != recovery.subnet:
        raise Rejected(f"{recovery.subnet} is not the NNS subnet")
    before = records.view(recovery.subnet, records.version)
    judged = _judge_state(recovery, records, before, last)
    if recovery.keys is not None:
        members = recovery.keys.members
        new_committee.check_members(
            records, recovery.subnet, before.members, members, judged.attesting
        )
        plan = recovery.key_plan(recovery.keys)
        new_committee.check_dealings(records, plan, recovery.keys.dealings)
    known_operators = operators(records, before)
    records.apply(Delta(recovery.registry_version, recovery.registry_batch))
    _check_record(recovery, records)
    for mine, theirs in zip(held.deltas, records.deltas):
        if mine.batch != theirs.batch:
            raise Conflict(
                f"this node holds another content of registry version {mine.version} than the "
                "bundle"
            )
    if held.version > recovery.registry_version:
        raise Rejected(
            f"a wrong registry version: this node holds {held.version}, the recovery writes "
            f"{recovery.registry_version}"
        )
    package = _package(recovery, records)
    is_applied = local is not None and local.epoch == package.epoch
    if local is not None and not is_applied and package.height <= local.height:
        raise Rejected(
            f"a lower height: the recovery is at {package.height}, this node has a catch-up "
            f"package at {local.height}"
        )
    signed, faults = _count(bundle, known_operators, now_s)
    return Verdict(package, judged, records, before.members, before.quorum, signed, tuple(faults))


def _judge_state(
    recovery: Recovery, records: VersionedRecords, view: SubnetView, last: Bundle | None
) -> Judgement:
    judged = judge_evidence(
        attestation.decode(recovery.evidence),
        recovery.subnet,
        records,
        view.version,
        base_of(records, recovery.subnet, last),
        replacing=recovery.keys is not None,
    )
    if (recovery.state_height, recovery.state_hash) != (judged.state_height, judged.state_hash):
        raise NotVerified("the recovery starts from another state than its evidence proves")
    interval = view.interval_length + 1
    lowest = attestation.recovery_height(judged.proven_height, interval)
    if recovery.height < lowest or recovery.height % interval:
        raise NotVerified(
            f"a lower height: {judged.proven_height} is proven, so the recovery must be at "
            f"{lowest} or a later multiple of {interval}, not at {recovery.height}"
        )
    if recovery.time_ns <= judged.proven_time_ns:
        raise NotVerified("the recovery's time is not later than the newest proven block's")
    return judged


def _check_record(recovery: Recovery, records: VersionedRecords) -> None:
    """The version that the recovery writes must say what the recovery does, and no more."""
    version = recovery.registry_version
    delta = records.deltas[-1]
    subnet_key = keys.subnet_record(recovery.subnet)
    allowed = {RECOVERY_RECORD, subnet_key}
    release = recovery.release
    if release is not None:
        allowed |= {"blessed_replica_versions", keys.replica_version(release.version)}
    public_key = keys.threshold_key(recovery.subnet)
    if recovery.keys is not None:
        allowed.add(public_key)
    touched = {m.key for m in delta.mutations}
    if not {RECOVERY_RECORD, subnet_key} <= touched <= allowed:
        raise NotVerified(f"the recovery would change {sorted(touched - allowed) or 'too little'}")
    note = parse(pb.NnsRecoveryRecord, records.need(RECOVERY_RECORD, version))
    module = recovery.module
    expected = (
        recovery.height,
        recovery.time_ns,
        recovery.state_height,
        recovery.state_hash,
        release.version if release is not None else "",
        bytes(module.canister) if module is not None else b"",
    )
    found = (
        note.height,
        note.time,
        note.state_height,
        note.state_hash,
        note.replica_version_id,
        note.canister_id,
    )
    if expected != found:
        raise NotVerified("the registry's record of the recovery says something else")
    before = parse(pb.SubnetRecord, records.need(subnet_key, RegistryVersion(version - 1)))
    after = parse(pb.SubnetRecord, records.need(subnet_key, version))
    before.is_halted = after.is_halted = before.halt_at_cup_height = False
    after.halt_at_cup_height = False
    if release is not None:
        before.replica_version_id = release.version
        elected = parse(
            pb.ReplicaVersionRecord, records.need(keys.replica_version(release.version), version)
        )
        if elected.release_package_sha256_hex != release.sha256_hex:
            raise NotVerified("the registry elects the release with another hash")
    if recovery.keys is not None:
        if records.subnet_public_key(recovery.subnet, version) != new_root_key(recovery):
            raise NotVerified("the registry gets another root key than the dealings make")
        del before.membership[:]
        before.membership.extend(bytes(m) for m in recovery.keys.members)
    if before != after:
        raise NotVerified("the recovery would change more of the subnet's record than it says")


def new_root_key(recovery: Recovery) -> bytes | None:
    """Return the root key (96 bytes) that a recovery brings; None: the present one stays."""
    if recovery.keys is None:
        return None
    return recovery.transcripts(recovery.keys)[1].public_key


def _count(
    bundle: Bundle, operators_of: dict[NodeId, Principal], now_s: int
) -> tuple[tuple[NodeId, ...], list[str]]:
    """Return the nodes whose operators signed yes, and why other ballots count for nothing."""
    good, faults = nns_recovery.ballots_of(bundle)
    yes = set()
    for ballot in good:
        if ballot.voter not in operators_of.values():
            faults.append(
                f"{ballot.voter} operates no node of the NNS subnet at registry version "
                f"{bundle.recovery.registry_version - 1}"
            )
        elif ballot.deadline_s < now_s:
            faults.append(f"the ballot of {ballot.voter} is too old")
        elif ballot.choice != YES:
            faults.append(f"{ballot.voter} has signed no")
        else:
            yes.add(ballot.voter)
    return tuple(sorted(n for n, o in operators_of.items() if o in yes)), faults
