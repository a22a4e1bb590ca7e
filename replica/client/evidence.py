"""Judging recovery evidence with the keys of a registry, for planners, voters and nodes alike."""

from __future__ import annotations

from replica.client.local_registry import VersionedRecords
from replica.protocol import attestation
from replica.protocol.attestation import Evidence, Judgement
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import RegistryVersion, SubnetId


def judge(
    evidence: Evidence,
    subnet: SubnetId,
    records: VersionedRecords,
    version: RegistryVersion,
    base: CatchUpPackage | int,
    *,
    replacing: bool = False,
) -> Judgement:
    """Check evidence against the members and keys of a registry version.

    `base`: the unsigned catch-up package in force, or its epoch. Raises: NotVerified.
    """
    view = records.view(subnet, version)
    return attestation.judge(
        evidence,
        subnet,
        records.subnet_public_key(subnet, version),
        {n: k.signing for n, k in view.keys.items()},
        {n: k.committee for n, k in view.keys.items()},
        base,
        replacing=replacing,
    )
