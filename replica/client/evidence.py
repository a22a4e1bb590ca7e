"""Judging recovery evidence with the keys of a registry, for planners, voters and nodes alike."""

from __future__ import annotations

from replica.client.local_registry import VersionedRecords
from replica.protocol import attestation
from replica.protocol.attestation import Evidence, Judgement, MemberKeys
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import NodeId, RegistryVersion, SubnetId


def members_of(
    records: VersionedRecords, subnet: SubnetId, latest: RegistryVersion
) -> attestation.Members:
    """Return how the members of a subnet are looked up, as of a version."""

    def members(version: RegistryVersion | None) -> dict[NodeId, MemberKeys]:
        view = records.view(subnet, latest if version is None else version)
        return {n: MemberKeys(k.signing, k.committee) for n, k in view.keys.items()}

    return members


def judge(
    evidence: Evidence,
    subnet: SubnetId,
    records: VersionedRecords,
    version: RegistryVersion,
    base: CatchUpPackage | int,
    *,
    replacing: bool = False,
) -> Judgement:
    """Check evidence against the registry as of a version.

    `base`: the unsigned catch-up package in force, or its epoch. Raises: NotVerified.
    """
    return attestation.judge(
        evidence,
        subnet,
        records.subnet_public_key(subnet, version),
        members_of(records, subnet, version),
        base,
        replacing=replacing,
    )
