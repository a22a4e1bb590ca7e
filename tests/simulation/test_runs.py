"""Releases change under load: what was signed in one run proves nothing in another.

While a subnet halts for its next release the old one makes empty blocks above the package at which
it ends; the next one makes its own at the same heights. One member collects both signatures of
every honest maker, and accuses them, and itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from replica.client import local_registry as keys
from replica.consensus import block_maker
from replica.consensus import driver as d
from replica.consensus.delivery import Batch, Randomness
from replica.consensus.reader import Context, Reader
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    Block,
    BlockProposal,
    EquivocationProof,
    Notarization,
    Run,
    ValidationContext,
)
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import Height, TimeNs
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation import genesis
from simulation.doubles import HashChain
from simulation.genesis import publish
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

HASHING_NS = 400 * MS
RESTART_NS = 30 * MS
BAD = 3


class SlowChain(HashChain):
    """Checkpoints whose root is known only after a while, as of a state of some 100 MB."""

    def __init__(self, world: Upgrading) -> None:
        super().__init__()
        self.world, self.made_at = world, dict[int, int]()

    def execute(self, batch: Batch) -> None:
        super().execute(batch)
        if batch.is_checkpoint:
            self.made_at[batch.height] = self.world.now
            self.world.at(self.world.now + HASHING_NS + MS, self.world.wake_all)

    def checkpoint_root_at(self, height: int) -> bytes | None:
        if self.world.now < self.made_at.get(height, 0) + HASHING_NS:
            return None
        return super().checkpoint_root_at(height)


class Upgrading(World):
    """A subnet whose nodes run the release of their package, and one member that accuses all."""

    def __init__(self, seed: int, nodes: int = 4) -> None:
        self.releases: dict[int, str] = {}
        self.blocks: dict[tuple[int, object], dict[bytes, BlockProposal]] = {}
        self.accused = 0
        self.proven: set[object] = set()
        """Makers whom some honest node took for equivocators."""
        plan = Plan(nodes=nodes, interval=19, delay_ms_max=5, equivocators=(nodes - 1,))
        super().__init__(seed, plan)
        self.checker.look = lambda _: None  # two runs have two blocks of one height

    def _new_state(self, index: int) -> HashChain:
        return SlowChain(self)

    def wake_all(self) -> None:
        for node in self.nodes:
            if node.driver is not None:
                self.wake(node, self.now)

    def context(self, node: Node, state: HashChain | None = None) -> Context:
        made = super().context(node, state)
        made.replica_version = self.releases.setdefault(node.index, "v1")
        return made

    def publish_release(self, release: str) -> None:
        key = keys.subnet_record(self.subnet)
        record = parse(pb.SubnetRecord, self.nns.need(key))
        record.replica_version_id = release
        publish(self.nns, [Mutation(key, serialize(record))])
        for node in self.nodes:
            if node.driver is not None:
                self.registry_arrived(node)

    def adopt(self, node: Node, package: CatchUpPackage) -> None:
        super().adopt(node, package)
        view = self.nns.view(self.subnet, package.registry_version)
        assert node.driver is not None
        if Run(view.replica_version, package.run_start) != node.driver.run:
            self.releases[node.index] = view.replica_version
            node.package = package
            self.stop(node)
            node.durable = {}
            self.at(self.now + RESTART_NS, self.start, node)

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        if isinstance(effect, d.Persist) and node.index != BAD:
            self.proven |= {a.maker for a in effect.artifacts if isinstance(a, EquivocationProof)}
        super()._carry_out(node, effect)

    def send(self, node: Node, artifact: Artifact) -> None:
        if node.index == BAD and isinstance(artifact, BlockProposal):
            if artifact.maker == node.keys.node:
                return  # it is a maker that makes nothing
        super().send(node, artifact)

    def _arrive(self, source: int, target: int, artifact: Artifact) -> None:
        if target == BAD and isinstance(artifact, BlockProposal):
            known = self.blocks.setdefault((artifact.height, artifact.maker), {})
            known[artifacts.block_hash(artifact.block)] = artifact
            if len(known) == 2:
                self._accuse(*known.values())
        super()._arrive(source, target, artifact)

    def _accuse(self, one: BlockProposal, other: BlockProposal) -> None:
        """Say that an honest maker made both, in either run, and that one made two itself."""
        bad = self.nodes[BAD].keys
        self.accused += 1
        for run in {one.block.run, other.block.run}:
            at = (one.epoch, one.height, run)
            hashes = [artifacts.block_hash(p.block) for p in (one, other)]
            signed = (hashes[0], one.signature, hashes[1], other.signature)
            self.network.broadcast(BAD, EquivocationProof(*at, one.maker, *signed))
            own = [
                bad.signing.sign(
                    artifacts.block_message(self.subnet, one.epoch, run, one.height, h)
                )
                for h in hashes
            ]
            guilty = (hashes[0], own[0], hashes[1], own[1])
            self.network.broadcast(BAD, EquivocationProof(*at, bad.node, *guilty))


def heights(world: World) -> list[int]:
    """Of the honest nodes; 0 of one that is restarting."""
    return [n.driver.chain.finalized_height if n.driver else 0 for n in world.nodes[:BAD]]


@pytest.mark.parametrize("seed", range(4))
def test_two_releases_at_one_height_accuse_nobody(seed: int) -> None:
    world = Upgrading(seed)
    world.run(lambda: False, SECOND)
    for release in ("v2", "v1"):  # and back: another run of the first one
        world.publish_release(release)
        before = len({*world.blocks})
        assert world.run(lambda r=release: set(world.releases.values()) == {r}, 20 * SECOND)  # type: ignore[misc]
        assert len({*world.blocks}) > before
        began = max(heights(world))
        assert world.run(lambda b=began: min(heights(world)) >= b + 30, 10 * SECOND)  # type: ignore[misc]
    assert world.accused > 0, "releases overlapped at some height"
    assert world.proven <= {world.nodes[BAD].keys.node}


def test_a_run_that_ended_stays_ended_when_its_release_is_called_back() -> None:
    """v2 and back to v1 at once: who runs v1 then runs it from the second change on."""
    world = Upgrading(7)
    world.run(lambda: False, SECOND)
    world.publish_release("v2")
    assert world.run(lambda: "v2" in world.releases.values(), 20 * SECOND)
    world.publish_release("v1")
    assert world.run(lambda: set(world.releases.values()) == {"v1"}, 30 * SECOND)
    runs = {n.driver.run for n in world.nodes if n.driver}
    assert all(r.start > 0 for r in runs if r.release == "v1"), "not the run of genesis"
    began = min(heights(world))
    assert world.run(lambda: min(heights(world)) >= began + 30, 10 * SECOND)


def test_no_height_is_without_makers_when_all_of_them_are_proven_guilty() -> None:
    """As when old copies of two of four nodes signed once more: rank f + 1 steps in."""
    world = World(3, Plan(interval=49, equivocators=(BAD,)))
    assert world.run(lambda: min(heights(world)) >= 5, 20 * SECOND)
    first = max(heights(world)) + 4
    guilty = [n for n in world.nodes if n.index != 0]
    for height in range(first, first + 10):
        for node in guilty:
            proof = two_signatures(world, node, Height(height))
            for witness in world.nodes:
                assert witness.driver is not None
                witness.driver.receive(proof, world.nodes[BAD].keys.node, world.now)
    assert world.run(lambda: min(heights(world)) >= first + 15, 20 * SECOND)
    driver = world.nodes[0].driver
    assert driver is not None
    entries = [driver.chain.finalized_block(h) for h in range(first, first + 10)]
    assert any(e is not None and e.block.rank > 1 for e in entries), "rank f + 1 stepped in"


class OneBad(World):
    """One member is not held to the protocol; it runs the code as it is in the test."""

    def is_honest(self, node: Node) -> bool:
        return node.index != BAD and super().is_honest(node)


def two_signatures(world: World, node: Node, height: Height) -> EquivocationProof:
    driver = world.nodes[0].driver
    assert driver is not None
    epoch, hashes = driver.chain.cup.epoch, (b"1" * 32, b"2" * 32)
    one, two = [
        node.keys.signing.sign(artifacts.block_message(world.subnet, epoch, driver.run, height, h))
        for h in hashes
    ]
    return EquivocationProof(
        epoch, height, driver.run, node.keys.node, hashes[0], one, hashes[1], two
    )


def test_a_dishonest_makers_lead_over_the_clock_does_not_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(genesis, "NOTARY_DELAY_MS", 40)
    monkeypatch.setattr(genesis, "UNIT_DELAY_MS", 400)
    world = OneBad(1, Plan(interval=99, delay_ms_max=3))
    bad, honest = world.nodes[BAD].keys.node, block_maker._context

    def early(reader: Reader, parent: Block) -> ValidationContext | None:
        """Date a block as late as others may just take it when they sign."""
        made = honest(reader, parent)
        if made is None or reader.node != bad:
            return made
        seen = reader.pool.validated.first_time_at(Notarization, parent.height)
        passed = reader.now_ns - (reader.now_ns if seen is None else seen)
        latest = max(reader.wall_ns, parent.context.time_ns + passed) + 89 * MS
        return replace(made, time_ns=TimeNs(latest))

    monkeypatch.setattr(block_maker, "_context", early)
    world.run(lambda: False, 60 * SECOND)
    assert world.nodes[0].driver is not None
    tip = world.nodes[0].driver.chain.finalized_tip.block
    assert tip.context.time_ns - world.now < SECOND


def test_nobody_is_answered_with_randomness_known_before_the_block() -> None:
    drawn = Randomness(Height(10), b"r" * 32)
    assert drawn.for_request(Height(9)) == b"r" * 32
    with pytest.raises(ValueError, match="answers no request"):
        drawn.for_request(Height(10))
