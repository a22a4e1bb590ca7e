"""Adversaries do what they are there for, at every honest node; their plans are data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from typing import Any

import pytest

from replica.protocol.artifacts import DkgComplaint, block_hash
from replica.protocol.crypto.scheme import faults_max
from simulation import mutants
from simulation.adversarial import SIZES, adversarial_plan, size_of
from simulation.campaign import ADVERSARIAL, RARE_AMONG_ADVERSARIES, plan_of, to_be_met
from simulation.floods import BIG, CROWD, FLOODS
from simulation.plan import ADVERSARIAL_KINDS, KINDS, Fault, Plan, from_json, random_plan, to_json
from simulation.releases import FIRST
from simulation.rights import RightsChecker
from simulation.scheduler import MS, SECOND
from simulation.subnet import World

PLANS = [adversarial_plan(seed, size_of(seed)) for seed in range(300)]


class Unheeding(RightsChecker):
    """Looks away: what is asked is what adversaries do, not what comes of it."""

    def kept(self, *_: Any) -> None: ...
    def delivered(self, *_: Any, **__: Any) -> None: ...
    def signed(self, *_: Any) -> None: ...
    def misbehaved(self, *_: Any) -> None: ...
    def look(self, *_: Any) -> None: ...


def world_of(plan: Plan, seconds: float, seed: int = 1) -> World:
    world = World(seed, plan)
    world.rights = Unheeding(world)
    world.schedule_faults()
    world.run(lambda: False, int(seconds * SECOND))
    return world


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_comes_to_every_honest_node(what: str) -> None:
    amount = BIG[what] // 10 if what in BIG else CROWD
    fault = Fault(300 * MS, "flood", (3,), amount, what)
    world = world_of(Plan(flooders=(3,), interval=99, delay_ms_max=5, faults=(fault,)), 0.5)
    assert world.counts[f"flood: {what}"] == 1
    for node in world.honest:
        assert world.cast.flooder.deeds[what, node.index] >= min(amount, 2)


def test_on_the_curve_one_member_makes_many_true_complaints_of_its_own_dealing() -> None:
    fault = Fault(300 * MS, "flood", (3,), 5, "complaints")
    plan = Plan(flooders=(3,), interval=99, delay_ms_max=5, real_bls=True, faults=(fault,))
    world = World(1, plan)
    kept: list[DkgComplaint] = []

    class Keeping(Unheeding):
        def kept(self, node: Any, artifact: Any) -> None:
            if node.index == 0 and isinstance(artifact, DkgComplaint):
                kept.append(artifact)

    world.rights = Keeping(world)
    world.schedule_faults()
    world.run(lambda: False, 400 * MS)
    assert all(world.cast.flooder.deeds["complaints", n.index] >= 2 for n in world.honest)
    assert kept, "they are justified"


@pytest.mark.parametrize(
    ("nodes", "what"), [(7, "blocks"), (7, "cups"), (7, "beacons"), (13, "notarization shares")]
)
def test_all_f_members_flood_subnets_of_other_sizes(nodes: int, what: str) -> None:
    flooders = tuple(range(faults_max(nodes)))
    fault = Fault(300 * MS, "flood", flooders, CROWD, what)
    plan = Plan(nodes=nodes, flooders=flooders, delay_ms_max=5, interval=99, faults=(fault,))
    world = world_of(plan, 0.4)
    assert world.counts[f"flood: {what}"] == len(flooders)
    assert all(world.cast.flooder.deeds[what, n.index] > CROWD for n in world.honest)


def test_who_is_silent_sends_nothing_and_who_has_left_never_comes_back() -> None:
    faults = (Fault(300 * MS, "silence", (2,)), Fault(300 * MS, "leave", (3,)))
    world = world_of(Plan(nodes=7, flooders=(2, 3), faults=faults), 0.4)
    silent = world.nodes[2].driver
    assert silent is not None and world.nodes[3].driver is None
    signed = max(a.height for a in world.nodes[2].durable)
    world.revive()
    world.run(lambda: False, SECOND)
    assert world.nodes[3].driver is None and silent.chain.notarized_height > signed + 5
    me = world.nodes[2].keys.node
    for node in world.honest:
        theirs = [a.height for a in node.durable if getattr(a, "signer", None) == me]
        assert max(theirs, default=0) <= signed + 1


def test_only_byzantine_members_do_what_honest_ones_must_not() -> None:
    """A fault that a smaller plan has left without its Byzantine member does nothing."""
    faults = tuple([Fault(300 * MS, k, (3,), 1, "blocks") for k in ("flood", "silence", "leave")])
    world = world_of(Plan(faults=faults), 0.4)
    assert world.nodes[3].driver is not None and not world.cast.silent
    assert not world.counts["flood: blocks"]


def test_a_withholder_sends_to_some_only_or_late() -> None:
    world = world_of(Plan(withholders=(3,), interval=99), 2.0)
    assert world.counts["withheld"] > 100
    me = world.nodes[3].keys.node
    got = [
        {a for a in n.durable if getattr(a, "signer", getattr(a, "maker", None)) == me}
        for n in world.honest
    ]
    assert any(got) and len({frozenset(g) for g in got}) > 1


def test_a_stretcher_dates_its_blocks_beyond_its_clock_and_they_pass() -> None:
    world = world_of(Plan(stretchers=(3,), interval=99, delay_ms_max=3), 1.0)
    me = world.nodes[3].keys.node
    chain = world.nodes[0].driver.chain  # type: ignore[union-attr]
    times = {
        p.height: p.block.context.time_ns
        for p in world.nodes[0].durable
        if getattr(p, "maker", None) == me and chain.is_notarized(p.height, block_hash(p.block))
    }
    assert len(times) > 2
    assert max(t - world.now for t in times.values()) > -SECOND // 2


def test_a_third_block_is_notarized_where_the_other_two_were_seen() -> None:
    world = world_of(Plan(triplets=(3,), interval=99, delay_ms_max=5), 6.0)
    assert world.counts["three blocks"] > 10
    assert world.counts["third blocks notarized"] > 0


UPGRADE = (Fault(300 * MS, "release", (), 0, "v2"), Fault(1200 * MS, "release", (), 0, "v1"))


def test_two_releases_make_blocks_of_one_height_and_accusers_show_them_to_all() -> None:
    plan = Plan(accusers=(3,), checkpoint_ms=400, delay_ms_max=5, faults=UPGRADE)
    total: Counter[str] = Counter()
    for seed in range(3):
        world = World(seed, plan)
        world.rights = Overlap(world)
        world.schedule_faults()
        world.run(lambda: False, 4 * SECOND)
        total.update(world.counts)
    assert total["two blocks of a height by one honest maker"] > 0
    assert total["honest makers accused"] > 0
    assert total["self-accusations"] > 0
    assert total["echoes"] > 0


class Overlap(Unheeding):
    """Counts blocks of one height of honest makers, and judges nothing."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.made: dict[tuple[Any, int], Any] = {}

    def signed(self, node: Any, artifact: Any) -> None:
        if getattr(artifact, "maker", None) == node.keys.node and hasattr(artifact, "block"):
            first = self.made.setdefault((node.keys.node, artifact.height), artifact)
            if first != artifact:
                self.world.counts["two blocks of a height by one honest maker"] += 1


def test_a_subnet_goes_to_another_release_and_back_also_where_nodes_were_away() -> None:
    away = (Fault(500 * MS, "crash", (0,)), Fault(4 * SECOND, "restart", (0,)))
    plan = Plan(checkpoint_ms=100, delay_ms_max=5, faults=(*UPGRADE, *away))
    world = world_of(plan, 8.0)
    runs = {n.run for n in world.honest}
    assert len(runs) == 1
    run = runs.pop()
    began = run.start
    assert run.release == FIRST.release and began > 16, "the first release again, in a new run"
    assert world.counts["upgrades"] >= 2 * 3
    assert min(n.state.certified_height for n in world.honest) > began + 16


def test_an_old_copy_starts_from_what_its_disk_held() -> None:
    fault = Fault(1500 * MS, "old copy", (3,), 800 * MS)
    world = World(1, Plan(old_copies=(3,), interval=99, faults=(fault,)))
    world.schedule_faults()
    old = world.nodes[3]
    world.run(lambda: False, 1499 * MS)
    before = old.driver.chain.finalized_height  # type: ignore[union-attr]
    world.run(lambda: bool(world.counts["old copies started"]), SECOND)
    assert old.driver is not None
    assert old.driver.chain.finalized_height <= before - 10
    world.run(lambda: False, 3 * SECOND)
    assert old.driver.chain.finalized_height > before, "it follows the others"


# -- plans


@pytest.mark.parametrize("nodes", [n for n, _ in SIZES])
def test_all_f_members_play_and_plans_survive_being_written_down(nodes: int) -> None:
    for seed in range(60):
        plan = adversarial_plan(seed, nodes)
        assert len(plan.faulty) == faults_max(nodes) and plan.is_adversarial | bool(plan.faulty)
        assert from_json(to_json(plan)) == plan


def test_adversarial_plans_have_everything() -> None:
    kinds = {f.kind for p in PLANS for f in p.faults}
    assert kinds <= {*KINDS, *ADVERSARIAL_KINDS} and set(ADVERSARIAL_KINDS) <= kinds
    assert {f.what for p in PLANS for f in p.faults if f.kind == "flood"} == set(FLOODS)
    assert {p.interval for p in PLANS} >= {15, 29, 59, 99, 199, 499}
    assert {p.nodes for p in PLANS} == {4, 7, 13}
    roles = ("flooders", "withholders", "stretchers", "accusers", "triplets", "old_copies")
    for role in roles:
        assert sum(bool(getattr(p, role)) for p in PLANS) >= 15, role
    assert to_be_met((ADVERSARIAL,)) == RARE_AMONG_ADVERSARIES


def test_a_hundred_seeds_draw_each_flood_in_whole_crowds_or_sizes() -> None:
    drawn = Counter(
        f.what for s in range(100) for f in plan_of(ADVERSARIAL, s).faults if f.kind == "flood"
    )
    assert min(drawn[what] for what in FLOODS) >= 2


@pytest.mark.parametrize("role", ["flooders", "stretchers", "accusers", "old_copies"])
def test_a_plan_for_one_adversary_has_no_other(role: str) -> None:
    for seed in range(20):
        plan = adversarial_plan(seed, 7, role)
        assert set(getattr(plan, role)) == plan.faulty
        assert any(f.kind == "release" for f in plan.faults) == (role == "accusers")


def test_each_adversary_has_a_campaign() -> None:
    campaigns = {"flooder", "withholder", "stretcher", "accuser", "tripler", "old copy"}
    assert campaigns | {"two releases"} <= set(mutants.CAMPAIGNS)


def test_random_plans_are_what_they_were() -> None:
    """Campaigns of old seeds are run again: what failed once has to be met again."""
    text = "".join(to_json(random_plan(seed, 60)) for seed in range(200))
    assert sha256(text.encode()).hexdigest() == OLD_PLANS


OLD_PLANS = "479339c701a6e5c6a602aef116f41ed635dde9f589a1ad14a914b5d45df427f7"

TRACE = """
from simulation.campaign import ADVERSARIAL, run_seed
print(run_seed({seed}, ADVERSARIAL).digest())
"""


@pytest.mark.parametrize("seed", [1, 4])
def test_same_seed_same_trace_under_any_hash_seed(seed: int) -> None:
    traces = set()
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TRACE.format(seed=seed)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        traces.add(done.stdout)
    assert len(traces) == 1 and len(traces.pop().strip()) == 32
