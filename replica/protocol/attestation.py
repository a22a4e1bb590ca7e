"""Attestations and recovery evidence: what n - f members say about a stopped subnet, signed.

Owns the formats and the judgement over them: `judge` is what the planning tool, a voter and the
registry all run. Knows nothing of how the parts were gathered.

Source: design, "Recovery": R, evidence classes, CUP height and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replica.protocol import artifacts, canonical, cup
from replica.protocol.artifacts import Block, Certification, Finalization
from replica.protocol.certification import witness_fault
from replica.protocol.crypto import bls
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.crypto.scheme import Scheme, faults_max, threshold_high
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import domain
from replica.protocol.ids import Epoch, Height, NodeId, RegistryVersion, SubnetId, TimeNs

HEIGHT_MARGIN = 70
"""A subnet never runs further than this ahead of what it certified."""
EVIDENCE_BYTES_MAX = 60_000


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What a member signs with."""

    signing: bytes
    """Ed25519, 32 bytes."""
    committee: bytes
    """Multi-signature key, 96 bytes."""


Members = Callable[[RegistryVersion | None], dict[NodeId, MemberKeys]]
"""A subnet's members at a registry version; None: at the latest that the judge has."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """A node's signed word: the state it holds at R, and that it signs nothing more this epoch.

    The promise ends when the registry unhalts or recovers the subnet.
    """

    subnet: SubnetId
    epoch: Epoch
    node: NodeId
    registry_version: RegistryVersion
    """The version at which the node saw the subnet halted."""
    cup_height: Height
    """Height of the newest threshold-signed (or genesis) CUP the node holds."""
    finalized_height: Height
    certified_height: Height
    certified_root: bytes
    """Root of the state tree at R as replayed; equal to the certification's where there is one."""
    height: Height
    """R: the height of the attested state."""
    state_hash: bytes
    """Manifest root of the checkpoint at R, 32 bytes."""
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        unsigned = Attestation(
            **{name: getattr(self, name) for name in self.__slots__ if name != "signature"}
        )
        return domain("reprise-attestation") + canonical.encode(unsigned)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a recovery proposal carries and the registry checks."""

    cup: bytes
    """The newest CUP of the subnet: threshold-signed, or the registry's unsigned one."""
    finalized_block: Block | None
    """The highest finalized block; None when nothing was finalized above the CUP."""
    finalization: Finalization | None
    certification: Certification | None
    """At R; None when R is the CUP's own height."""
    attestations: tuple[Attestation, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evidence proves."""

    proven_height: Height
    """The highest height that carries a quorum's signature."""
    proven_time_ns: TimeNs
    state_height: Height
    """R."""
    state_hash: bytes
    attesting: tuple[NodeId, ...]
    """Members that attest this state hash."""
    epoch: Epoch
    package: cup.CatchUpPackage
    """The proven catch-up package, whose keys go on."""


def decode(data: bytes) -> Evidence:
    """Raises: Malformed."""
    if len(data) > EVIDENCE_BYTES_MAX:
        raise Malformed(f"recovery evidence has at most {EVIDENCE_BYTES_MAX} bytes")
    return canonical.decode(Evidence, data)


def judge(
    evidence: Evidence,
    subnet: SubnetId,
    public_key: bytes,
    members: Members,
    registry_cup: cup.CatchUpPackage | int,
    scheme: Scheme = bls.VERIFIER,
    *,
    replacing: bool = False,
) -> Judgement:
    """Check every signature and return what is proven (evidence of class *certified*).

    `public_key`: the subnet's, from the registry. `registry_cup`: the unsigned CUP in force;
    or, when it is not at hand, its epoch: then only a signed CUP can be evidence. `replacing`: more
    than f members are gone for good. Then f + 1 attest, one of whom is honest; what they attest
    must still carry the subnet's signature, and without them nobody makes a quorum any more.
    Raises: NotVerified, naming what does not hold.
    """
    package = cup.decode(evidence.cup)
    epoch = Epoch(registry_cup) if isinstance(registry_cup, int) else registry_cup.epoch
    if package.subnet != subnet or package.epoch != epoch:
        raise NotVerified("the CUP in the evidence is of another subnet or epoch")
    if package.is_signed:
        package.verify(public_key, scheme)
    elif isinstance(registry_cup, int) or package.encode() != registry_cup.encode():
        raise NotVerified("the unsigned CUP in the evidence is not the registry's")
    height, time_ns = package.height, package.block.context.time_ns
    if evidence.finalization is not None and evidence.finalized_block is not None:
        block = evidence.finalized_block
        keys = members_at(package, block.height, members)
        check_finalization(evidence.finalization, block, package, keys, scheme)
        if block.height > height:
            height, time_ns = block.height, block.context.time_ns
    state_height = package.height
    certified_root: bytes | None = None
    if evidence.certification is not None:
        certified_root = check_certification(evidence.certification, epoch, public_key, scheme)
        if evidence.certification.height > state_height:
            state_height = evidence.certification.height
        else:
            certified_root = None
    elif package.state_hash == b"":
        raise NotVerified("nothing was certified since genesis: there is no state to recover")
    keys = members_at(package, state_height, members)
    state_hash, attesting = _check_attestations(
        evidence.attestations,
        package,
        state_height,
        certified_root,
        faults_max(len(keys)) + 1 if replacing else threshold_high(len(keys)),
        {n: k.signing for n, k in keys.items()},
    )
    if state_height == package.height and state_hash != package.state_hash:
        raise NotVerified("the attested state is not the one in the CUP at the same height")
    return Judgement(
        Height(max(height, state_height)),
        time_ns,
        state_height,
        state_hash,
        attesting,
        package.epoch,
        package,
    )


def members_at(
    package: cup.CatchUpPackage, height: int, members: Members
) -> dict[NodeId, MemberKeys]:
    """Return who signs at a height, as a package tells it: members change at packages' heights.

    Of heights beyond the two intervals that it speaks of it says nothing: the latest count.
    """
    s = package.summary
    if height < s.next_start:
        return members(s.registry_version)
    return members(s.next_registry_version if height <= s.known_until else None)


def check_finalization(
    finalization: Finalization,
    block: Block,
    package: cup.CatchUpPackage,
    keys: dict[NodeId, MemberKeys],
    scheme: Scheme = bls.VERIFIER,
) -> None:
    """`keys`: of the members at that height. Raises: NotVerified."""
    if (
        finalization.block != artifacts.block_hash(block)
        or finalization.height != block.height
        or not finalization.epoch == block.epoch == package.epoch
        or block.subnet != package.subnet
    ):
        raise NotVerified("the finalization is not of the block shown, or of another epoch")
    signers = finalization.signers
    if len(set(signers)) != len(signers) or len(signers) < threshold_high(len(keys)):
        raise NotVerified("the finalization has fewer signers than n - f")
    if any(s not in keys for s in signers):
        raise NotVerified("the finalization is signed by a node that is no member")
    message = artifacts.finalization_message(
        block.subnet, block.epoch, block.run, block.height, finalization.block
    )
    committee = [keys[s].committee for s in signers]
    if not scheme.verify_multi(committee, message, finalization.signature):
        raise NotVerified("the finalization's signature does not verify")


def check_certification(
    certification: Certification, epoch: Epoch, public_key: bytes, scheme: Scheme = bls.VERIFIER
) -> bytes:
    """Return the root that is certified in an epoch. Raises: NotVerified."""
    root, witness = certification.root, certification.witness
    fault = witness_fault(root, witness, epoch, certification.height)
    if fault is not None:
        raise NotVerified(f"the certification's witness: {fault}")
    message = artifacts.certification_message(certification.root)
    if not scheme.verify_threshold(public_key, message, certification.signature):
        raise NotVerified("the certification's signature does not verify")
    return certification.root


def _check_attestations(
    attestations: tuple[Attestation, ...],
    package: cup.CatchUpPackage,
    state_height: Height,
    certified_root: bytes | None,
    quorum: int,
    signing_keys: dict[NodeId, bytes],
) -> tuple[bytes, tuple[NodeId, ...]]:
    """Return the state hash that enough members attest, and who they are."""
    by_hash: dict[bytes, list[NodeId]] = {}
    seen: list[NodeId] = []
    for a in attestations:
        if a.subnet != package.subnet or a.epoch != package.epoch:
            raise NotVerified(f"the attestation of {a.node} is for another subnet or epoch")
        if a.node not in signing_keys or a.node in seen:
            raise NotVerified(f"{a.node} is no member, or attests twice")
        if not verify_ed25519(signing_keys[a.node], a.message, a.signature):
            raise NotVerified(f"the attestation of {a.node} is not signed by it")
        seen.append(a.node)
        if a.height != state_height:
            continue
        if certified_root is not None and a.certified_root != certified_root:
            continue
        by_hash.setdefault(a.state_hash, []).append(a.node)
    for state_hash, nodes in sorted(by_hash.items()):
        if len(nodes) >= quorum:
            return state_hash, tuple(sorted(nodes))
    best = max((len(n) for n in by_hash.values()), default=0)
    raise NotVerified(
        f"{best} members attest one state at height {state_height}; {quorum} are needed"
    )


def recovery_height(proven_height: Height, interval_blocks: int) -> Height:
    """Return the next interval boundary above the highest proven height and the margin."""
    beyond = proven_height + HEIGHT_MARGIN
    return Height((beyond // interval_blocks + 1) * interval_blocks)


def recovery_time(proven_time_ns: TimeNs, proven_height: Height, unit_ns: int) -> TimeNs:
    """Return a time later than any block that may have been finalized unseen."""
    return TimeNs(proven_time_ns + HEIGHT_MARGIN * unit_ns + 1)
