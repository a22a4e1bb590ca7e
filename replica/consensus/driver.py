"""The driver: artifacts and time in, effects out.

Runs the components in turn until none has anything to change. Holds no clock, socket or file: the
shell (or the simulator) feeds it and carries out the effects in the order in which they are given.
`Persist` always precedes the `Send` of what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from replica.certification import certifier
from replica.consensus import (
    aggregator,
    beacon_maker,
    block_maker,
    cup_maker,
    finalizer,
    notary,
    purger,
    validator,
)
from replica.consensus.chain import Chain
from replica.consensus.delivery import Batch, next_batch
from replica.consensus.pool import Changes, Mutation, Pool
from replica.consensus.reader import Context, Reader, Status
from replica.protocol import cup
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
)
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import Height

LOOKAHEAD = 400
"""Artifacts further above the notarized tip are not admitted; they are asked for again later."""
STEPS_MAX = 10_000
IDLE_NS = 1_000_000_000


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

_COMPONENTS: tuple[Callable[[Reader], list[Mutation]], ...] = (
    finalizer.make,
    cup_maker.make,
    purger.make,
    aggregator.make,
    notary.make,
    beacon_maker.make_beacon,
    beacon_maker.make_tape,
    block_maker.make,
    validator.validate,
)


class Driver:
    """Consensus and certification of one replica in one epoch."""

    def __init__(self, context: Context, package: CatchUpPackage, now_ns: int) -> None:
        self.context = context
        self.pool = Pool()
        self.certifications = Pool()
        self.chain = Chain(package)
        self.started_ns = now_ns
        self._position = 0
        self._executing: int | None = None
        self._fetching: int | None = None
        self._delivered = 0
        self._diverged = False
        self._tips: tuple[int, ...] = ()

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

    def receive(self, artifact: Artifact, now_ns: int) -> bool:
        """Admit an artifact from a peer to the unvalidated pool; False when it is not wanted."""
        if artifact.epoch != self.chain.cup.epoch:
            return False
        if isinstance(artifact, Cup):
            return artifact.height > self.chain.cup.height and self.pool.insert_unvalidated(
                artifact, now_ns
            )
        if artifact.height > self.chain.notarized_height + LOOKAHEAD:
            return False
        if isinstance(artifact, Certification | CertificationShare):
            if artifact.height <= self.context.state.certified_height:
                return False
            return self.certifications.insert_unvalidated(artifact, now_ns)
        if artifact.height <= self.chain.cup.height:
            return False
        return self.pool.insert_unvalidated(artifact, now_ns)

    def executed(self, height: int) -> None:
        """The batch of a height was executed (the state view knows it)."""
        if self._executing is not None and height >= self._executing:
            self._executing = None

    def synced(self) -> None:
        """A state was fetched (the state view knows it), or fetching was given up."""
        self._fetching = None
        self._executing = None

    # -- output

    def reader(self, now_ns: int) -> Reader:
        return Reader(self.context, self.pool, self.chain, now_ns, self.started_ns)

    def step(self, now_ns: int) -> list[Effect]:
        """Run all components until none has anything to do; return the effects in order."""
        effects: list[Effect] = []
        for _ in range(STEPS_MAX):
            if not (self._consensus(now_ns, effects) or self._certification(now_ns, effects)):
                break
        else:
            raise AssertionError("the components of consensus never come to rest")
        self._deliver_certifications(now_ns, effects)
        self._deliver_batch(now_ns, effects)
        return effects

    def _consensus(self, now_ns: int, effects: list[Effect]) -> bool:
        reader = self.reader(now_ns)
        count = len(_COMPONENTS)
        for offset in range(count):
            index = (self._position + offset) % count
            component = _COMPONENTS[index]
            if component is purger.make and not self._has_moved():
                continue
            mutations = component(reader)
            if mutations:
                self._position = (index + 1) % count
                self._apply(self.pool.apply(mutations, now_ns), effects)
                return True
        return False

    def _has_moved(self) -> bool:
        """Whether a tip moved since the purger last ran: else it has nothing to forget."""
        chain = self.chain
        tips = (
            chain.cup.height,
            chain.finalized_height,
            chain.beacon_height,
            self.context.state.latest_height,
        )
        moved, self._tips = tips != self._tips, tips
        return moved

    def _certification(self, now_ns: int, effects: list[Effect]) -> bool:
        reader = Reader(self.context, self.certifications, self.chain, now_ns, self.started_ns)
        mutations = certifier.step(reader)
        if not mutations:
            return False
        changes = self.certifications.apply(mutations, now_ns)
        self._emit(changes, effects)
        return True

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

    def _deliver_certifications(self, now_ns: int, effects: list[Effect]) -> None:
        state = self.context.state
        for height in state.uncertified_heights():
            found = self.certifications.validated.at(Certification, height)
            if not found or height <= self._delivered:
                continue
            ours = state.certified_root_at(height)
            if ours is not None and ours[0] != found[0].root:
                if not self._diverged:
                    self._diverged = True
                    effects.append(Diverged(Height(height)))
                return
            self._delivered = height
            effects.append(DeliverCertification(found[0]))

    def _deliver_batch(self, now_ns: int, effects: list[Effect]) -> None:
        state, package = self.context.state, self.chain.cup
        if self._executing is not None or self._fetching is not None:
            return
        reader = self.reader(now_ns)
        if state.latest_height < package.height:
            batch = next_batch(reader)
            if batch is None:
                self._fetching = package.height
                effects.append(FetchState(package.height, package.state_hash))
                return
        else:
            batch = next_batch(reader)
        if batch is not None:
            self._executing = batch.height
            effects.append(Execute(batch))

    def wake_ns(self, now_ns: int) -> int:
        """Return when the passing of time alone may next make a difference."""
        reader = self.reader(now_ns)
        height = self.chain.notarized_height + 1
        times = [now_ns + IDLE_NS]
        start = reader.round_start_ns(height)
        if start is not None and reader.status is not Status.HALTED:
            ranks = reader.ranks(height) or ()
            times += [start + reader.maker_delay_ns(r, height) for r in range(len(ranks))]
            for rank in range(len(ranks)):
                delay = reader.notary_delay_ns(rank, height)
                if delay is not None:
                    times.append(start + delay)
        for proposal in self.pool.unvalidated.at(BlockProposal, height):
            times.append(proposal.block.context.time_ns - validator.CLOCK_SLACK_NS)
        return min(t for t in times if t > now_ns)
