"""Drills in virtual time: a scenario and a seed in, a table of phases out.

Each seed draws its own delays, losses and partitions, which go on during the recovery itself, and
kills one process in one phase of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from simulation.checker import Violation
from simulation.plan import Fault, Plan
from simulation.recovery import PHASES, VICTIMS, RecoveryWorld
from simulation.scheduler import GENESIS_NS, MS, SECOND, draw
from simulation.subnet import Node, World


@dataclass(frozen=True)
class Story:
    """How a simulated drill went."""

    scenario: str
    seed: int
    phases: tuple[tuple[str, float], ...]
    """Name and virtual seconds."""
    rto_seconds: float
    height_before: int
    height_after: int
    nodes: int
    counts: Counter[str]


def _partitions(seed: int, nodes: int, span_ns: int) -> tuple[Fault, ...]:
    """Cut off one node at a time, a few times."""
    faults: list[Fault] = []
    count = int(draw(seed, "partitions") * 4)
    for i in range(count):
        begin = int(draw(seed, "cut", i) * span_ns)
        node = int(draw(seed, "cut off", i) * nodes)
        length = int((0.2 + draw(seed, "cut for", i)) * SECOND)
        faults += [Fault(begin, "partition", (node,)), Fault(begin + length, "heal")]
    return tuple(sorted(faults, key=lambda f: f.at_ns))


def _phases(marks: list[tuple[str, int]]) -> tuple[tuple[str, float], ...]:
    """Turn (name, when it began) into (name, how long it took); the last mark ends the story."""
    return tuple(
        (name, round((end - begin) / SECOND, 3))
        for (name, begin), (_, end) in zip(marks, marks[1:])
    )


def subnet_divergence(seed: int) -> Story:
    """More than f replicas compute another state; halted, attested, voted on, recovered."""
    phase = PHASES[int(draw(seed, "phase") * len(PHASES))]
    victim = VICTIMS[int(draw(seed, "victim") * len(VICTIMS))]
    plan = Plan(
        interval=9,
        delay_ms_max=int(5 + 40 * draw(seed, "delay")),
        loss=0.1 * draw(seed, "loss"),
        duplicates=0.05,
        faults=_partitions(seed, 4, 12 * SECOND),
    )
    world = RecoveryWorld(seed, phase, victim, 12 + int(draw(seed, "height") * 20), plan)
    if not world.run(world.healed, 120 * SECOND):
        raise Violation(
            f"{victim} killed in {phase}: no recovery; reached {world.reached[-1]} (L7)"
        )
    recovery = world.recovery
    assert recovery is not None
    ((state_height, _),) = world.truth.items()
    if state_height < world.diverge_at - 1:
        raise Violation(
            f"the state of height {state_height} is adopted, {world.diverge_at - 1} was certified"
        )
    reached = world.reached_at
    marks = [(name, reached[name]) for name in PHASES if name in reached]
    return Story(
        "subnet-divergence",
        seed,
        _phases([*marks, ("end", world.now)]),
        round((reached["resume"] - reached["fault"]) / SECOND, 3),
        state_height,
        world.top_certified(),
        len(world.nodes),
        Counter(world.counts) + Counter({f"kill in {phase}": world.kills}),
    )


def node_catch_up(seed: int) -> Story:
    """One node is restarted, falls two packages behind, and loses its disk."""
    plan = Plan(
        interval=15,
        delay_ms_max=int(5 + 60 * draw(seed, "delay")),
        loss=0.1 * draw(seed, "loss"),
        amnesiacs=(3,),  # without its disk it has forgotten what it signed
    )
    world = World(seed, plan)
    node = world.nodes[3]
    others = world.nodes[:3]
    _reach(world, lambda: min(n.package.height for n in others) >= 32, "two packages")
    before, marks = node.state.certified_height, [("start", GENESIS_NS)]
    for name, down_ns, kind in (
        ("restarted", 200 * MS, "crash"),
        ("two packages behind", 0, "crash"),
        ("wiped", 300 * MS, "wipe"),
    ):
        marks.append((name, world.now))
        world._inject(Fault(0, kind, (3,)))
        at = max(n.package.height for n in others)
        if down_ns:
            world.run(lambda: False, down_ns)
        else:
            _reach(world, lambda at=at: min(n.package.height for n in others) >= at + 32, "others")  # type: ignore[misc]
        top = max(n.state.certified_height for n in others)
        world._inject(Fault(0, "restart", (3,)))
        _reach(world, lambda top=top: _signs_above(node, top), f"{name}: to sign again (L4)")  # type: ignore[misc]
    marks.append(("end", world.now))
    phases = _phases(marks)
    return Story(
        "node-catch-up",
        seed,
        phases,
        max(seconds for _, seconds in phases[1:]),
        before,
        node.state.certified_height,
        len(world.nodes),
        Counter(world.counts),
    )


def membership_change(seed: int) -> Story:
    """A node joins, one leaves, one is replaced, and one more while f members are down."""
    plan = Plan(
        spares=3,
        interval=15,
        delay_ms_max=int(5 + 50 * draw(seed, "delay")),
        loss=0.05 * draw(seed, "loss"),
        faults=_partitions(seed, 4, 10 * SECOND),
    )
    world = World(seed, plan)
    world.schedule_faults()
    marks = [("start", GENESIS_NS)]
    _reach(world, lambda: world.cup_height() >= 16, "a first package")
    before = world.finalized_height()
    for name, members, down in (
        ("add", (0, 1, 2, 3, 4), None),
        ("remove", (1, 2, 3, 4), None),
        ("replace", (2, 3, 4, 5), None),
        ("replace, f dealers dead", (3, 4, 5, 6), 2),
    ):
        marks.append((name, world.now))
        if down is not None:
            world._inject(Fault(0, "crash", (down,)))
        world._inject(Fault(0, "members", members))
        _reach(world, lambda: _holds(world), f"{name}: the members to hold the key")
    marks.append(("end", world.now))
    phases = _phases(marks)
    return Story(
        "membership-change",
        seed,
        phases,
        max(seconds for _, seconds in phases[1:]),
        before,
        world.finalized_height(),
        len(world.nodes),
        Counter(world.counts),
    )


def _holds(world: World) -> bool:
    up = [n for n in world.honest if n.driver is not None]
    return bool(up) and all(n.package.summary.high.committee == world.members() for n in up)


def _signs_above(node: Node, height: int) -> bool:
    if node.driver is None:
        return False
    return node.driver.own_share_height() > height


def _reach(world: World, condition: Callable[[], bool], what: str) -> None:
    if not world.run(condition, 120 * SECOND):
        raise Violation(f"waited in vain for {what}")


STORIES: dict[str, Callable[[int], Story]] = {
    "subnet-divergence": subnet_divergence,
    "node-catch-up": node_catch_up,
    "membership-change": membership_change,
}
