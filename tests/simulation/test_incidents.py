"""What went wrong upstream, each as a scenario that passes here.

Source: reference list of incidents in the Internet Computer's consensus; those that are plain fault
plans lie under tests/scenarios.
"""

from __future__ import annotations

import pytest

from replica.client import local_registry as keys
from replica.client.local_registry import VersionedRecords
from replica.consensus import driver as d
from replica.consensus.reader import GAP_MAX, Status
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation import genesis
from simulation.genesis import publish
from simulation.plan import Fault, Plan
from simulation.scheduler import GENESIS_NS, SECOND
from simulation.subnet import Node, World


def change(world: World, **settings: object) -> None:
    key = keys.subnet_record(world.subnet)
    record = parse(pb.SubnetRecord, world.nns.need(key))
    for name, value in settings.items():
        setattr(record, name, value)
    publish(world.nns, [Mutation(key, serialize(record))])
    for node in world.nodes:
        if node.driver is not None:
            world.registry_arrived(node)


class SlowCheckpoint(World):
    """The checkpoint at one height takes half a minute on every node."""

    slow_height = -1

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        if isinstance(effect, d.Execute) and effect.batch.height == self.slow_height:
            later = self.now + 30 * SECOND
            self.at(later, self._execute, node, node.incarnation, effect.batch)
        else:
            super()._carry_out(node, effect)


def test_a_slow_checkpoint_at_the_last_height_still_yields_a_package() -> None:
    """3hhby, 2026-05-22: a halting subnet's blocks all carry an older certified height, the bound
    of 70 is reached before the checkpoint is there, and nobody ever signed a package."""
    world = SlowCheckpoint(1, Plan(interval=99))
    assert world.run(lambda: world.finalized_height() >= 20, 60 * SECOND)
    change(world, halt_at_cup_height=True)
    assert world.run(lambda: world.cup_height() >= 100, 60 * SECOND)
    last = 200
    world.slow_height = last
    assert world.run(lambda: world.finalized_height() >= last, 120 * SECOND)
    began = world.now
    bound = last - 1 + GAP_MAX

    def notarized() -> int:
        return max(n.driver.chain.notarized_height for n in world.nodes if n.driver)

    world.run(lambda: notarized() >= bound, 25 * SECOND)
    assert notarized() > last + 20, "empty blocks go on"
    assert world.now - began < 20 * SECOND, "and are not slowed down by the missing certification"
    world.run(lambda: False, 5 * SECOND)
    assert notarized() <= bound, "up to the margin that recoveries rest on"
    assert world.run(lambda: world.cup_height() >= last, 60 * SECOND)
    world.run(lambda: False, 5 * SECOND)
    for node in world.nodes:
        assert node.driver is not None
        assert node.driver.reader(world.now).status is Status.HALTED
        executed = [h for h in node.state.states if h > last]
        assert not executed, "nothing is executed above the package at which it halts"


def test_a_node_that_is_nearly_there_replays_instead_of_fetching() -> None:
    """A package that comes while replay is nearly done is held back."""
    faults = (Fault(SECOND, "deafen", (3,)), Fault(2 * SECOND, "heal"))
    world = World(2, Plan(interval=49, faults=faults))
    world.schedule_faults()
    assert world.run(lambda: world.cup_height() >= 100, 60 * SECOND)
    assert world.counts["state syncs"] == 0


def test_a_node_far_behind_fetches_once_and_signs_again() -> None:
    """The package it fetched for is still there when the state is, and no sync follows another."""
    faults = (Fault(SECOND, "crash", (3,)), Fault(20 * SECOND, "restart", (3,)))
    world = World(4, Plan(interval=15, faults=faults))
    world.schedule_faults()
    behind = world.nodes[3]
    world.run(lambda: False, 21 * SECOND)
    assert world.run(lambda: behind.state.certified_height >= 300, 120 * SECOND)
    assert 1 <= world.counts["state syncs"] <= 2
    shares = [a for a in behind.durable if getattr(a, "signer", None) == behind.keys.node]
    assert max(s.height for s in shares) > 300 - 70


def test_who_signs_is_known_however_far_summaries_are_ahead_of_the_package() -> None:
    """Six intervals, each with keys of its own, are final before a package can follow.

    Keys are looked up from the package's summary on. Upstream looked at one summary only, the
    package's or the latest final one, and stood still in the intervals between.
    """
    world = SlowCheckpoint(5, Plan(interval=9))
    world.slow_height = 15
    assert world.run(lambda: world.finalized_height() >= 45, 30 * SECOND)
    back = world.nodes[3]
    world.stop(back)
    world.run(lambda: False, SECOND)
    world.start(back)
    assert world.run(lambda: world.finalized_height() >= 75, 30 * SECOND)
    assert world.cup_height() == 10
    assert world.run(
        lambda: back.driver is not None and back.driver.chain.finalized_height >= 75, 5 * SECOND
    )
    assert back.driver is not None
    keys_known = {back.driver.chain.interval_at(h).low for h in range(11, 76)}
    assert len(keys_known) >= 6, "each interval has a key of its own"
    signed = [a.height for a in back.durable if getattr(a, "signer", None) == back.keys.node]
    assert max(signed) > 60, "also who restarted in between signs"
    assert world.run(lambda: world.cup_height() >= 80, 60 * SECOND)


class LateRegistry(World):
    """Half of the nodes learn of registry versions five seconds after the others."""

    copies: dict[int, VersionedRecords]

    def registry_of(self, node: Node) -> VersionedRecords:
        if not hasattr(self, "copies"):
            self.copies = {}
        if node.index not in self.copies:
            self.copies[node.index] = VersionedRecords()
            for delta in self.nns.deltas:
                self.copies[node.index].apply(delta)
        return self.copies[node.index]

    def learn(self, index: int) -> None:
        for delta in self.nns.deltas[self.copies[index].version :]:
            self.copies[index].apply(delta)
        self.registry_arrived(self.nodes[index])


def test_a_registry_version_that_half_of_the_nodes_lack_stops_nobody() -> None:
    world = LateRegistry(3, Plan(interval=15))
    assert world.run(lambda: world.finalized_height() >= 5, 60 * SECOND)
    key = keys.subnet_record(world.subnet)
    publish(world.nns, [Mutation(key, world.nns.need(key))])
    for index in (0, 1):
        world.learn(index)
    before = world.finalized_height()
    world.run(lambda: False, 5 * SECOND)
    assert world.finalized_height() > before, "makers that lack it make blocks for all"
    for index in (2, 3):
        world.learn(index)
    assert world.run(lambda: world.finalized_height() > before + 60, 60 * SECOND)
    tip = world.nodes[2].driver.chain.finalized_tip.block  # type: ignore[union-attr]
    assert tip.context.registry_version == 2


def test_a_recovery_starts_key_generation_at_its_own_registry_version() -> None:
    """An NNS recovery upstream carried the wrong registry version in its key generation."""
    world = World(6, Plan())
    key = keys.cup_contents(world.subnet)
    publish(world.nns, [Mutation(key, world.nns.need(key))])
    package = world.nns.registry_cup(world.subnet)
    assert package is not None
    summary = package.summary
    assert summary.registry_version == summary.next_registry_version == package.epoch == 2
    assert summary.receivers == world.members()


def test_the_first_blocks_after_a_package_from_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery's package is later than all clocks; blocks still follow at their usual pace.

    They did only while the notary delay was below the slack that clocks are given.
    """
    monkeypatch.setattr(genesis, "GENESIS_NS", GENESIS_NS + 100 * SECOND)
    monkeypatch.setattr(genesis, "NOTARY_DELAY_MS", 300)
    world = World(4, Plan())
    assert world.run(lambda: world.finalized_height() >= 5, 10 * SECOND)


class OneLateRegistry(World):
    """Node 3 has a registry of its own, which learns nothing for a while."""

    def registry_of(self, node: Node) -> VersionedRecords:
        if node.index != 3:
            return self.nns
        if not hasattr(self, "own"):
            self.own = VersionedRecords()
            self.own.apply(self.nns.deltas[0])
        return self.own

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        if isinstance(effect, d.Execute):
            here = self.registry_of(node).version
            assert effect.batch.registry_version <= here, "execution reads the registry there"
        super()._carry_out(node, effect)


def test_a_block_is_not_executed_before_its_registry_version_is_here() -> None:
    """A node that hears of a version late follows the others' blocks, and executes them later."""
    world = OneLateRegistry(1, Plan(interval=15))
    late = world.nodes[3]
    assert world.run(lambda: world.finalized_height() >= 5, 20 * SECOND)
    publish(world.nns, [Mutation("unrelated", b"x")])
    for node in world.nodes[:3]:
        world.registry_arrived(node)
    world.run(lambda: False, 3 * SECOND)
    stopped = late.state.latest_height
    assert late.driver is not None and late.driver.chain.finalized_height > stopped + 3
    assert world.nodes[0].state.latest_height > stopped + 3
    world.own.apply(world.nns.deltas[1])
    world.registry_arrived(late)
    assert world.run(
        lambda: late.state.certified_height >= world.nodes[0].state.certified_height - 1,
        5 * SECOND,
    )
