"""The driver: artifacts and time in, effects out.

Runs the components in turn until none has anything to change; a component is asked again only when
something that it reads has changed (see `components`). Holds no clock, socket or file: the
shell (or the simulator) feeds it and carries out the effects in the order in which they are given.
`Persist` always precedes the `Send` of what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from replica.consensus.chain import Chain
from replica.consensus.components import ALL, COMPONENTS, REGISTRY, STATE, SUMMARY, readers_of
from replica.consensus.delivery import Batch, next_batch
from replica.consensus.pool import Changes, Pool
from replica.consensus.reader import NEVER, Context, Reader
from replica.protocol import cup
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    Beacon,
    BeaconShare,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
    Notarization,
    NotarizationShare,
    Run,
    Tape,
    TapeShare,
)
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, NodeId

LOOKAHEAD = 400
"""Artifacts further above the notarized tip are not admitted; they are asked for again later."""
STEPS_MAX = 10_000
IDLE_NS = 1_000_000_000
CLOCK_STEP_NS = 1_000_000
"""By more than this a clock differs only when it was set."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Make these artifacts durable before any later effect."""

    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Offer an artifact to every peer, now and whenever one reconnects."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Execute:
    batch: Batch


@dataclass(frozen=True, slots=True)
class DeliverCertification:
    certification: Certification


@dataclass(frozen=True, slots=True)
class FetchState:
    """Ask for the checkpoint of a height, from peers that advertise this root only."""

    height: Height
    root: bytes


@dataclass(frozen=True, slots=True)
class AdoptCup:
    package: CatchUpPackage


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the peers for all they hold: earlier artifacts were beyond the bounds."""


@dataclass(frozen=True, slots=True)
class Diverged:
    """Others certified another state than ours at this height."""

    height: Height


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer sent an artifact that can't be valid."""

    artifact: Artifact
    reason: str


Effect = (
    Persist
    | Send
    | Execute
    | DeliverCertification
    | FetchState
    | AdoptCup
    | Refresh
    | Diverged
    | Misbehaved
)


class Driver:
    """Consensus and certification of one replica in one epoch."""

    def __init__(
        self, context: Context, package: CatchUpPackage, now_ns: int, *, exhaustive: bool = False
    ) -> None:
        """`exhaustive` (tests): assert after every step that no component was passed over."""
        self.context = context
        self.pool = Pool()
        self.certifications = Pool()
        self.chain = Chain(package)
        self.started_ns = now_ns
        self._exhaustive = exhaustive
        self._stale = ALL
        """Bit i: a thing that component i reads has changed since it last had nothing to do."""
        self._position = 0
        self._surroundings: tuple[object, ...] = ()
        self._deadlines = [NEVER] * len(COMPONENTS)
        """When each component wants to be asked again though nothing has come."""
        self._wake_ns = NEVER
        self._clock_offset_ns = 0
        self._summaries_seen = 0
        start = (now_ns, now_ns, now_ns)
        self._both_readers = (
            Reader(context, self.pool, self.chain, *start),
            Reader(context, self.certifications, self.chain, *start),
        )
        self._executing: int | None = None
        self._fetching: int | None = None
        self._delivered = 0
        self._diverged = False

    def restore(self, artifacts: Iterable[Artifact], now_ns: int) -> None:
        """Take back what this node had validated before it stopped."""
        packages = [a for a in artifacts if isinstance(a, Cup) and a.epoch == self.chain.cup.epoch]
        for known in sorted(packages, key=lambda a: a.height):
            if known.height > self.chain.cup.height:
                self.chain.set_cup(cup.decode(known.package))
        ordered = sorted(
            (a for a in artifacts if a.epoch == self.chain.cup.epoch),
            key=lambda a: (a.height, not isinstance(a, BlockProposal)),
        )
        for artifact in ordered:
            if isinstance(artifact, Certification | CertificationShare):
                self.certifications.validated.insert(artifact, now_ns)
            else:
                self.pool.validated.insert(artifact, now_ns)
                if not isinstance(artifact, Cup):
                    self.chain.add(artifact)

    # -- input

    def receive(self, artifact: Artifact, sender: NodeId, now_ns: int) -> bool:
        """Admit an artifact from a peer to the unvalidated pool; False when it is not wanted.

        A share is taken from its signer only: so nobody can send bad ones in another's name.
        """
        if not self._is_wanted(artifact, sender):
            return False
        pool = self.certifications if _is_certification(artifact) else self.pool
        return pool.insert_unvalidated(artifact, now_ns)

    def is_late(self, kind: type, height: int) -> bool:
        """Return whether nothing of a kind and height can matter any more: need not be decoded."""
        chain, state = self.chain, self.context.state
        if kind in (DkgDealing, DkgComplaint):
            return height < chain.summary_at(chain.finalized_height).height
        if height <= chain.cup.height:
            return True
        if kind in (Certification, CertificationShare):
            return height <= state.certified_height
        if kind in (Beacon, BeaconShare):
            return height <= chain.beacon_height
        if kind in (Tape, TapeShare):
            return height in chain.tapes or height <= state.latest_height
        return kind not in (Cup, CupShare) and height <= chain.finalized_height

    def _is_wanted(self, artifact: Artifact, sender: NodeId) -> bool:
        chain, height = self.chain, artifact.height
        if artifact.epoch != chain.cup.epoch or self.is_late(type(artifact), height):
            return False
        if isinstance(artifact, Cup):
            return True
        if height > chain.notarized_height + LOOKAHEAD:
            return False
        if isinstance(artifact, SHARES) and artifact.signer != sender:
            return False
        if isinstance(artifact, Certification | CertificationShare):
            return not self.certifications.validated.has(Certification, height)
        if isinstance(artifact, Notarization | NotarizationShare):
            return not chain.is_notarized(height, artifact.block)
        return True

    def executed(self, height: int) -> None:
        """The batch of a height was executed (the state view knows it)."""
        if self._executing is not None and height >= self._executing:
            self._executing = None

    def synced(self) -> None:
        """A state was fetched (the state view knows it), or fetching was given up."""
        self._fetching = None
        self._executing = None

    @property
    def run(self) -> Run:
        """The run of which this replica makes and takes blocks."""
        return self._both_readers[0].run

    # -- output

    def reader(self, now_ns: int, wall_ns: int | None = None) -> Reader:
        return self._readers(now_ns, now_ns if wall_ns is None else wall_ns)[0]

    def step(self, now_ns: int, wall_ns: int) -> list[Effect]:
        """Run all components until none has anything to do; return the effects in order.

        `now_ns`: a clock that never jumps nor stands, for all delays. `wall_ns`: the time since
        the Unix epoch as this machine sees it; only what blocks say about the time rests on it.
        """
        effects: list[Effect] = []
        self._look_around(now_ns)
        self._compare_clocks(now_ns, wall_ns)
        for pool in (self.pool, self.certifications):
            self._notice(pool)
        readers = self._readers(now_ns, wall_ns)
        if self._stale:
            for _ in range(STEPS_MAX):
                if not self._turn(readers, now_ns, effects):
                    break
            else:
                raise AssertionError("the components of consensus never come to rest")
            if self._exhaustive:
                self._assert_at_rest(readers)
            self._wake_ns = min(self._deadlines)
        self._deliver_certifications(effects)
        self._deliver_batch(readers[0], effects)
        return effects

    def _readers(self, now_ns: int, wall_ns: int) -> tuple[Reader, Reader]:
        """Return a reader of the pool, and one of the certifications' pool."""
        for reader in self._both_readers:
            reader.now_ns, reader.wall_ns = now_ns, wall_ns
        return self._both_readers

    def _look_around(self, now_ns: int) -> None:
        """Notice what changed apart from artifacts: the state, the registry, the time."""
        state, chain, context = self.context.state, self.chain, self.context
        seen = (
            state.latest_height,
            state.certified_height,
            tuple([state.checkpoint_root_at(h) for h in chain.summary_heights()]),
            context.registry.latest_version,
            context.may_sign(chain.cup.epoch),
        )
        if seen != self._surroundings:
            before, self._surroundings = self._surroundings, seen
            if before[:3] != seen[:3]:
                self._stale |= readers_of(STATE)
            if before[3:] != seen[3:]:
                self._stale |= readers_of(REGISTRY)
                self._look_again(at_registry=True)
        if now_ns >= self._wake_ns:
            due = [i for i, t in enumerate(self._deadlines) if t <= now_ns]
            self._stale |= sum(1 << i for i in due)

    def _compare_clocks(self, now_ns: int, wall_ns: int) -> None:
        """Blocks may wait for a time that is here at once when the machine's clock is set."""
        if abs(wall_ns - now_ns - self._clock_offset_ns) > CLOCK_STEP_NS:
            self._clock_offset_ns = wall_ns - now_ns
            self._stale |= readers_of(STATE)

    def _look_again(self, *, at_registry: bool = False) -> None:
        for reader in self._both_readers:
            reader.look_again(at_registry=at_registry)

    def _notice(self, pool: Pool) -> None:
        """Find out who has to look again because of what was added or removed."""
        for is_validated, section in ((True, pool.validated), (False, pool.unvalidated)):
            if section.touched:
                for kind in section.touched:
                    self._stale |= readers_of((is_validated, kind))
                section.touched.clear()

    def _turn(self, readers: tuple[Reader, Reader], now_ns: int, effects: list[Effect]) -> bool:
        """Run stale components, from where we stopped, up to the first that changes something."""
        while self._stale:
            ahead = self._stale >> self._position << self._position
            index = _lowest_bit(ahead or self._stale)
            component = COMPONENTS[index]
            reader = readers[component.on_certifications]
            reader.wake_ns = NEVER
            try:
                mutations = component.run(reader)
            except Unavailable:  # a registry version that is not here yet: asked again with it
                mutations = []
            self._deadlines[index] = reader.wake_ns
            self._position = (index + 1) % len(COMPONENTS)
            if not mutations:
                self._stale &= ~(1 << index)
                continue
            changes = reader.pool.apply(mutations, now_ns)
            if component.on_certifications:
                self._emit(changes, effects)
            else:
                self._apply(changes, effects)
            self._notice(reader.pool)
            if self.chain.summaries_seen != self._summaries_seen:
                self._summaries_seen = self.chain.summaries_seen
                self._stale |= readers_of(SUMMARY)
            self._look_again()
            return True
        return False

    def _assert_at_rest(self, readers: tuple[Reader, Reader]) -> None:
        for component in COMPONENTS:
            try:
                left = component.run(readers[component.on_certifications])
            except Unavailable:
                continue
            assert not left, f"{component.name} was passed over: {left[0]}"

    def _apply(self, changes: Changes, effects: list[Effect]) -> None:
        for artifact in changes.added:
            if isinstance(artifact, Cup):
                self._adopt(cup.decode(artifact.package), effects)
            else:
                self.chain.add(artifact)
        low = [a.height for a in changes.removed if isinstance(a, BlockProposal)]
        if low:
            self.chain.purge_below(max(low) + 1)
        self._emit(changes, effects)

    def _emit(self, changes: Changes, effects: list[Effect]) -> None:
        if changes.added:
            effects.append(Persist(changes.added))
            effects.extend(Send(a) for a in changes.added if self.is_gossiped(a))
        effects.extend(Misbehaved(a, reason) for a, reason in changes.invalid)

    def _adopt(self, package: CatchUpPackage, effects: list[Effect]) -> None:
        jumped = package.height > self.chain.notarized_height
        self.chain.set_cup(package)
        effects.append(AdoptCup(package))
        if jumped:
            effects.append(Refresh())

    def is_gossiped(self, artifact: Artifact) -> bool:
        """Full artifacts are passed on by everyone, shares by their signer."""
        return not isinstance(artifact, SHARES) or artifact.signer == self.context.node

    def offered(self) -> list[Artifact]:
        """Return all that a newly connected peer should be sent, the CUP first."""
        rest = [a for a in self.pool.validated if not isinstance(a, Cup)]
        rest.sort(key=lambda a: a.height)
        cups = list(self.pool.validated.of_kind(Cup))
        both = [*cups, *rest, *self.certifications.validated]
        return [a for a in both if self.is_gossiped(a)]

    def own_share_height(self) -> int:
        """Return the highest height for which this node's certification share is in the pool."""
        shares = self.certifications.validated.of_kind(CertificationShare)
        return max([s.height for s in shares if s.signer == self.context.node], default=0)

    def divergence(self) -> tuple[CertificationShare, CertificationShare] | None:
        """Return two valid shares for different roots at the first uncertified height, if any."""
        shares = self.certifications.validated.at(
            CertificationShare, self.context.state.certified_height + 1
        )
        return next(((shares[0], s) for s in shares[1:] if s.root != shares[0].root), None)

    def _deliver_certifications(self, effects: list[Effect]) -> None:
        state = self.context.state
        for height in state.uncertified_heights():
            if height <= self._delivered:
                continue
            found = self.certifications.validated.at(Certification, height)
            if not found:
                continue
            ours = state.certified_root_at(height)
            if ours is not None and ours[0] != found[0].root:
                if not self._diverged:
                    self._diverged = True
                    effects.append(Diverged(Height(height)))
                return
            self._delivered = height
            effects.append(DeliverCertification(found[0]))

    def _deliver_batch(self, reader: Reader, effects: list[Effect]) -> None:
        state, package = self.context.state, self.chain.cup
        if self._executing is not None or self._fetching is not None:
            return
        batch = next_batch(reader)
        if batch is not None:
            self._executing = batch.height
            effects.append(Execute(batch))
        elif state.latest_height < package.height:
            self._fetching = package.height
            effects.append(FetchState(package.height, package.state_hash))

    def wake_ns(self, now_ns: int) -> int:
        """Return when the passing of time alone may next make a difference."""
        return min(self._wake_ns, now_ns + IDLE_NS)


def _is_certification(artifact: Artifact) -> bool:
    return isinstance(artifact, Certification | CertificationShare)


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
