"""Consensus and certification under crashes, partitions, loss and an equivocating node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from replica.consensus.reader import GAP_MAX
from tests.simulation.world import GENESIS_NS, MS, SECOND, Fault, Plan, World, random_plan

ROUNDS, CUPS = 60, 2
SEEDS, PER_TEST = 200, 5


def run_seed(seed: int, rounds: int = ROUNDS) -> World:
    """Safety phase under the seed's plan, then liveness: all links and nodes back."""
    plan = random_plan(seed, rounds)
    world = World(seed, plan)
    world.schedule_faults()

    def done() -> bool:
        return (
            world.finalized_height() >= rounds
            and world.cup_height() >= CUPS * (plan.interval + 1)
            and all(n.driver is not None for n in world.nodes)
        )

    world.run(done, rounds * 130 * MS)
    world.revive()
    assert world.run(done, 120 * SECOND), f"seed {seed} does not get there: {plan}"
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_seeds(first: int, campaign: Counter[str]) -> None:
    for seed in range(first, first + PER_TEST):
        world = run_seed(seed)
        for what in ("crash", "partition", "equivocations"):
            assert world.counts.get(what), f"seed {seed} met no {what}"
        campaign.update(world.counts)
        campaign.update(seeds=1, rounds=world.finalized_height(), violations=0)


def test_rare_things_do_happen() -> None:
    """Plans differ: slow execution, two nodes cut off at once, heavy loss all occur."""
    plans = [random_plan(seed, ROUNDS) for seed in range(SEEDS)]
    assert sum(p.slow_execution for p in plans) > SEEDS // 6
    assert sum(any(len(f.nodes) == 2 for f in p.faults) for p in plans) > SEEDS // 6
    assert sum(p.loss > 0.1 for p in plans) > SEEDS // 4
    assert {p.equivocators for p in plans} == {(0,), (1,), (2,), (3,)}


TRACE = """
from tests.simulation.test_consensus import run_seed
world = run_seed({seed}, 25)
print(world.digest())
"""


def test_same_seed_same_trace_under_any_hash_seed() -> None:
    traces = set()
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TRACE.format(seed=3)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(done.stdout)
    assert len(traces) == 1
    assert len(traces.pop().strip()) == 32


def test_real_signatures_make_the_same_protocol() -> None:
    world = World(5, Plan(real_bls=True, faults=(Fault(SECOND, "crash", (1,)),)))
    world.schedule_faults()
    assert world.run(lambda: all_but(world, 1) >= 20, 60 * SECOND)


def all_but(world: World, index: int) -> int:
    heights = [n.driver.chain.finalized_height for n in world.nodes if n.driver is not None]
    return min(heights)


@pytest.mark.parametrize("nodes", [1, 7])
def test_other_sizes(nodes: int) -> None:
    world = World(1, Plan(nodes=nodes))
    assert world.run(lambda: world.finalized_height() >= 20, 60 * SECOND)


def test_more_than_f_crashed_nodes_stop_the_subnet_and_one_returning_resumes_it() -> None:
    faults = (Fault(SECOND, "crash", (0, 1)), Fault(6 * SECOND, "restart", (1,)))
    world = World(2, Plan(faults=faults))
    world.schedule_faults()
    up = [world.nodes[2], world.nodes[3]]

    def height() -> int:
        return max(n.driver.chain.finalized_height for n in up if n.driver)

    world.run(lambda: False, 2 * SECOND)
    stopped = height()
    world.run(lambda: False, 3 * SECOND)
    assert height() == stopped, "two of four nodes must not finalize"
    assert world.run(lambda: height() > stopped + 10, 30 * SECOND)


def test_without_certification_the_subnet_stops_at_the_bound() -> None:
    """More than f nodes compute another state: blocks go on for exactly 70 heights."""
    world = World(4, Plan(interval=199))
    world.checker.executed = lambda *_: None  # type: ignore[method-assign]
    diverges_at = 10
    for node in world.nodes[:2]:
        honest = node.state.execute

        def execute(batch, node=node, honest=honest):  # type: ignore[no-untyped-def]
            honest(batch)
            if batch.height >= diverges_at:
                other = bytes([node.index + 1]) * 32
                node.state.trees[batch.height] = node.state.tree_of(batch.height, other)

        node.state.execute = execute  # type: ignore[method-assign]
    assert world.run(
        lambda: all(
            n.driver is not None and n.driver.chain.notarized_height >= diverges_at - 1 + GAP_MAX
            for n in world.nodes
        ),
        600 * SECOND,
    )
    world.run(lambda: False, 60 * SECOND)
    for node in world.nodes:
        assert node.driver is not None
        assert node.state.certified_height == diverges_at - 1
        assert node.driver.chain.notarized_height == diverges_at - 1 + GAP_MAX
        assert node.package.height == 0, "no CUP can be made of what is not certified"
    assert world.now > GENESIS_NS
