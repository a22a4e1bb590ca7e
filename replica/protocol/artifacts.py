"""What the replicas of a subnet sign and send each other.

Every signed message covers (subnet, epoch), so nothing signed before a recovery counts after it.
What is signed about a block also covers the run it belongs to (`Run`): while a subnet halts for its
next release, the old one makes empty blocks at heights at which the new one makes its own.
Our own canonical encoding throughout; a certification signs the IC's bytes.

Source: reference/consensus.md §1.2-1.3.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar, dataclass_transform

from replica.protocol import canonical, cbor
from replica.protocol.certificate import state_root_message
from replica.protocol.crypto.dkg import Complaint, Dealing, KeyResult, OpenRequest
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.errors import Malformed
from replica.protocol.hashing import domain, domain_hash
from replica.protocol.ids import Epoch, Height, NodeId, Rank, RegistryVersion, SubnetId, TimeNs

ARTIFACT_BYTES_MAX = 6 << 20

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _artifact(kind: type[T]) -> type[T]:
    """A frozen record that is its encoding, made once: pools look it up all the time."""
    made = dataclass(frozen=True, eq=False)(kind)
    made.__hash__ = _hash_of_bytes  # type: ignore[method-assign, assignment]
    made.__eq__ = _equal_bytes  # type: ignore[method-assign, assignment]
    return made


def _hash_of_bytes(self: Artifact) -> int:
    try:
        return hash(self.__dict__["_bytes"])
    except KeyError:
        return hash(encode(self))


def _equal_bytes(self: Artifact, other: object) -> bool:
    if self is other:
        return True
    return type(self) is type(other) and encode(self) == encode(other)


@dataclass(frozen=True, slots=True)
class ValidationContext:
    """What a block refers to; every field grows along a chain, the time strictly."""

    registry_version: RegistryVersion
    certified_height: Height
    time_ns: TimeNs


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of an epoch in which one release makes the blocks.

    It begins at the package at which that release takes over and ends at the one where another
    does. A release that comes back later begins another run.
    """

    release: str
    """Identifier of the replica version."""
    start: Height
    """Of the package at which it begins: the first block is one above."""


@dataclass(frozen=True)
class Summary:
    """Payload of the first block of an interval: members and keys of this interval and the next.

    So once one summary is final, everybody knows who signs for two intervals. What is dealt in this
    interval makes the keys of the one after the next.
    """

    registry_version: RegistryVersion
    """Version whose membership and replica release are active in this interval."""
    height: Height
    interval_length: int
    """The next summary is at height + interval_length + 1."""
    next_interval_length: int
    low: Transcript
    high: Transcript
    next_registry_version: RegistryVersion
    """Version that is active in the next interval: that of this block's own context."""
    receivers: tuple[NodeId, ...]
    """Members at that version: they are dealt keys in this interval."""
    run_start: Height
    """Height at which the run (see `Run`) of this interval's release began; this one's own when
    the release takes over here."""
    next_low: Transcript | None = None
    """Keys of the next interval; None: generation failed, and the present key stays."""
    next_high: Transcript | None = None
    requests: tuple[OpenRequest, ...] = ()
    """Keys of other subnets that are dealt in this interval (the NNS only)."""
    results: tuple[KeyResult, ...] = ()
    """What came of the requests of the interval before; execution hands them to who asked."""

    @cached_property
    def next_start(self) -> Height:
        return Height(self.height + self.interval_length + 1)

    @cached_property
    def known_until(self) -> Height:
        """The last height whose members and keys follow from this summary."""
        return Height(self.next_start + self.next_interval_length)


@_artifact
class DkgDealing:
    """A dealing on its way between replicas and into a block."""

    epoch: Epoch
    height: Height
    """Of the summary that opened this key generation."""
    tag: int
    dealer: NodeId
    dealing: Dealing
    signature: bytes
    """Ed25519 by the dealer."""


@_artifact
class DkgComplaint:
    """A receiver's proof that it was cheated; it proves itself and needs no signature."""

    epoch: Epoch
    height: Height
    tag: int
    dealer: NodeId
    dealing: bytes
    """Digest of the dealing."""
    accuser: NodeId
    complaint: Complaint


DkgMessage = DkgDealing | DkgComplaint


@dataclass(frozen=True)
class Data:
    """Payload of any other block: signed requests of users, as they came, and key generation."""

    ingress: tuple[bytes, ...] = ()
    dkg: tuple[DkgMessage, ...] = ()


Payload = Summary | Data


@dataclass(frozen=True, slots=True)
class PayloadBox:
    """A payload as it is hashed and sent."""

    payload: Payload


@dataclass(frozen=True)
class Block:
    version: str
    run_start: Height
    """With the release it names the run; both are in the hash, and so in whatever signs it."""
    subnet: SubnetId
    epoch: Epoch
    height: Height
    rank: Rank
    parent: bytes
    """Hash of the parent block; empty for the block of a registry CUP."""
    payload_hash: bytes
    context: ValidationContext

    @property
    def run(self) -> Run:
        return Run(self.version, self.run_start)


RUN_TAG_BYTES = 8


def run_tag(epoch: Epoch, run: Run) -> bytes:
    """Return what peers put before what they send: of which run it is.

    It is no proof, and need not be one: who lies about it is judged by what is said of that run.
    """
    return domain_hash("reprise-run", canonical.encode(run), cbor.dumps(epoch))[:RUN_TAG_BYTES]


def is_of_any_run(kind: type) -> bool:
    """Whether artifacts of a kind count in every run of an epoch: packages, which end them."""
    return kind is Cup


def block_hash(block: Block) -> bytes:
    return canonical.once(
        block, "_hash", lambda: domain_hash("block_domain", canonical.encode(block))
    )


def payload_hash(payload: Payload) -> bytes:
    return canonical.once(
        payload,
        "_hash",
        lambda: domain_hash("inmemory_payload_domain", canonical.encode(PayloadBox(payload))),
    )


@_artifact
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


@_artifact
class EquivocationProof:
    """Two signatures of one maker on two blocks at one height of one run."""

    epoch: Epoch
    height: Height
    run: Run
    maker: NodeId
    hash_1: bytes
    signature_1: bytes
    hash_2: bytes
    signature_2: bytes


@_artifact
class NotarizationShare:
    epoch: Epoch
    height: Height
    block: bytes
    signer: NodeId
    signature: bytes


@_artifact
class Notarization:
    epoch: Epoch
    height: Height
    block: bytes
    signers: tuple[NodeId, ...]
    signature: bytes


@_artifact
class FinalizationShare:
    epoch: Epoch
    height: Height
    block: bytes
    signer: NodeId
    signature: bytes


@_artifact
class Finalization:
    epoch: Epoch
    height: Height
    block: bytes
    signers: tuple[NodeId, ...]
    signature: bytes


@_artifact
class BeaconShare:
    epoch: Epoch
    height: Height
    parent: bytes
    signer: NodeId
    signature: bytes


@_artifact
class Beacon:
    epoch: Epoch
    height: Height
    parent: bytes
    """Hash of the previous beacon; empty in a registry CUP."""
    signature: bytes


@_artifact
class TapeShare:
    epoch: Epoch
    height: Height
    signer: NodeId
    signature: bytes


@_artifact
class Tape:
    epoch: Epoch
    height: Height
    signature: bytes


@_artifact
class CupShare:
    epoch: Epoch
    height: Height
    content_hash: bytes
    """SHA-256 of the content that the signature covers; every signer builds it for itself."""
    signer: NodeId
    signature: bytes


@_artifact
class Cup:
    """A catch-up package on its way between replicas."""

    epoch: Epoch
    height: Height
    package: bytes
    """The protobuf envelope (see `cup`)."""


@_artifact
class CertificationShare:
    epoch: Epoch
    height: Height
    root: bytes
    witness: bytes
    """Hash tree that shows /metadata/height under the root."""
    signer: NodeId
    signature: bytes


@_artifact
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
    | DkgDealing
    | DkgComplaint
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
    raw: bytes | None = artifact.__dict__.get("_bytes")
    if raw is None:
        raw = artifact.__dict__["_bytes"] = canonical.encode(_Box(artifact))
    return raw


def decode(data: bytes) -> Artifact:
    """Raises: Malformed."""
    artifact = canonical.decode(_Box, data, bytes_max=ARTIFACT_BYTES_MAX).artifact
    if artifact.height < 0 or artifact.epoch < 0:
        raise Malformed("an artifact with a negative height or epoch")
    artifact.__dict__["_bytes"] = data
    return artifact


KINDS: tuple[type[Artifact], ...] = typing.get_args(Artifact)


def peek(data: bytes) -> tuple[type[Artifact], int] | None:
    """Return kind and height of an encoded artifact without decoding it.

    None for blocks and for anything unexpected: then `decode` has to tell. A peer may lie here
    only about what it sends itself.
    """
    # [[kind, [epoch, height, ...]]]: two array heads, the kind, an array head, two numbers.
    if len(data) < 24 or data[0] != 0x81 or data[1] != 0x82 or data[2] >= len(KINDS):
        return None
    kind = KINDS[data[2]]
    if kind is BlockProposal:
        return None
    position = 4 + _number_size(data[4])
    head = data[position]
    size = _number_size(head)
    if size == 0 or position == 4:
        return None
    if size == 1:
        return kind, head
    return kind, int.from_bytes(data[position + 1 : position + size], "big")


def _number_size(head: int) -> int:
    """Return how many bytes a CBOR number takes, by its first; 0: it is no natural number."""
    if head < 24:
        return 1
    return {24: 2, 25: 3, 26: 5, 27: 9}.get(head, 0)


# --- what is signed --------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _message(separator: str, *parts: object) -> bytes:
    return domain(separator) + cbor.dumps([bytes(p) if isinstance(p, bytes) else p for p in parts])


def block_message(subnet: SubnetId, epoch: Epoch, run: Run, height: Height, hash_: bytes) -> bytes:
    """Return what a maker signs.

    Here and in what members sign about a block the run stands beside the hash, which binds it too:
    whoever judges such a signature may not have the block.
    """
    return _about_a_block("block_metadata_domain", subnet, epoch, run, height, hash_)


def notarization_message(
    subnet: SubnetId, epoch: Epoch, run: Run, height: Height, hash_: bytes
) -> bytes:
    return _about_a_block("notarization_content_domain", subnet, epoch, run, height, hash_)


def finalization_message(
    subnet: SubnetId, epoch: Epoch, run: Run, height: Height, hash_: bytes
) -> bytes:
    return _about_a_block("finalization_content_domain", subnet, epoch, run, height, hash_)


def _about_a_block(
    separator: str, subnet: SubnetId, epoch: Epoch, run: Run, height: Height, hash_: bytes
) -> bytes:
    return _message(separator, subnet, epoch, run.release, run.start, height, hash_)


def beacon_message(subnet: SubnetId, epoch: Epoch, height: Height, parent: bytes) -> bytes:
    return _message("random_beacon_content_domain", subnet, epoch, height, parent)


def tape_message(subnet: SubnetId, epoch: Epoch, height: Height) -> bytes:
    return _message("random_tape_content_domain", subnet, epoch, height)


def beacon_hash(beacon: Beacon) -> bytes:
    return canonical.once(
        beacon, "_hash", lambda: domain_hash("random_beacon_domain", canonical.encode(beacon))
    )


def certification_message(root: bytes) -> bytes:
    """The epoch is in the root: the state digest chains over it."""
    return state_root_message(root)
