"""Campaigns: many seeds, on all cores, and a table of what they met.

A campaign fails on a violation, on a run that gets stuck, and when a rare situation that it should
have met never came up: else a fault that is no longer injected would pass unseen.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from cli.lab.drills import SIMULATED
from simulation.adversarial import adversarial_plan, size_of
from simulation.checker import Violation
from simulation.floods import FLOODS
from simulation.plan import Plan, random_plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import World

CONSENSUS = "consensus"
"""The scenario of random plans; the others are drills of a whole swarm (`simulation.system`)."""
SYSTEM = "system"
"""Drills of a whole swarm, each seed another one."""
ADVERSARIAL = "adversarial"
"""Plans in which all f members play (`simulation.adversarial`)."""
ALONE = (CONSENSUS, ADVERSARIAL)
"""Scenarios of consensus alone."""
ROUNDS, CUPS = 60, 2
LIVENESS_NS = 120 * SECOND
LONG = 99
"""From here on an interval is longer than a run."""
WINDOW_NS = 10 * SECOND
"""Within so long heights become final and certified, once all but f nodes are up and connected."""
CHUNK = 5
SYSTEM_CHUNK = 1
EXHAUSTIVE_EVERY = 20
"""Every so many seeds, each component is asked after each step whether it was passed over."""
ENOUGH_SEEDS = 100
"""So many seeds meet everything: a seed draws one storm, whatever drills run in it."""
ENOUGH_ADVERSARIES = 200
"""The same of adversarial plans: there are twenty floods, each full at every honest node."""
RARE = (
    "crash",
    "torn crash",
    "partition",
    "deafen",
    "clog",
    "pause",
    "skew",
    "stall clock",
    "wipe",
    "equivocations",
    "losses",
    "duplicates",
    "garbled",
    "torn writes",
    "state syncs",
    "invalid artifacts",
    "liars set aside",
    "members",
    "keys reshared",
    "complaints",
    "keys for others",
    "complaints from outside",
    "dealings withheld",
    "nodes that left",
)
"""What a campaign of enough seeds must have met."""
RARE_AMONG_ADVERSARIES = (
    *(f"full: {what}" for what in FLOODS),
    "silence",
    "leave",
    "withheld",
    "upgrades",
    "two blocks of a height by one honest maker",
    "honest makers accused",
    "self-accusations",
    "echoes",
    "three blocks",
    "third blocks notarized",
    "old copies started",
    "old copies found out",
    "bad answers",
    "crash",
    "torn crash",
    "partition",
    "deafen",
    "clog",
    "pause",
    "members",
    "state syncs",
    "7 members",
    "13 members",
    "long intervals",
    "stretched clocks",
)
"""The same of a campaign of adversarial plans."""
RARE_IN_SYSTEM = (
    "crash",
    "torn crash",
    "power cut",
    "lost names",
    "lost writes",
    "torn writes",
    "orchestrator crash",
    "pause",
    "partition",
    "deafen",
    "clog",
    "bit rot",
    "misdirected write",
    "pages gone astray",
    "old registry",
    "bad database",
    "database rot",
    "database errors",
    "machines' faults",
    "waits for space",
    "full disk",
    "slow disk",
    "skew",
    "losses",
    "duplicates",
    "garbled",
    "state syncs",
    "bad chunks",
    "false attestations",
    "equivocations",
    "forgeries",
    "bad shares",
    "diverged nodes",
    "keys dealt for another subnet",
    "recovered states",
    "looks at the NNS' rows",
    "asked again",
    "overtaken syncs",
    "on the curve",
    "old copies found out",
    *SIMULATED,
)
"""The same of a campaign of whole swarms in which every drill may come up."""


@dataclass
class Failure:
    scenario: str
    seed: int
    reason: str


@dataclass
class Result:
    seeds: int = 0
    rounds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    rare: tuple[str, ...] = ()
    """What is to be met."""

    def add(self, other: Result) -> None:
        self.seeds += other.seeds
        self.rounds += other.rounds
        self.counts.update(other.counts)
        self.failures += other.failures

    @property
    def never_met(self) -> list[str]:
        return [what for what in self.rare if not self.counts[what]]

    @property
    def passed(self) -> bool:
        return not self.failures and not self.never_met


def run_plan(
    seed: int,
    plan: Plan,
    rounds: int = ROUNDS,
    cups: int = CUPS,
    *,
    exhaustive: bool = False,
    liveness_ns: int = LIVENESS_NS,
) -> World:
    """Safety phase under the plan, then liveness: all links and nodes back.

    Raises: Violation, also when the subnet does not get on afterwards.
    """
    world = World(seed, plan, exhaustive=exhaustive)
    world.schedule_faults()
    rounds = plan.rounds or rounds
    goal = (cups if plan.cups is None else plan.cups) * (plan.interval + 1)

    def done() -> bool:
        return (
            world.finalized_height() >= rounds
            and world.cup_height() >= goal
            and all(n.driver is not None for n in world.honest)
            and has_keys(world)
        )

    world.run(done, rounds * 130 * MS)
    world.revive()
    goes_on(world, done, liveness_ns)
    return world


def goes_on(world: World, done: Callable[[], bool], liveness_ns: int) -> None:
    """L12, then L1 and L3: with f faulty members heights are final and certified all the time.

    Raises: Violation.
    """
    end = world.now + liveness_ns
    window = WINDOW_NS if world.plan.is_adversarial else liveness_ns
    while world.now < end:
        final, certified = world.top_heights()
        if world.run(done, window):
            return
        if not world.plan.is_adversarial:
            break
        now_final, now_certified = world.top_heights()
        if now_final <= final or now_certified <= certified:
            raise Violation(
                f"in {window // SECOND} s nothing became final above {final} or certified above"
                f" {certified} (L12)"
            )
    raise Violation(
        f"stuck at height {world.finalized_height()} and CUP {world.cup_height()} (L1, L3)"
    )


def has_keys(world: World) -> bool:
    """L5: the members hold the keys, and the newest key generation came to something."""
    newest = max((n.package for n in world.honest), key=lambda p: p.height)
    if newest.height == 0:
        return True
    summary = newest.summary
    return (
        summary.high.committee == world.members()
        and summary.next_low is not None
        and summary.next_high is not None
    )


def plan_of(scenario: str, seed: int) -> Plan:
    """Draw the plan that a seed stands for in a campaign of consensus alone."""
    if scenario == ADVERSARIAL:
        return adversarial_plan(seed, size_of(seed))
    return random_plan(seed, ROUNDS)


def run_seed(seed: int, scenario: str = CONSENSUS) -> World:
    """Run a seed of consensus alone. Raises: Violation."""
    plan = plan_of(scenario, seed)
    world = run_plan(seed, plan, exhaustive=seed % EXHAUSTIVE_EVERY == 0)
    if scenario == ADVERSARIAL:
        world.counts.update(
            [
                f"{plan.nodes} members",
                "long intervals" if plan.interval >= LONG else "short intervals",
                "on the curve" if plan.real_bls else "with keyed hashes",
                "stretched clocks" if plan.stretchers else "clocks as they are",
            ]
        )
    return world


def _one(scenario: str, seed: int) -> tuple[int, Counter[str]]:
    """Run one seed of a scenario; return rounds and what it met."""
    if scenario in ALONE:
        world = run_seed(seed, scenario)
        return world.finalized_height(), world.counts
    from simulation.system import drills

    outcome, counts = drills.run(drills.drawn(seed) if scenario == SYSTEM else scenario, seed)
    counts[outcome.scenario] += 1
    return counts.pop("rounds"), counts


def _chunk(scenario: str, first: int, count: int) -> Result:
    result = Result()
    gc.disable()  # nothing of a run survives it: collecting in between is enough
    for seed in range(first, first + count):
        gc.collect()
        result.seeds += 1
        try:
            rounds, counts = _one(scenario, seed)
        except AssertionError as error:
            result.failures.append(Failure(scenario, seed, str(error)))
            continue
        except Exception as error:  # whatever escapes from the simulated code is a bug of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.name} in {Path(where.filename).name})"
            result.failures.append(Failure(scenario, seed, text))
            continue
        result.rounds += rounds
        result.counts.update(counts)
    return result


def run(
    seeds: int,
    first: int,
    workers: int,
    progress: Callable[[Result], None] = lambda _: None,
    scenarios: Sequence[str] = (CONSENSUS,),
) -> Result:
    """Run seeds `first` to `first + seeds - 1` of each scenario, spread over processes."""
    enough = ENOUGH_ADVERSARIES if ADVERSARIAL in scenarios else ENOUGH_SEEDS
    total = Result(rare=to_be_met(scenarios) if seeds >= enough else ())
    began = time.perf_counter()
    with ProcessPoolExecutor(workers) as executor:
        parts = [
            (s, *part)
            for s in scenarios
            for part in _parts(seeds, first, CHUNK if s in ALONE else SYSTEM_CHUNK)
        ]
        futures = [executor.submit(_chunk, *part) for part in parts]
        for future in as_completed(futures):
            total.add(future.result())
            total.seconds = time.perf_counter() - began
            progress(total)
    total.failures.sort(key=lambda f: (f.scenario, f.seed))
    return total


def to_be_met(scenarios: Sequence[str]) -> tuple[str, ...]:
    """Return what a campaign of these scenarios must have met; of a single drill nothing."""
    if CONSENSUS in scenarios:
        return RARE
    if ADVERSARIAL in scenarios:
        return RARE_AMONG_ADVERSARIES
    every_drill = SYSTEM in scenarios or set(SIMULATED) <= set(scenarios)
    return RARE_IN_SYSTEM if every_drill else ()


def _parts(seeds: int, first: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + seeds, size):
        yield start, min(size, first + seeds - start)
