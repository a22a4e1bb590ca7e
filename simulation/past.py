"""What nodes ask about their own past when they start, on its way; and who answers what.

Some Byzantine members don't answer, answer rubbish in the asking node's name, or show what they
signed themselves. Nobody who lost nothing may take itself for an old copy, and nobody may blame an
honest node for its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from replica.consensus import driver as d
from replica.consensus.old_copy import OldCopyWatch
from replica.consensus.reader import NEVER
from replica.protocol.artifacts import Artifact, FinalizationShare, Notarization, NotarizationShare
from replica.protocol.ids import Height, NodeId
from replica.protocol.signed import Question, Signed
from simulation.checker import Violation
from simulation.scheduler import MS, draw

if TYPE_CHECKING:
    from simulation.subnet import Node, World

SILENT, FORGES, SHOWS_ITS_OWN, SAYS_NOTHING = 0.25, 0.5, 0.6, 0.75
"""Up to which draw a Byzantine member does what; above it is honest."""


class Heedless(OldCopyWatch):
    """Of a Byzantine node: signs whatever it likes, whatever it signed before."""

    def count(self) -> None:
        self.is_waiting = False

    def effects(self, peers: Callable[[], Iterable[NodeId]], now_ns: int) -> list[d.Effect]:
        return []

    def wake_ns(self) -> int:
        return NEVER

    def look(self, artifacts: Iterable[Artifact]) -> None: ...
    def made(self, artifacts: Iterable[Artifact]) -> None: ...


def lie(seed: int, peer: d.Driver, asks: NodeId, question: Question, now_ns: int) -> Signed | None:
    """Return what a Byzantine member answers; None: nothing."""
    dice = draw(seed, "answer", peer.context.node, asks, now_ns)
    if dice < SILENT:
        return None
    if dice < FORGES:
        return _forged(peer, asks, question)
    if dice < SHOWS_ITS_OWN:
        return peer.signed_by(peer.context.node, question)
    return Signed() if dice < SAYS_NOTHING else peer.signed_by(asks, question)


def _forged(peer: d.Driver, asks: NodeId, question: Question) -> Signed:
    """Sign in another's name for blocks near and far, as well as it can."""
    height, me = Height(question.above + 1_000), peer.context.node
    shares = [
        kind(question.epoch, height, bytes(32), asks, bytes(24))
        for kind in (NotarizationShare, FinalizationShare)
    ]
    full = tuple(
        [
            Notarization(question.epoch, Height(h), bytes(32), (asks, me), bytes(24))
            for h in (height, question.above + 1)
        ]
    )
    true = peer.signed_by(asks, question) or Signed()
    headers = tuple([replace(h, signature=bytes(64)) for h in true.headers])
    return Signed(headers, (shares[0],), (shares[1],), full)  # type: ignore[arg-type]


class Past:
    """Carries questions and answers between the nodes of a simulated subnet."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.forgot: set[int] = set()
        """Nodes whose disk was lost or put back."""

    def carry_out(self, node: Node, effect: d.AskSigned | d.BadAnswer | d.FoundOld) -> None:
        world = self.world
        if isinstance(effect, d.AskSigned):
            for peer in world.nodes:
                if peer.keys.node == effect.peer and self._is_open(node, peer):
                    self._after_delay(node, peer, self._asked, effect.question)
        elif isinstance(effect, d.BadAnswer):
            world.counts["bad answers"] += 1
            if any(n.keys.node == effect.peer and world.is_honest(n) for n in world.nodes):
                raise Violation(f"node {node.index} blames an honest one: {effect.reason} (S22)")
        else:
            world.counts["old copies found out"] += 1
            world.cast.old_copies.found_out(node)
            world.note(f"node {node.index} is an old copy until {effect.until}")
            if world.is_honest(node) and node.index not in self.forgot:
                raise Violation(f"node {node.index} lost nothing, and takes itself for an old copy")

    def connected(self, node: Node, peer: Node) -> None:
        for one, other in ((node, peer), (peer, node)):
            assert one.driver is not None
            one.driver.connected(other.keys.node)
            if one.driver.past.is_waiting:
                self.world.wake(one, self.world.now)

    def _is_open(self, one: Node, other: Node) -> bool:
        return one is not other and other.driver is not None

    def _after_delay(
        self,
        source: Node,
        target: Node,
        act: Callable[[Node, Node, Question | Signed], None],
        what: Question | Signed,
    ) -> None:
        """Have something come to a node; on its way it may be lost, and is asked for again."""
        world, plan = self.world, self.world.plan
        key = (world.seed, "past", source.index, target.index, world.now)
        if draw(*key, "lost") < plan.loss:
            return
        delay = plan.delay_ms_min + (plan.delay_ms_max - plan.delay_ms_min) * draw(*key)
        lives = (source.incarnation, target.incarnation)

        def arrive() -> None:
            is_here = (source.incarnation, target.incarnation) == lives
            if is_here and world.network.reachable(source.index, target.index):
                act(source, target, what)

        world.at(world.now + int(delay * MS), arrive)

    def _asked(self, node: Node, peer: Node, question: Question | Signed) -> None:
        """A peer is asked, also while it is halted, silent or waits itself; not while it pauses."""
        world = self.world
        assert isinstance(question, Question)
        if peer.driver is None or peer.paused:
            return
        asks = node.keys.node
        if world.finds_out(peer):
            answer = peer.driver.signed_by(asks, question)
        else:
            answer = lie(world.seed, peer.driver, asks, question, world.now)
        if answer is not None:
            self._after_delay(peer, node, self._answered, answer)

    def _answered(self, peer: Node, node: Node, answer: Question | Signed) -> None:
        assert isinstance(answer, Signed)
        if node.driver is not None:
            node.driver.signed_answer(peer.keys.node, answer)
            self.world.wake(node, self.world.now)
