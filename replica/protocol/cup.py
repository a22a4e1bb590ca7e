"""Catch-up packages: the IC's envelope around a summary block, a beacon and a state hash.

A CUP is signed by the subnet, or unsigned: then the registry is its authority, and every node
builds the same one out of the registry's record.

Source: reference/consensus.md §1.2 and §1.8, reference/recovery.md §1.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from replica.protocol import artifacts, canonical
from replica.protocol.artifacts import (
    Beacon,
    Block,
    Cup,
    PayloadBox,
    Summary,
    ValidationContext,
)
from replica.protocol.crypto import bls
from replica.protocol.crypto.dkg import HIGH, LOW
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import domain, sha256
from replica.protocol.ids import (
    Epoch,
    Height,
    NodeId,
    Principal,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize


@dataclass(frozen=True)
class CatchUpPackage:
    content: bytes
    """Serialised CatchUpContent: signed as these bytes, never encoded again."""
    signature: bytes
    """48 bytes by the subnet's key; empty: the registry vouches for it."""

    @cached_property
    def _message(self) -> pb.CatchUpContent:
        return parse(pb.CatchUpContent, self.content)

    @cached_property
    def block(self) -> Block:
        return canonical.decode(Block, self._message.block.canonical)

    @cached_property
    def summary(self) -> Summary:
        payload = canonical.decode(PayloadBox, self._message.block.summary).payload
        if not isinstance(payload, Summary):
            raise Malformed("a CUP's block is not a summary block")
        return payload

    @cached_property
    def beacon(self) -> Beacon:
        m = self._message.random_beacon
        return Beacon(Epoch(m.epoch), Height(m.height), m.parent, m.signature)

    @property
    def state_hash(self) -> bytes:
        """Root of the checkpoint's manifest, 32 bytes; empty at genesis."""
        return self._message.state_hash

    @cached_property
    def height(self) -> Height:
        return self.block.height

    @cached_property
    def epoch(self) -> Epoch:
        return self.block.epoch

    @property
    def subnet(self) -> SubnetId:
        return self.block.subnet

    @property
    def registry_version(self) -> RegistryVersion:
        """Version whose release and membership this CUP activates."""
        return self.summary.registry_version

    @property
    def run_start(self) -> Height:
        """Height at which the run that this CUP starts or goes on with began."""
        return self.summary.run_start

    @property
    def holders(self) -> frozenset[NodeId]:
        """Return every node that has a part in the intervals that this package speaks of."""
        s = self.summary
        committees = [t.committee for t in (s.low, s.high, s.next_low, s.next_high) if t]
        return frozenset(s.receivers).union(*committees)

    def high_at(self, height: int) -> Transcript:
        """Return the key that certifies a height from this package's on."""
        s = self.summary
        return s.high if height < s.next_start or s.next_high is None else s.next_high

    @property
    def is_signed(self) -> bool:
        return bool(self.signature)

    def encode(self) -> bytes:
        signer = pb.NiDkgId(start_block_height=self.height, dealer_subnet=self.subnet, dkg_tag=HIGH)
        return serialize(
            pb.CatchUpPackage(content=self.content, signature=self.signature, signer=signer)
        )

    def verify(self, public_key: bytes, scheme: bls.ThresholdVerifier = bls.VERIFIER) -> None:
        """Check the subnet's signature (96-byte key). Raises: NotVerified."""
        message = signed_message(self.content)
        if not self.signature or not scheme.verify_threshold(public_key, message, self.signature):
            raise NotVerified(f"the signature of the CUP at height {self.height} does not verify")


def signed_message(content: bytes) -> bytes:
    return domain("catch_up_content_domain") + content


def decode(data: bytes) -> CatchUpPackage:
    """Decode an envelope and check that its parts belong together. Raises: Malformed."""
    message = parse(pb.CatchUpPackage, data)
    package = CatchUpPackage(message.content, message.signature)
    check(package)
    return package


def package_of(artifact: Cup) -> CatchUpPackage:
    """Decode what an artifact carries, at its first use. Raises: Malformed."""
    found: CatchUpPackage | None = artifact.__dict__.get("_package")
    if found is None:
        found = artifact.__dict__["_package"] = decode(artifact.package)
    return found


def check(package: CatchUpPackage) -> None:
    """Raises: Malformed when hashes, heights or epochs contradict each other."""
    message, block = package._message, package.block
    if message.block_hash != artifacts.block_hash(block):
        raise Malformed("the CUP's block hash is not that of its block")
    if artifacts.payload_hash(package.summary) != block.payload_hash:
        raise Malformed("the CUP's summary is not the payload of its block")
    if message.random_beacon_hash != artifacts.beacon_hash(package.beacon):
        raise Malformed("the CUP's beacon hash is not that of its beacon")
    beacon = package.beacon
    if not block.height == beacon.height == package.summary.height or beacon.epoch != block.epoch:
        raise Malformed("the CUP's block, summary and beacon disagree on height or epoch")
    if len(package.state_hash) not in (0, 32):
        raise Malformed("the CUP's state hash has not 32 bytes")


def content(block: Block, summary: Summary, beacon: Beacon, state_hash: bytes) -> bytes:
    """Return the bytes that a subnet signs for a CUP."""
    message = pb.CatchUpContent(
        state_hash=state_hash,
        block_hash=artifacts.block_hash(block),
        random_beacon_hash=artifacts.beacon_hash(beacon),
    )
    message.block.CopyFrom(
        pb.Block(
            version=block.version,
            parent=block.parent,
            height=block.height,
            rank=block.rank,
            time=block.context.time_ns,
            registry_version=block.context.registry_version,
            certified_height=block.context.certified_height,
            payload_hash=block.payload_hash,
            canonical=canonical.encode(block),
            summary=canonical.encode(PayloadBox(summary)),
        )
    )
    message.random_beacon.CopyFrom(
        pb.RandomBeacon(
            version=block.version,
            height=beacon.height,
            parent=beacon.parent,
            signature=beacon.signature,
            epoch=beacon.epoch,
            signer=pb.NiDkgId(
                start_block_height=summary.height, dealer_subnet=block.subnet, dkg_tag=LOW
            ),
        )
    )
    return serialize(message)


def from_registry(
    subnet: SubnetId,
    record: bytes,
    record_version: RegistryVersion,
    subnet_record: bytes,
) -> CatchUpPackage:
    """Rebuild the unsigned CUP that a catch_up_package_contents record stands for.

    `record_version`: the version at which the record was written: it becomes the epoch.
    `subnet_record`: the subnet's record at that version (release, interval length).
    Deterministic, so every node builds the same bytes.
    """
    contents = parse(pb.CatchUpPackageContents, record)
    settings = parse(pb.SubnetRecord, subnet_record)
    height = Height(contents.height)
    epoch = Epoch(record_version)
    summary = Summary(
        registry_version=record_version,
        height=height,
        interval_length=settings.dkg_interval_length,
        next_interval_length=settings.dkg_interval_length,
        low=transcript_from_record(contents.initial_ni_dkg_transcript_low_threshold),
        high=transcript_from_record(contents.initial_ni_dkg_transcript_high_threshold),
        next_registry_version=record_version,
        receivers=tuple(sorted(NodeId(Principal(m)) for m in settings.membership)),
        run_start=height,
    )
    block = Block(
        version=settings.replica_version_id,
        run_start=height,
        subnet=subnet,
        epoch=epoch,
        height=height,
        rank=Rank(0),
        parent=b"",
        payload_hash=artifacts.payload_hash(summary),
        context=ValidationContext(record_version, height, TimeNs(contents.time)),
    )
    beacon = Beacon(epoch, height, b"", b"")
    return CatchUpPackage(content(block, summary, beacon, contents.state_hash), b"")


def transcript_to_record(
    transcript: Transcript, subnet: SubnetId, height: Height, tag: int, version: RegistryVersion
) -> pb.InitialNiDkgTranscriptRecord:
    return pb.InitialNiDkgTranscriptRecord(
        id=pb.NiDkgId(start_block_height=height, dealer_subnet=subnet, dkg_tag=tag),
        threshold=transcript.threshold,
        committee=[bytes(n) for n in transcript.committee],
        registry_version=version,
        internal_csp_transcript=canonical.encode(transcript),
    )


def transcript_from_record(record: pb.InitialNiDkgTranscriptRecord) -> Transcript:
    """Raises: Malformed."""
    transcript = canonical.decode(Transcript, record.internal_csp_transcript)
    committee = tuple([NodeId(Principal(n)) for n in record.committee])
    if transcript.committee != committee or transcript.threshold != record.threshold:
        raise Malformed("a transcript record disagrees with the keys in it")
    return transcript


def content_hash(content_bytes: bytes) -> bytes:
    return sha256(content_bytes)
