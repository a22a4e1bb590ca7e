"""Byzantine members beyond lies and floods: they withhold, stretch time, accuse, make three blocks.

Like those of `simulation.adversary` they run the real code with their real keys; what they do
differently is which of its effects they carry out, what they send beside it, and what their clock
shows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from replica.consensus.validator import CLOCK_SLACK_NS
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    EquivocationProof,
    Notarization,
    Run,
)
from simulation.adversary import proof_of, signed_block, twin_of
from simulation.genesis import NOTARY_DELAY_MS
from simulation.scheduler import MS, draw

if TYPE_CHECKING:
    from simulation.subnet import Node, World

LATELY = 16
"""Blocks that an accuser keeps, to send them on when another release has begun."""
WITHHELD_FOR = 8
"""Heights for which a withholder keeps to one way of withholding."""


def own(node: Node, artifact: Artifact) -> bool:
    """Whether a node made an artifact itself, and by its name."""
    names = (getattr(artifact, n, None) for n in ("signer", "maker", "dealer", "accuser"))
    return node.keys.node in names


class Withholder:
    """Sends what it owes to one peer, to f + 1, or to all too late; passes nothing on."""

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self, node: Node, artifact: Artifact) -> None:
        world, network = self.world, self.world.network
        if not own(node, artifact):
            return
        world.counts["withheld"] += 1
        term = artifact.height // WITHHELD_FOR
        dice = draw(world.seed, "withhold", node.index, term)
        if dice < 0.4:
            delay = int((40 + 360 * draw(world.seed, "late", artifact)) * MS)
            world.at(world.now + delay, network.broadcast, node.index, artifact)
            return
        peers = list(network.targets(node.index))
        first = int(draw(world.seed, "favoured", node.index, term) * len(peers))
        count = 1 if dice < 0.7 else (world.plan.nodes - 1) // 3 + 1
        for k in range(count):
            network.send(node.index, peers[(first + k) % len(peers)], artifact)


def stretched(node: Node, now_ns: int, wall_ns: int) -> int:
    """Return the clock of a maker whose blocks are as late as others let pass in time.

    They may wait for it until they would sign it: one notary delay, beyond the slack.
    """
    assert node.driver is not None
    chain, pool = node.driver.chain, node.driver.pool.validated
    tips = chain.notarized_at(chain.notarized_height)
    seen = pool.first_time_at(Notarization, chain.notarized_height)
    here = wall_ns
    if tips and seen is not None:
        here = max(here, tips[0].block.context.time_ns + now_ns - seen)
    return here + CLOCK_SLACK_NS + (NOTARY_DELAY_MS - 1) * MS


class Accuser:
    """Proves equivocation by any two signatures of a maker; sends on what others can't judge."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._seen: dict[tuple[int, object, int, int], BlockProposal] = {}
        """The first block by accuser, maker, epoch and height."""
        self._said: set[tuple[int, object, int, int]] = set()
        self._lately: dict[int, deque[BlockProposal]] = {}

    def seen(self, node: Node, artifact: Artifact) -> None:
        """Look at what arrives."""
        if not isinstance(artifact, BlockProposal) or node.driver is None:
            return
        self._echo(node, artifact)
        key = (node.index, artifact.maker, artifact.epoch, artifact.height)
        first = self._seen.setdefault(key, artifact)
        if first != artifact and first.block != artifact.block and key not in self._said:
            self._said.add(key)
            self._accuse(node, first, artifact)

    def _echo(self, node: Node, proposal: BlockProposal) -> None:
        """Send blocks of the release before to who runs the next one already."""
        seen = self._lately.setdefault(node.index, deque(maxlen=LATELY))
        if seen and seen[-1].block.version != proposal.block.version:
            for old in seen:
                self.world.counts["echoes"] += 1
                self.world.network.broadcast(node.index, old)
        seen.append(proposal)

    def _accuse(self, node: Node, one: BlockProposal, two: BlockProposal) -> None:
        honest = {n.keys.node for n in self.world.nodes if self.world.is_honest(n)}
        self.world.counts["honest makers accused"] += one.maker in honest
        for run in (one.block.run, two.block.run):
            self.world.network.broadcast(node.index, proof_of(one, two, run))
            self._accuse_itself(node, two, run)

    def _accuse_itself(self, node: Node, like: BlockProposal, run: Run) -> None:
        self.world.counts["self-accusations"] += 1
        block = replace(like.block, version=run.release, run_start=run.start)
        first, second = [
            signed_block(node, replace(block, parent=bytes(31) + bytes([k])), like.payload)
            for k in range(2)
        ]
        self.world.network.broadcast(node.index, proof_of(first, second, run))

    def send(self, node: Node, artifact: Artifact) -> None:
        if isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node:
            if self.world.counts["release"]:
                return  # what it accuses itself of silences it, and nobody misses a block of it
            if draw(self.world.seed, "itself", node.index, artifact.height) < 0.3:
                self._accuse_itself(node, artifact, artifact.block.run)
        self.world.network.pass_on(node.index, node.keys.node, artifact)


class Tripler:
    """Makes three blocks of a height: one peer gets the first two, a little late, others the third.

    So who has two of them already, and with them a proof, has to take the third when the others
    notarize it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._thirds: dict[bytes, int] = {}
        """Who got the other two, by the hash of the third."""

    def send(self, node: Node, artifact: Artifact) -> None:
        world, network = self.world, self.world.network
        if isinstance(artifact, EquivocationProof) and artifact.maker == node.keys.node:
            return
        if not isinstance(artifact, BlockProposal) or artifact.maker != node.keys.node:
            network.pass_on(node.index, node.keys.node, artifact)
            return
        third, second = _later(node, artifact, 2), _later(node, artifact, 1)
        peers = [n.index for n in world.honest if n.index != node.index]
        victim = peers[int(draw(world.seed, "victim", node.index, artifact.height) * len(peers))]
        self._thirds[artifacts.block_hash(third.block)] = victim
        world.counts["three blocks"] += 1
        for peer in network.targets(node.index):
            if peer != victim:
                network.send(node.index, peer, third)
        delay = int((5 + 30 * draw(world.seed, "second", node.index, artifact.height)) * MS)
        for proposal in (artifact, second):
            world.at(world.now + delay, network.send, node.index, victim, proposal)
        _take(node, third, world.now)
        world.cast.equivocator.sign(node, third)

    def kept(self, node: Node, artifact: Artifact) -> None:
        """Count where one who saw the first two takes the third."""
        if isinstance(artifact, Notarization) and artifact.block in self._thirds:
            if self._thirds[artifact.block] == node.index:
                self.world.counts["third blocks notarized"] += 1


def _take(node: Node, proposal: BlockProposal, now_ns: int) -> None:
    """Have a Byzantine node's own replica hold a block of its own beside the one that it made."""
    assert node.driver is not None
    node.driver.pool.validated.insert(proposal, now_ns)
    node.driver.chain.add(proposal)
    node.durable[proposal] = None


def _later(node: Node, proposal: BlockProposal, count: int) -> BlockProposal:
    for _ in range(count):
        proposal = twin_of(node, proposal)
    return proposal
