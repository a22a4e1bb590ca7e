"""What a component of consensus sees: the pool, the chain, the state's heights, the time.

Pure reading and derived facts (ranks, delays, status). Source: reference/consensus.md §1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

from replica.client.subnet_view import RegistryView, SubnetView
from replica.consensus.chain import Chain
from replica.consensus.pool import Pool
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Beacon,
    BlockProposal,
    Data,
    EquivocationProof,
    Notarization,
    Payload,
    Run,
    ValidationContext,
)
from replica.protocol.attestation import HEIGHT_MARGIN
from replica.protocol.crypto.dkg import KeyGeneration, KeyRequest
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.crypto.scheme import Scheme, Transcript
from replica.protocol.errors import Unavailable
from replica.protocol.hashing import domain, sha256
from replica.protocol.ids import Height, NodeId, SubnetId

GAP_MAX = HEIGHT_MARGIN
"""Notarization stops when certification or the next CUP lags this far behind."""
CHAIN_LENGTH_MIN = 50
"""Heights kept below the CUP, so that a peer slightly behind can replay instead of syncing; a whole
interval when that is longer."""
BACKOFF_NUMERATOR, BACKOFF_DENOMINATOR = 3, 2
NEVER = 1 << 63
CUP_HOLD_BACK_NS = 10_000_000_000
CUP_HOLD_BACK_REPLAYING_NS = 150_000_000_000


class Status(enum.Enum):
    RUNNING = "running"
    HALTING = "halting"
    HALTED = "halted"


class StateView(Protocol):
    """What consensus knows of execution."""

    @property
    def latest_height(self) -> Height:
        """Highest height that was executed (or synced) here."""
        ...

    @property
    def certified_height(self) -> Height: ...

    def certified_root_at(self, height: int) -> tuple[bytes, bytes] | None:
        """Return (root, witness of the height) of an executed, not yet certified height."""
        ...

    def uncertified_heights(self) -> Sequence[int]: ...

    def checkpoint_root_at(self, height: int) -> bytes | None:
        """Return the manifest root of the checkpoint at a height, once it is computed."""
        ...

    def key_requests_at(self, height: int) -> tuple[KeyRequest, ...]:
        """Return the keys that the state of a height asks for. Raises: Unavailable."""
        ...


class PayloadBuilder(Protocol):
    def build(self, past: Sequence[Payload], context: ValidationContext, count_max: int) -> Data:
        """Choose requests that no payload in `past` holds."""
        ...

    def check(self, payload: Payload, past: Sequence[Payload], context: ValidationContext) -> None:
        """Raises: Rejected when the payload is not one that `build` may make."""
        ...


@dataclass
class SecretKeys:
    """What a node signs with, beside the shares that its subnet's transcripts hold for it."""

    node: NodeId
    signing: Ed25519Key
    committee: bytes
    shares: dict[bytes, bytes]
    """Threshold key shares of the genesis dealer, by their public share keys."""
    dealing: bytes
    """Opens what key generation seals for this node."""

    @cached_property
    def batch_seed(self) -> bytes:
        """32 bytes that peers can't guess: random factors for their shares are drawn from them."""
        return sha256(self.signing.sign(domain("reprise-batch-verification")))


@dataclass
class Context:
    """The constant surroundings of one replica's consensus."""

    subnet: SubnetId
    replica_version: str
    keys: SecretKeys
    scheme: Scheme
    dkg: KeyGeneration
    registry: RegistryView
    state: StateView
    payloads: PayloadBuilder
    log: Callable[[str], None] = field(default=lambda _: None)
    may_sign: Callable[[int], bool] = field(default=lambda _epoch: True)
    """False for an epoch in which this node has promised to sign nothing more."""

    @property
    def node(self) -> NodeId:
        return self.keys.node


@dataclass
class Reader:
    """One look at the pool, at one time."""

    context: Context
    pool: Pool
    chain: Chain
    now_ns: int
    """By a clock that never jumps nor stands: all delays."""
    wall_ns: int
    """By the machine's clock: only what blocks say about the time."""
    pool_started_ns: int = 0
    wake_ns: int = field(default=NEVER, init=False)
    """When a component, asked again, may decide otherwise without anything new having come."""
    run: Run = field(init=False)
    """The run of which this replica makes and takes blocks: that of the package it began with."""
    _status: Status | None = field(default=None, init=False)
    _barred: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.run = Run(self.context.replica_version, self.chain.cup.summary.run_start)

    def look_again(self, *, at_registry: bool = False) -> None:
        """Forget what was derived: artifacts were added, or also the registry has changed."""
        self._status = None
        if at_registry:
            self._barred = None

    def is_due(self, time_ns: int) -> bool:
        """Return whether a time has come; else note that it is to be waited for."""
        if self.now_ns >= time_ns:
            return True
        self.wake_ns = min(self.wake_ns, time_ns)
        return False

    @property
    def epoch(self) -> int:
        return self.chain.cup.epoch

    @property
    def subnet(self) -> SubnetId:
        return self.context.subnet

    @property
    def node(self) -> NodeId:
        return self.context.node

    # -- registry

    def settings_at(self, height: int) -> SubnetView:
        """Return the subnet as of the registry version that is active at a height."""
        return self.context.registry.subnet(self.chain.interval_at(height).registry_version)

    @property
    def known_until(self) -> Height:
        """The last height whose members and keys a final summary tells."""
        return self.chain.summary_at(self.chain.finalized_height).known_until

    def knows(self, height: int) -> bool:
        """Whether members and keys of a height are known here."""
        try:
            self.settings_at(height)
        except Unavailable:
            return False
        return True

    def low(self, height: int) -> Transcript:
        return self.chain.interval_at(height).low

    def high(self, height: int) -> Transcript:
        return self.chain.interval_at(height).high

    def share_of(self, transcript: Transcript) -> bytes | None:
        """Return this node's secret share of a key; None when it holds none."""
        index = transcript.index_of(self.node)
        if index is None:
            return None
        keys = self.context.keys
        given = keys.shares.get(transcript.share_keys[index])
        return given or self.context.dkg.share_of(transcript, self.node, keys.dealing)

    def has_signed(self, kind: type[Any], height: int) -> bool:
        """Return whether this node's share of a kind and height is in the pool."""
        return any(s.signer == self.node for s in self.pool.validated.at(kind, height))

    @property
    def is_barred(self) -> bool:
        """Whether nothing at all may be signed: halted by the registry, recovered, or promised."""
        if self._barred is None:
            self._barred = self._find_barred()
        return self._barred

    def _find_barred(self) -> bool:
        registry = self.context.registry
        latest = registry.subnet(registry.latest_version)
        if latest.is_halted or latest.cup_version > self.epoch:
            return True  # also once a recovery has opened another epoch
        return not self.context.may_sign(self.epoch)

    @property
    def status(self) -> Status:
        """Whether this subnet makes blocks, winds down to its next CUP, or stands still."""
        if self._status is None:
            self._status = self._find_status()
        return self._status

    def _find_status(self) -> Status:
        if self.is_barred:
            return Status.HALTED
        if not self.should_halt(self.chain.finalized_height + 1):
            return Status.RUNNING
        certified = self.chain.finalized_tip.block.context.certified_height
        return Status.HALTED if self.should_halt(certified) else Status.HALTING

    def should_halt(self, height: int) -> bool:
        """Whether blocks of a height are not this run's to fill.

        A run that has ended never goes on: also when its release is called back meanwhile, since
        others may have taken the package at which it ended.
        """
        settings = self.settings_at(height)
        return (
            settings.halt_at_cup_height
            or settings.replica_version != self.run.release
            or self.chain.summary_at(height).run_start != self.run.start
        )

    # -- ranks and delays

    def ranks(self, height: int) -> tuple[NodeId, ...] | None:
        """Return all members in the order of their ranks at a height.

        None while the beacon is missing.
        """
        beacon = self.chain.beacons.get(height - 1)
        return None if beacon is None else _ranks(beacon, self.settings_at(height).members)

    def disqualified(self, height: int) -> set[NodeId]:
        """Return the makers that were caught equivocating at a height of this run."""
        proofs = self.pool.validated.at(EquivocationProof, height)
        return {p.maker for p in proofs if p.run == self.run}

    def makers(self, height: int) -> tuple[NodeId, ...] | None:
        """Return who may make the block of a height, by rank; None while the beacon is missing.

        Ranks 0 to f; where all of these are disqualified, the next ones until one is not: no
        height is without makers.
        """
        ranks = self.ranks(height)
        if ranks is None:
            return None
        count, out = self.settings_at(height).faults_max + 1, self.disqualified(height)
        while count < len(ranks) and out.issuperset(ranks[:count]):
            count += 1
        return ranks[:count]

    def round_start_ns(self, height: int) -> int | None:
        """Return when the beacon and a notarized block of the height before were both here."""
        before = height - 1
        validated = self.pool.validated
        if before <= self.chain.cup.height:
            return self.pool_started_ns
        beacon = validated.first_time_at(Beacon, before)
        notarized = validated.first_time_at(Notarization, before)
        if beacon is None or notarized is None:
            return None
        return max(beacon, notarized)

    def maker_delay_ns(self, rank: int, height: int) -> int:
        return self.settings_at(height).unit_delay_ns * rank

    def notary_delay_ns(self, rank: int, height: int) -> int | None:
        """Return how long after the round's start a block may be signed; None: not at all."""
        chain, settings = self.chain, self.settings_at(height)
        finalized = chain.finalized_height
        certified = min(finalized, self.context.state.certified_height)
        halting = self.status is not Status.RUNNING
        if chain.notarized_height - self.context.state.certified_height >= GAP_MAX:
            return None  # also while halting: recoveries rest on that margin
        if chain.notarized_height - chain.cup.summary.next_start >= GAP_MAX:
            return None
        lag = chain.notarized_height - finalized
        slowed: int = (
            settings.unit_delay_ns * rank * BACKOFF_NUMERATOR**lag // BACKOFF_DENOMINATOR**lag
        )
        delay = settings.notary_delay_ns + slowed
        if finalized - certified > 1 and not halting:
            delay += settings.backoff_ns * (finalized - certified)
        return delay

    # -- blocks

    @property
    def tape_heights(self) -> range:
        """What is not executed yet, up to one above the finalized tip: there tapes are needed."""
        chain = self.chain
        first = max(self.context.state.latest_height, chain.cup.height) + 1
        return range(first, chain.finalized_height + 2)

    def payloads_since(self, parent: bytes, certified_height: int) -> list[Payload]:
        """Return the payloads of the parent and its ancestors above a certified height."""
        out: list[Payload] = []
        entry = self.chain.blocks.get(parent)
        while entry is not None and entry.block.height > certified_height:
            out.append(entry.payload)
            entry = self.chain.blocks.get(entry.block.parent)
        return out

    def proposals_at(self, height: int) -> list[BlockProposal]:
        return self.pool.validated.at(BlockProposal, height)


@lru_cache(maxsize=512)
def _ranks(beacon: Beacon, members: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
    """Shuffle the members by the beacon's randomness (Fisher-Yates over a SHA-256 stream)."""
    seed = sha256(b"\x02ranks" + artifacts.beacon_hash(beacon))
    order = list(members)
    for i in range(len(order) - 1, 0, -1):
        draw = int.from_bytes(sha256(seed + i.to_bytes(4, "big"))[:16], "big")
        j = draw % (i + 1)
        order[i], order[j] = order[j], order[i]
    return tuple(order)
