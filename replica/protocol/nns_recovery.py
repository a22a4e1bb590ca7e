"""The offline bundle that recovers the NNS subnet itself, and the catch-up package it stands for.

What node operators sign is the hash of `Recovery`. It says from which proven state the subnet goes
on, what was changed in that state before (the registry's record of the recovery, a release, a
canister's code), and what came out. The committee's keys stay, so the root key does.

Source: reference/recovery.md §1.2 (dfinity/ic rs/recovery, rs/replay get-recovery-cup).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from replica.protocol import artifacts, ballot, canonical, cup
from replica.protocol.artifacts import Beacon, Block, Summary, ValidationContext
from replica.protocol.ballot import Ballot
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
    new_state_hash: bytes
    """Manifest root after the changes: what the catch-up package carries."""
    deadline_s: int
    """Ballots count until then."""

    @property
    def order(self) -> Order:
        return Order(self.height, self.time_ns, self.release, self.module)

    @property
    def subject(self) -> bytes:
        return ballot.subject_of(ballot.NNS_RECOVERY, [sha256(canonical.encode(self))])


@dataclass(frozen=True, slots=True)
class Order:
    """What a replay is told to change in the state of R: the part of a recovery that is chosen."""

    height: Height
    time_ns: TimeNs
    release: ReleaseChange | None
    module: ModuleChange | None


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


def package_of(
    recovery: Recovery, base: CatchUpPackage, version: str, interval: int
) -> CatchUpPackage:
    """Return the unsigned catch-up package of a recovery.

    `base`: the newest proven package, whose transcripts go on. `version`, `interval`: release and
    interval length of the subnet at the recovery's registry version. Deterministic.
    """
    epoch = Epoch(recovery.registry_version)
    summary = Summary(
        registry_version=recovery.registry_version,
        height=recovery.height,
        interval_length=interval,
        next_interval_length=interval,
        low=base.summary.low,
        high=base.summary.high,
        next_registry_version=recovery.registry_version,
        receivers=base.summary.receivers,
    )
    block = Block(
        version=version,
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
