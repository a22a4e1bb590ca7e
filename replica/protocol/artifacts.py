"""What the replicas of a subnet sign and send each other.

Every signed message covers (subnet, epoch), so nothing signed before a recovery counts after it.
Our own canonical encoding throughout; a certification signs the IC's bytes.

Source: reference/consensus.md §1.2-1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import canonical, cbor
from replica.protocol.certificate import state_root_message
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.errors import Malformed
from replica.protocol.hashing import domain, domain_hash
from replica.protocol.ids import Epoch, Height, NodeId, Rank, RegistryVersion, SubnetId, TimeNs

ARTIFACT_BYTES_MAX = 6 << 20


@dataclass(frozen=True, slots=True)
class ValidationContext:
    """What a block refers to; every field grows along a chain, the time strictly."""

    registry_version: RegistryVersion
    certified_height: Height
    time_ns: TimeNs


@dataclass(frozen=True, slots=True)
class Summary:
    """Payload of the first block of an interval: the keys and the length of this interval."""

    registry_version: RegistryVersion
    """Version whose membership and replica release are active in this interval."""
    height: Height
    interval_length: int
    """The next summary is at height + interval_length + 1."""
    next_interval_length: int
    low: Transcript
    high: Transcript

    @property
    def next_start(self) -> Height:
        return Height(self.height + self.interval_length + 1)


@dataclass(frozen=True, slots=True)
class Data:
    """Payload of any other block: signed requests of users, as they came."""

    ingress: tuple[bytes, ...] = ()


Payload = Summary | Data


@dataclass(frozen=True, slots=True)
class PayloadBox:
    """A payload as it is hashed and sent."""

    payload: Payload


@dataclass(frozen=True, slots=True)
class Block:
    version: str
    subnet: SubnetId
    epoch: Epoch
    height: Height
    rank: Rank
    parent: bytes
    """Hash of the parent block; empty for the block of a registry CUP."""
    payload_hash: bytes
    context: ValidationContext


def block_hash(block: Block) -> bytes:
    return domain_hash("block_domain", canonical.encode(block))


def payload_hash(payload: Payload) -> bytes:
    return domain_hash("inmemory_payload_domain", canonical.encode(PayloadBox(payload)))


@dataclass(frozen=True, slots=True)
class BlockProposal:
    block: Block
    payload: Payload
    maker: NodeId
    signature: bytes
    """Ed25519 over the block's metadata."""

    @property
    def height(self) -> Height:
        return self.block.height

    @property
    def epoch(self) -> Epoch:
        return self.block.epoch


@dataclass(frozen=True, slots=True)
class EquivocationProof:
    """Two signatures of one maker on two blocks at one height."""

    epoch: Epoch
    height: Height
    maker: NodeId
    hash_1: bytes
    signature_1: bytes
    hash_2: bytes
    signature_2: bytes


@dataclass(frozen=True, slots=True)
class NotarizationShare:
    epoch: Epoch
    height: Height
    block: bytes
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Notarization:
    epoch: Epoch
    height: Height
    block: bytes
    signers: tuple[NodeId, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class FinalizationShare:
    epoch: Epoch
    height: Height
    block: bytes
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Finalization:
    epoch: Epoch
    height: Height
    block: bytes
    signers: tuple[NodeId, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class BeaconShare:
    epoch: Epoch
    height: Height
    parent: bytes
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Beacon:
    epoch: Epoch
    height: Height
    parent: bytes
    """Hash of the previous beacon; empty in a registry CUP."""
    signature: bytes


@dataclass(frozen=True, slots=True)
class TapeShare:
    epoch: Epoch
    height: Height
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Tape:
    epoch: Epoch
    height: Height
    signature: bytes


@dataclass(frozen=True, slots=True)
class CupShare:
    epoch: Epoch
    height: Height
    content_hash: bytes
    """SHA-256 of the content that the signature covers; every signer builds it for itself."""
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Cup:
    """A catch-up package on its way between replicas."""

    epoch: Epoch
    height: Height
    package: bytes
    """The protobuf envelope (see `cup`)."""


@dataclass(frozen=True, slots=True)
class CertificationShare:
    epoch: Epoch
    height: Height
    root: bytes
    witness: bytes
    """Hash tree that shows /metadata/height under the root."""
    signer: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Certification:
    epoch: Epoch
    height: Height
    root: bytes
    witness: bytes
    signature: bytes


Artifact = (
    BlockProposal
    | EquivocationProof
    | NotarizationShare
    | Notarization
    | FinalizationShare
    | Finalization
    | BeaconShare
    | Beacon
    | TapeShare
    | Tape
    | CupShare
    | Cup
    | CertificationShare
    | Certification
)

SHARES = (
    NotarizationShare,
    FinalizationShare,
    BeaconShare,
    TapeShare,
    CupShare,
    CertificationShare,
)


@dataclass(frozen=True, slots=True)
class _Box:
    artifact: Artifact


def encode(artifact: Artifact) -> bytes:
    return canonical.encode(_Box(artifact))


def decode(data: bytes) -> Artifact:
    """Raises: Malformed."""
    artifact = canonical.decode(_Box, data, bytes_max=ARTIFACT_BYTES_MAX).artifact
    if artifact.height < 0 or artifact.epoch < 0:
        raise Malformed("an artifact with a negative height or epoch")
    return artifact


# --- what is signed --------------------------------------------------------------------------


def _message(separator: str, *parts: object) -> bytes:
    return domain(separator) + cbor.dumps([bytes(p) if isinstance(p, bytes) else p for p in parts])


def block_message(subnet: SubnetId, epoch: Epoch, height: Height, hash_: bytes) -> bytes:
    return _message("block_metadata_domain", subnet, epoch, height, hash_)


def notarization_message(subnet: SubnetId, epoch: Epoch, height: Height, hash_: bytes) -> bytes:
    return _message("notarization_content_domain", subnet, epoch, height, hash_)


def finalization_message(subnet: SubnetId, epoch: Epoch, height: Height, hash_: bytes) -> bytes:
    return _message("finalization_content_domain", subnet, epoch, height, hash_)


def beacon_message(subnet: SubnetId, epoch: Epoch, height: Height, parent: bytes) -> bytes:
    return _message("random_beacon_content_domain", subnet, epoch, height, parent)


def tape_message(subnet: SubnetId, epoch: Epoch, height: Height) -> bytes:
    return _message("random_tape_content_domain", subnet, epoch, height)


def beacon_hash(beacon: Beacon) -> bytes:
    return domain_hash("random_beacon_domain", canonical.encode(beacon))


def certification_message(root: bytes) -> bytes:
    """The epoch is in the root: the state digest chains over it."""
    return state_root_message(root)
