"""The driver: artifacts and time in, effects out.

Runs the components in turn until none has anything to change; a component is asked again only when
something that it reads has changed (see `components`). Holds no clock, socket or file: the
shell (or the simulator) feeds it and carries out the effects in the order in which they are given.
`Persist` always precedes the `Send` of what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replica.consensus import answers, signed
from replica.consensus.asking import ANY_HEIGHT, CERTIFICATIONS, PACKAGES, ROUNDS, Asking
from replica.consensus.chain import Chain
from replica.consensus.components import (
    ALL,
    COMPONENTS,
    REGISTRY,
    SIGNERS,
    STATE,
    SUMMARY,
    Component,
    readers_of,
)
from replica.consensus.delivery import next_batch
from replica.consensus.door import Admission, Door
from replica.consensus.effects import (
    AdoptCup,
    Ask,
    AskSigned,
    BadAnswer,
    DeliverCertification,
    Diverged,
    Effect,
    Execute,
    FetchState,
    FoundOld,
    Misbehaved,
    Persist,
    Send,
)
from replica.consensus.horizon import LOOKAHEAD
from replica.consensus.old_copy import OldCopyWatch
from replica.consensus.pool import Changes, Mutation, Pool
from replica.consensus.quota import Quotas
from replica.consensus.reader import NEVER, Context, Reader, Status
from replica.protocol import artifacts as formats
from replica.protocol import cup
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
    Notarization,
    Run,
)
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, NodeId
from replica.protocol.signed import Question, Signed

STEPS_MAX = 1_000
"""Turns of components in one step; what is left is done in the next, and others come in between."""
IDLE_NS = 1_000_000_000
CLOCK_STEP_NS = 1_000_000
"""By more than this a clock differs only when it was set."""


class Driver:
    """Consensus and certification of one replica in one epoch."""

    def __init__(
        self, context: Context, package: CatchUpPackage, now_ns: int, *, exhaustive: bool = False
    ) -> None:
        """`exhaustive` (tests): assert after every step that no component was passed over."""
        self.context = context
        self.quotas = Quotas()
        self.pool = Pool(self.quotas)
        self.certifications = Pool(self.quotas)
        self.asking = Asking(now_ns)
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
        self.door = Door(self._both_readers[0], self.certifications, self.quotas, self.asking)
        self.past = OldCopyWatch(self._both_readers[0])
        self._was_silent = True
        self.tag = formats.run_tag(package.epoch, self.run)
        """What tells this replica's artifacts from those of another run."""
        self._executing: int | None = None
        self._fetching: int | None = None
        self._delivered = 0
        self._diverged = False

    def restore(self, artifacts: Iterable[Artifact], now_ns: int) -> None:
        """Take back what this node had validated before it stopped."""
        packages = [a for a in artifacts if isinstance(a, Cup) and a.epoch == self.chain.cup.epoch]
        for known in sorted(packages, key=lambda a: a.height):
            if known.height > self.chain.cup.height:
                self.chain.set_cup(cup.package_of(known))
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
        self.past.restored(ordered)

    # -- input

    def receive(self, artifact: Artifact, sender: NodeId, now_ns: int) -> bool:
        """Admit an artifact from a peer to the unvalidated pool; False when it is not wanted."""
        return self.take_in(artifact, sender, now_ns).is_in

    def take_in(self, artifact: Artifact, sender: NodeId, now_ns: int) -> Admission:
        """Do as `receive`, and say what became of it."""
        return self.door.admit(artifact, sender, now_ns)

    def is_late(self, kind: type, height: int) -> bool:
        """Return whether nothing of a kind and height can matter any more: need not be decoded."""
        return self.door.horizon.is_late(kind, height)

    def is_worth_decoding(self, kind: type, height: int, sender: NodeId) -> bool:
        """Whether an artifact of which only this is known may be admitted; else it is noted."""
        return self.door.is_worth_decoding(kind, height, sender)

    def held_bytes(self, peer: NodeId) -> int:
        """Return how many bytes of what a peer sent wait for a verdict; see `quota`."""
        return self.quotas.held_bytes(peer)

    def connected(self, peer: NodeId) -> None:
        """A peer can be reached (again)."""
        self.past.connected(peer)

    def signed_answer(self, peer: NodeId, answer: Signed) -> None:
        """Take what a peer holds of this node's signatures: see `AskSigned`."""
        self.past.answered(peer, answer)

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
        self.past.count()
        self._mind_silence()
        for pool in (self.pool, self.certifications):
            self._notice(pool)
        readers = self._readers(now_ns, wall_ns)
        if self._stale:
            for _ in range(STEPS_MAX):
                if not self._turn(readers, now_ns, effects):
                    break
            if self._exhaustive and not self._stale:
                self._assert_at_rest(readers)
            self._wake_ns = min(self._deadlines)
            effects = _persisted_at_once(effects)
        self._deliver_certifications(effects)
        self._deliver_batch(readers[0], effects)
        self._blame(effects)
        self._ask(readers[0], now_ns, effects)
        effects += self.past.effects(self.peers, now_ns)
        return effects

    def _mind_silence(self) -> None:
        """Whoever signs looks again when this node may."""
        if self._was_silent != self.past.is_silent:
            self._was_silent = not self._was_silent
            self._stale |= SIGNERS

    def _blame(self, effects: list[Effect]) -> None:
        """Tell what was wrong at the door already."""
        effects.extend(Misbehaved(*fault) for fault in self.door.take_faults())

    def _ask(self, reader: Reader, now_ns: int, effects: list[Effect]) -> None:
        """Ask again for what was refused and can matter now, and for everything when we stand."""
        chain, asking = self.chain, self.asking
        certified = self.context.state.certified_height
        progress = (chain.notarized_height, chain.finalized_height, certified, chain.cup.height)
        if asking.stands(progress, now_ns):
            self._want_everything(reader)
        effects += asking.due(self.peers, self.door.horizon.bounds, now_ns)

    def _want_everything(self, reader: Reader) -> None:
        chain, asking, peers = self.chain, self.asking, sorted(self.peers())
        asking.want_group(peers, PACKAGES, chain.cup.height + 1, ANY_HEIGHT)
        if reader.status is Status.HALTED:
            return
        finalized = chain.finalized_height
        certified = self.context.state.certified_height
        asking.want_group(peers, ROUNDS, finalized + 1, chain.notarized_height + 2)
        asking.want_group(peers, CERTIFICATIONS, certified + 1, finalized)

    def peers(self) -> frozenset[NodeId]:
        """Return the other members by the newest registry, and who has a part in this interval."""
        registry = self.context.registry
        members = registry.subnet(registry.latest_version).members
        return self.chain.cup.holders.union(members) - {self.context.node}

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
            mutations = self._asked(component, reader)
            self._deadlines[index] = reader.wake_ns
            self._position = (index + 1) % len(COMPONENTS)
            if not mutations:
                self._stale &= ~(1 << index)
                continue
            changes = reader.pool.apply(mutations, now_ns)
            if component.signs:
                self.past.made(changes.added)
            elif not component.on_certifications:
                self.past.look(changes.added)
            if component.on_certifications:
                self._emit(changes, effects)
            else:
                self._apply(changes, effects)
            self._mind_silence()
            self._notice(reader.pool)
            if self.chain.summaries_seen != self._summaries_seen:
                self._summaries_seen = self.chain.summaries_seen
                self._stale |= readers_of(SUMMARY)
            self._look_again()
            return True
        return False

    def _asked(self, component: Component, reader: Reader) -> list[Mutation]:
        """Return what a component wants changed; whoever signs is not asked while we are silent."""
        if component.signs and self.past.is_silent:
            return []
        try:
            return component.run(reader)
        except Unavailable:  # a registry version that is not here yet: asked again with it
            return []

    def _assert_at_rest(self, readers: tuple[Reader, Reader]) -> None:
        for component in COMPONENTS:
            left = self._asked(component, readers[component.on_certifications])
            assert not left, f"{component.name} was passed over: {left[0]}"

    def _apply(self, changes: Changes, effects: list[Effect]) -> None:
        for artifact in changes.added:
            if isinstance(artifact, Cup):
                self._adopt(cup.package_of(artifact), effects)
            else:
                self.chain.add(artifact)
        low = [a.height for a in changes.removed if isinstance(a, BlockProposal)]
        if low:
            self.chain.purge_below(max(low) + 1)
        for notarization, senders in changes.proven:
            self._want_block(notarization, senders)
        self._emit(changes, effects)

    def _want_block(self, notarization: Notarization, senders: Iterable[NodeId]) -> None:
        """Ask who sent a good notarization for its block, unless it waits here."""
        height = notarization.height
        waiting = self.pool.unvalidated.at(BlockProposal, height)
        if any(formats.block_hash(p.block) == notarization.block for p in waiting):
            return
        for sender in senders:
            self.asking.want(sender, (BlockProposal,), height, height)

    def _emit(self, changes: Changes, effects: list[Effect]) -> None:
        if changes.added:
            effects.append(Persist(changes.added))
            effects.extend(Send(a) for a in changes.added if self.is_gossiped(a))
        effects.extend(Misbehaved(*fault) for fault in changes.invalid)

    def _adopt(self, package: CatchUpPackage, effects: list[Effect]) -> None:
        jumped = package.height > self.chain.notarized_height
        self.chain.set_cup(package)
        effects.append(AdoptCup(package))
        if jumped:  # earlier artifacts were beyond the bounds
            for group in (ROUNDS, CERTIFICATIONS):
                first, last = package.height + 1, package.height + LOOKAHEAD
                self.asking.want_group(sorted(self.peers()), group, first, last)

    def is_gossiped(self, artifact: Artifact) -> bool:
        return answers.is_gossiped(artifact, self.context.node)

    def offered(self) -> list[Artifact]:
        """Return all that a newly connected peer should be sent, the CUP first."""
        return answers.offered(self.pool, self.certifications, self.context.node)

    def answer(self, kinds: Sequence[int], first: int, last: int) -> list[Artifact]:
        """Return what a peer that asks is sent: see `answers.answer`."""
        both = (self.pool, self.certifications)
        return answers.answer(both, self.context.node, kinds, first, last)

    def signed_by(self, node: NodeId, question: Question) -> Signed | None:
        """Return what this replica holds of a node's signatures; None: it is in another run.

        Also while it is halted, silent, or waits for such answers itself.
        """
        if (question.epoch, question.run) != (self.chain.cup.epoch, self.run):
            return None
        return signed.held(self.pool, node, question)

    @property
    def is_old_copy(self) -> bool:
        """Whether this node knows that it forgot what it signed, and is silent for it."""
        return self.past.until is not None

    @property
    def signing(self) -> str:
        """Whether this node signs, or what it waits for, for people to read."""
        return self.past.describe()

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
        if self._stale or self.door.faults:
            return now_ns
        wake_ns = min(self._wake_ns, self.asking.wake_ns, self.past.wake_ns())
        return min(wake_ns, now_ns + IDLE_NS)


def _persisted_at_once(effects: list[Effect]) -> list[Effect]:
    """Return the effects with all that is to be made durable where the first of it was: a disk
    takes as long for one artifact as for a step's."""
    kept = [e for e in effects if isinstance(e, Persist)]
    if len(kept) < 2:
        return effects
    at = effects.index(kept[0])
    rest = [e for e in effects[at:] if not isinstance(e, Persist)]
    return [*effects[:at], Persist(tuple(a for e in kept for a in e.artifacts)), *rest]


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


__all__ = [
    "AdoptCup",
    "Ask",
    "AskSigned",
    "BadAnswer",
    "DeliverCertification",
    "Diverged",
    "Driver",
    "Effect",
    "Execute",
    "FetchState",
    "FoundOld",
    "Misbehaved",
    "Persist",
    "Send",
]
