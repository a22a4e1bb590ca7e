"""The offline bundle that recovers the NNS subnet itself, and the catch-up package it stands for.

What node operators sign is the hash of `Recovery`. It says from which proven state the subnet goes
on, what was changed in that state before (the registry's record of the recovery, a release, a
canister's code, the members), and what came out. The committee's keys stay, and so the root key
does, unless more than f members are gone for good and their shares of it: then those who go on have
dealt each other new keys, and the operators' signatures are what hands on the trust in the old one.

Source: reference/recovery.md §1.2 (dfinity/ic rs/recovery, rs/replay get-recovery-cup).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from replica.protocol import artifacts, ballot, canonical, cup
from replica.protocol.artifacts import Beacon, Block, Summary, ValidationContext
from replica.protocol.ballot import Ballot
from replica.protocol.crypto.dkg import HIGH, LOW, RECOVERY, BlsDkg, Config, Dealing
from replica.protocol.crypto.scheme import Transcript, threshold_high, threshold_low
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import LimitExceeded, Malformed, NotVerified
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    CanisterId,
    Epoch,
    Height,
    NodeId,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
)

BUNDLE_BYTES_MAX = 80 << 20
BALLOTS_MAX = 200
RECOVERY_RECORD = "nns_recovery_record"


@dataclass(frozen=True, slots=True)
class ReleaseChange:
    version: str
    sha256_hex: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """An upgrade of one canister, installed in its controller's place."""

    canister: CanisterId
    module: bytes
    arg: bytes


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What new members deal each other keys for; every one of them derives the same."""

    subnet: SubnetId
    registry_version: RegistryVersion
    """The one that the recovery writes."""
    height: Height
    """Of the recovery."""
    members: tuple[NodeId, ...]
    """In ascending order."""

    def config(self, tag: int) -> Config:
        count, opened = len(self.members), (Epoch(self.registry_version), self.height, tag)
        threshold = threshold_low(count) if tag == LOW else threshold_high(count)
        return Config(RECOVERY, self.subnet, *opened, self.members, self.members, threshold, None)


@dataclass(frozen=True, slots=True)
class KeyDealing:
    """What one new member dealt to all for one of the two keys, signed with its node key."""

    tag: int
    dealer: NodeId
    dealing: Dealing
    signature: bytes


@dataclass(frozen=True, slots=True)
class Dealt:
    """Dealings on their way to those who are to look at them."""

    plan: KeyPlan
    dealings: tuple[KeyDealing, ...]


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Who goes on where more than f members are gone for good, and the keys they made."""

    members: tuple[NodeId, ...]
    """In ascending order."""
    dealings: tuple[KeyDealing, ...]
    """Without those whose shares somebody can't open."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is decided."""

    subnet: SubnetId
    evidence: bytes
    """Canonical `Evidence`: n - f members attest the state of height R."""
    state_height: Height
    """R."""
    state_hash: bytes
    """Manifest root at R."""
    height: Height
    """Of the catch-up package."""
    time_ns: TimeNs
    registry_version: RegistryVersion
    """Version that the recovery writes, one above the certified ones; the new epoch."""
    registry_batch: bytes
    """The content of that version."""
    release: ReleaseChange | None
    module: ModuleChange | None
    keys: NewKeys | None
    """None: the members and the root key stay."""
    new_state_hash: bytes
    """Manifest root after the changes: what the catch-up package carries."""
    deadline_s: int
    """Ballots count until then."""

    @property
    def order(self) -> Order:
        committee = None
        if self.keys is not None:
            committee = Committee(self.keys.members, self.transcripts(self.keys)[1].public_key)
        return Order(self.height, self.time_ns, self.release, self.module, committee)

    def transcripts(self, new: NewKeys) -> tuple[Transcript, Transcript]:
        """Return the low and the high key that dealings make. Raises: NotVerified."""
        return transcripts_of(self.key_plan(new), new.dealings)

    def key_plan(self, new: NewKeys) -> KeyPlan:
        return KeyPlan(self.subnet, self.registry_version, self.height, new.members)

    @property
    def subject(self) -> bytes:
        return ballot.subject_of(ballot.NNS_RECOVERY, [sha256(canonical.encode(self))])


@dataclass(frozen=True, slots=True)
class Committee:
    """New members, and the root key that they made."""

    members: tuple[NodeId, ...]
    root_key: bytes
    """96 bytes."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a replay is told to change in the state of R: the part of a recovery that is chosen."""

    height: Height
    time_ns: TimeNs
    release: ReleaseChange | None
    module: ModuleChange | None
    committee: Committee | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """The file: what is decided, what it takes to check and to apply it, and the ballots."""

    recovery: Recovery
    deltas: tuple[bytes, ...]
    """Certified answers of the registry, from version 0 to the one before the recovery's."""
    package: bytes
    """The release's package; empty when the release stays."""
    ballots: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        return canonical.encode(self)

    def with_ballots(self, more: tuple[bytes, ...]) -> Bundle:
        """Return the bundle with further ballots, each once."""
        return replace(self, ballots=tuple(dict.fromkeys((*self.ballots, *more)))[:BALLOTS_MAX])


def decode(data: bytes) -> Bundle:
    """Raises: Malformed, LimitExceeded."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise LimitExceeded(f"a recovery bundle has at most {BUNDLE_BYTES_MAX} bytes")
    bundle = canonical.decode(Bundle, data, bytes_max=BUNDLE_BYTES_MAX)
    if len(bundle.ballots) > BALLOTS_MAX:
        raise LimitExceeded(f"a recovery bundle has at most {BALLOTS_MAX} ballots")
    if any(len(h) != 32 for h in (bundle.recovery.state_hash, bundle.recovery.new_state_hash)):
        raise Malformed("a state hash has 32 bytes")
    return bundle


def halt_subject(node: NodeId, subnet: SubnetId, epoch: int) -> bytes:
    """Return what an operator signs to halt a node of his in an epoch."""
    return ballot.subject_of(ballot.NODE_HALT, [bytes(node), bytes(subnet), epoch])


def transcripts_of(plan: KeyPlan, dealt: tuple[KeyDealing, ...]) -> tuple[Transcript, Transcript]:
    """Return the low and the high key that dealings make. Raises: NotVerified."""
    made = []
    for tag in (LOW, HIGH):
        config = plan.config(tag)
        dealings = {d.dealer: d.dealing for d in dealt if d.tag == tag}
        if any(BlsDkg().fault(config, dealer, d) for dealer, d in dealings.items()):
            raise NotVerified("a dealing of the new keys is malformed or not its dealer's")
        transcript = BlsDkg().combine(config, dealings)
        if transcript is None:
            raise NotVerified(
                f"{len(dealings)} new members dealt a key; {config.needed} (f + 1) are needed"
            )
        made.append(transcript)
    return made[0], made[1]


def package_of(
    recovery: Recovery, base: CatchUpPackage, version: str, interval: int
) -> CatchUpPackage:
    """Return the unsigned catch-up package of a recovery.

    `base`: the newest proven package, whose transcripts go on unless there are new keys. `version`,
    `interval`: release and interval length of the subnet at the recovery's registry version.
    Deterministic. Raises: NotVerified when the new keys' dealings make no keys.
    """
    epoch = Epoch(recovery.registry_version)
    low, high, receivers = base.summary.low, base.summary.high, base.summary.receivers
    if recovery.keys is not None:
        low, high = recovery.transcripts(recovery.keys)
        receivers = recovery.keys.members
    summary = Summary(
        registry_version=recovery.registry_version,
        height=recovery.height,
        interval_length=interval,
        next_interval_length=interval,
        low=low,
        high=high,
        next_registry_version=recovery.registry_version,
        receivers=receivers,
        run_start=recovery.height,
    )
    block = Block(
        version=version,
        run_start=recovery.height,
        subnet=recovery.subnet,
        epoch=epoch,
        height=recovery.height,
        rank=Rank(0),
        parent=b"",
        payload_hash=artifacts.payload_hash(summary),
        context=ValidationContext(recovery.registry_version, recovery.height, recovery.time_ns),
    )
    beacon = Beacon(epoch, recovery.height, b"", b"")
    return CatchUpPackage(cup.content(block, summary, beacon, recovery.new_state_hash), b"")


def ballots_of(bundle: Bundle) -> tuple[list[Ballot], list[str]]:
    """Return the ballots that are signed for this very recovery, and why others are not."""
    good, faults = [], []
    for raw in bundle.ballots:
        try:
            found = ballot.decode(raw)
        except (Malformed, NotVerified) as error:
            faults.append(str(error))
            continue
        if found.purpose != ballot.NNS_RECOVERY or found.subject != bundle.recovery.subject:
            faults.append(f"the ballot of {found.voter} is for something else")
        else:
            good.append(found)
    return good, faults
