"""Checking recovery evidence and catch-up packages, for the registry."""

from replica.protocol.attestation import (
    Evidence,
    Judgement,
    MemberKeys,
    decode,
    judge,
    recovery_height,
)
from replica.protocol.crypto.dkg import HIGH, LOW
from replica.protocol.crypto.scheme import faults_max
from replica.protocol.cup import from_registry, transcript_from_record, transcript_to_record
from replica.protocol.ids import NodeId, RegistryVersion, SubnetId

__all__ = [
    "HIGH",
    "LOW",
    "Evidence",
    "Judgement",
    "MemberKeys",
    "NodeId",
    "RegistryVersion",
    "SubnetId",
    "decode",
    "faults_max",
    "from_registry",
    "judge",
    "recovery_height",
    "transcript_from_record",
    "transcript_to_record",
]
