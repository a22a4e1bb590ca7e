"""Consensus and certification under crashes, partitions, loss and an equivocating node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from cli.lab.drills import SIMULATED
from replica.consensus import driver
from replica.consensus.reader import GAP_MAX
from simulation.campaign import RARE, ROUNDS, SYSTEM, Result, run_plan, run_seed, to_be_met
from simulation.doubles import DivergingChain
from simulation.genesis import NOTARY_DELAY_MS
from simulation.plan import KINDS, Fault, Plan, from_json, random_plan, to_json
from simulation.scheduler import GENESIS_NS, MS, SECOND
from simulation.subnet import World

SEEDS, PER_TEST = 20, 5


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_seeds(first: int, campaign: Counter[str]) -> None:
    """Seeds with other faults each; `make simulate` runs as many as you like."""
    for seed in range(first, first + PER_TEST):
        world = run_seed(seed)
        for what in ("crash", "partition"):
            assert world.counts[what], f"seed {seed} met no {what}"
        campaign.update(world.counts)
        campaign.update(seeds=1, rounds=world.finalized_height())


def test_no_component_is_passed_over() -> None:
    """Asked anyway after every step, each component has nothing to do."""
    for seed in range(1000, 1006):
        run_plan(seed, random_plan(seed, 30), 30, 1, exhaustive=True)


def test_a_campaign_in_which_a_fault_never_came_up_fails() -> None:
    quiet = Result(rare=RARE, counts=Counter({what: 1 for what in RARE if what != "clog"}))
    assert quiet.never_met == ["clog"]
    assert not quiet.passed


def test_a_campaign_of_every_drill_has_to_meet_what_one_of_drawn_drills_has_to() -> None:
    assert set(SIMULATED) < set(to_be_met((SYSTEM,)))
    assert to_be_met(tuple(SIMULATED)) == to_be_met((SYSTEM,))
    assert to_be_met(("upgrade",)) == ()


def test_plans_differ_and_survive_being_written_down() -> None:
    plans = [random_plan(seed, ROUNDS) for seed in range(200)]
    assert {f.kind for p in plans for f in p.faults} == set(KINDS)
    assert sum(p.slow_execution for p in plans) > 33
    assert sum(p.loss > 0.1 for p in plans) > 50
    assert {min(p.faulty) for p in plans} == {0, 1, 2, 3}
    for plan in plans[:20]:
        assert from_json(to_json(plan)) == plan


TRACE = """
from simulation.campaign import run_seed
world = run_seed({seed})
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


@pytest.mark.parametrize("delay_ms", [5, 40, 100])
def test_a_good_maker_is_finalized_within_notary_delay_and_four_message_delays(
    delay_ms: int,
) -> None:
    """L2, on a network without loss: rank 0 is always good, and no other rank gets a turn."""
    world = World(7, Plan(delay_ms_min=1, delay_ms_max=delay_ms, interval=99))
    world.run(lambda: False, SECOND)
    bound_ms = NOTARY_DELAY_MS + 4 * delay_ms + 6  # each hop costs a step of up to 1 ms
    tops = {n.index: (0, world.now) for n in world.honest}
    gaps: list[float] = []
    for _ in range(4000):
        world.run(lambda: False, MS)
        for node in world.honest:
            assert node.driver is not None
            top, since = tops[node.index]
            if node.driver.chain.finalized_height > top:
                gaps.append((world.now - since) / MS)
                tops[node.index] = (node.driver.chain.finalized_height, world.now)
    assert len(gaps) > 4 * 3000 / bound_ms, "each of four nodes moved on all the time"
    assert max(gaps[4:]) <= bound_ms
    assert {e.block.rank for e in world.nodes[0].driver.chain.blocks.values()} == {0}  # type: ignore[union-attr]


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
        node.state = DivergingChain(diverges_at, bytes([node.index]))
        world.stop(node)
        world.start(node)
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


def test_a_step_bound_yields_and_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two turns a step all that is left is done in the next ones."""
    monkeypatch.setattr(driver, "STEPS_MAX", 2)
    world = World(3, Plan())
    assert world.run(lambda: world.cup_height() >= 16, 60 * SECOND)
