"""Adversarial plans: all f members play, on top of the faults that random plans have.

A plan draws its size of intervals (long ones run for fewer rounds: a seed's cost is bounded), a
role for each Byzantine member, floods and what follows them, and now and then two releases, whose
upgrade a slow checkpoint lets overlap, or an old copy of a disk in place of one Byzantine member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from replica.protocol.crypto.scheme import faults_max
from simulation.floods import BIG, CROWD, FLOODS
from simulation.plan import ROLES, Fault, Plan, pair_of_faults
from simulation.scheduler import MS, SECOND, draw

SIZES = ((4, 0.75), (7, 0.93), (13, 1.0))
"""Members, and up to which draw."""
LENGTHS = ((15, 0.5), (29, 0.7), (59, 0.8), (99, 0.9), (199, 0.95), (499, 1.0))
"""Intervals, less one, and up to which draw."""
ROLE_OF_THE_REST = (
    *("flooders",) * 4,
    "withholders",
    "accusers",
    "triplets",
    "stretchers",
    "equivocators",
    "forgers",
    "liars",
)
ABSENCES = ("crash", "torn crash", "partition", "deafen", "clog", "pause")
ROUND_NS = 130 * MS
"""About what a round takes under faults."""
CALM_ROUNDS = {4: 180, 7: 130, 13: 110}
"""So many does it take until stretched time shows, on a fast network."""
CUPS_AT_ONCE = 80 * CROWD
"""Packages that arrive while a replica pauses: it has to judge them all in one step."""
CURVE_ROUNDS, CURVE_COMPLAINTS = 25, 12
"""True complaints can differ on the curve only, where all takes longer."""
SPREAD = 199
"""Artifacts of a flood that has one a height."""


def size_of(seed: int) -> int:
    return _pick(SIZES, draw(seed, "size"))


def adversarial_plan(seed: int, nodes: int, role: str = "") -> Plan:
    """Draw a plan for so many members, f of them Byzantine; with a role: all of these have it."""
    upgrades = role in ("accusers", "upgrades") or (not role and draw(seed, "upgrades") < 0.25)
    interval = 15 if upgrades else _pick(LENGTHS, draw(seed, "interval"))
    rounds, cups = _goal(interval, nodes, upgrades=upgrades)
    byzantine = _drawn(seed, nodes, faults_max(nodes))
    honest = [n for n in range(nodes) if n not in byzantine]
    roles = _roles(seed, byzantine, upgrades=upgrades)
    if role in ROLES:
        roles = {role: list(byzantine)}
    else:
        roles["flooders"] = _flooders(seed, roles)
    span_ns = rounds * ROUND_NS
    calm = "stretchers" in roles and not upgrades
    calm = calm and (bool(role) or draw(seed, "calm") < 0.7)
    faults = [] if calm else _storm(seed, nodes, honest, span_ns)
    if roles.get("bad_dealers"):
        faults = [f for f in faults if f.kind not in ABSENCES and f.kind != "restart"]
    busy = {n for r, who in roles.items() if r != "flooders" for n in who}
    for k, node in enumerate(roles.get("flooders", ())):
        faults += _floods(seed, k, node, nodes, goes_quiet=node not in busy)
    if upgrades:
        faults += _releases(seed)
    for node in roles.get("old_copies", ()):
        faults.append(_old_copy(seed, node))
    spares = 0
    if draw(seed, "membership") < 0.2:
        spares = 1
        faults += _membership(seed, nodes)
    curve = _needs_the_curve(faults, nodes)
    rough = not (calm or curve) and draw(seed, "rough") < 0.5
    plan = Plan(
        nodes=nodes,
        spares=spares,
        interval=interval,
        delay_ms_max=3 if calm else int(3 + 40 * draw(seed, "delay")),
        loss=0.2 * draw(seed, "loss") * rough,
        duplicates=0.1 * draw(seed, "duplicates") * rough,
        corruption=0.02 * draw(seed, "corruption") * rough,
        faults=tuple(sorted(faults, key=lambda f: f.at_ns)),
        slow_execution=not calm and draw(seed, "slow") < 0.3,
        checkpoint_ms=int(500 * draw(seed, "manifest")) if upgrades else 0,
        payload_bytes=64,
        real_bls=curve,
        rounds=CURVE_ROUNDS if curve else CALM_ROUNDS[nodes] if calm else rounds,
        cups=0 if curve else cups,
        old_copies_find_out=True,
    )
    changed: dict[str, Any] = {role: tuple(sorted(who)) for role, who in roles.items()}
    return replace(plan, **changed)


def _pick(table: Sequence[tuple[int, float]], dice: float) -> int:
    return next(value for value, top in table if dice <= top)


def _drawn(seed: int, nodes: int, count: int) -> tuple[int, ...]:
    order = sorted(range(nodes), key=lambda n: draw(seed, "byzantine", n))
    return tuple(sorted(order[:count]))


def _goal(interval: int, nodes: int, *, upgrades: bool) -> tuple[int, int]:
    """Return the heights that have to be final, and how many packages have to follow."""
    rounds = 60 if nodes < 13 else 40
    if upgrades:
        return (110, 6) if nodes < 13 else (66, 3)
    if interval <= 29:
        return rounds, 2 if nodes < 13 else 1
    return rounds, 1 if interval <= 59 else 0


def _roles(seed: int, byzantine: Sequence[int], *, upgrades: bool) -> dict[str, list[int]]:
    """Give each Byzantine member a role: in upgrades one accuses, else one floods more often."""
    roles: dict[str, list[int]] = {}
    for k, node in enumerate(byzantine):
        dice = draw(seed, "role", k)
        role = ROLE_OF_THE_REST[int(dice * len(ROLE_OF_THE_REST))]
        if k == 0 and upgrades and draw(seed, "accuses") < 0.6:
            role = "accusers"
        elif k == 0 and draw(seed, "copied") < 0.15:
            role = "old_copies"
        elif k == 0 and not upgrades and draw(seed, "deals badly") < 0.05:
            role = "bad_dealers"
        roles.setdefault(role, []).append(node)
    return roles


def _flooders(seed: int, roles: dict[str, list[int]]) -> list[int]:
    """Most of those who have another role flood as well; who has none does so anyway."""
    both = [r for r in roles if r not in ("flooders", "old_copies", "bad_dealers")]
    more = [n for r in both for n in roles[r] if draw(seed, "floods too", n) < 0.75]
    return sorted([*roles.get("flooders", ()), *more])


def _storm(seed: int, nodes: int, honest: Sequence[int], span_ns: int) -> list[Fault]:
    """Faults of machines and links, each with its end: as in random plans, of honest nodes."""
    faults: list[Fault] = []
    time, i = int(0.3 * SECOND), 0
    while True:
        time += int((0.2 + 1.5 * draw(seed, "gap", i)) * SECOND)
        if time > span_ns:
            return faults
        length = int((0.1 + draw(seed, "length", i)) * SECOND)
        target = honest[int(draw(seed, "target", i) * len(honest))]
        faults += pair_of_faults(seed, i + 2, time, time + length, target, nodes)
        time, i = time + length, i + 1


def _needs_the_curve(faults: Sequence[Fault], nodes: int) -> bool:
    """Whether the first flood is of true complaints; not in upgrades, which take long enough."""
    floods = [f for f in faults if f.kind == "flood"]
    upgrades = any(f.kind == "release" for f in faults)
    first = bool(floods) and floods[0].amount == CURVE_COMPLAINTS
    return first and nodes == 4 and not upgrades


def _floods(seed: int, k: int, node: int, nodes: int, *, goes_quiet: bool) -> list[Fault]:
    """Two to four floods of the k-th flooder; then it may be silent, gone, or go on at a rate.

    Which they are goes round with the seed: so a campaign of enough seeds has all of them.
    """
    faults: list[Fault] = []
    at = int((0.2 + 1.2 * draw(seed, "flood", node)) * SECOND)
    for i in range(2 + int(3 * draw(seed, "floods", node))):
        what = list(FLOODS)[(seed + 7 * i + 3 * k) % len(FLOODS)]
        amount = _amount(seed, what, node, i, nodes)
        if (what, nodes, i) == ("cups", 4, 0) and draw(seed, "at once") < 0.5:
            amount, victim = CUPS_AT_ONCE, (node + 1) % nodes
            faults.append(Fault(at - 10 * MS, "pause", (victim,)))
            faults.append(Fault(at + 150 * MS, "resume", (victim,)))
        faults.append(Fault(at, "flood", (node,), amount, what))
        at += int(400 * MS * draw(seed, "pause", node, i))
    if goes_quiet:
        faults += _aftermath(seed, node, at, list(FLOODS)[(seed + 3 * k) % len(FLOODS)])
    return faults


def _amount(seed: int, what: str, node: int, i: int, nodes: int) -> int:
    if what in BIG:
        whole = i == 0 and nodes < 13
        return BIG[what] if whole else BIG[what] // 10 + 1
    if what == "complaints" and nodes == 4 and i == 0:
        return CURVE_COMPLAINTS if draw(seed, "true", node) < 0.85 else 3 * CROWD
    if draw(seed, "spread", node, i) < 0.25:
        return SPREAD
    return (3 if nodes < 13 else 2) * CROWD


def _aftermath(seed: int, node: int, at: int, what: str) -> list[Fault]:
    """What a flooder does after its floods: nothing, no more consensus either, or more of it."""
    dice = draw(seed, "after", node)
    if dice < 0.35:
        return [Fault(at, "silence", (node,))]
    if dice < 0.55:
        return [Fault(at + 60 * MS, "leave", (node,))]
    if dice < 0.8:
        amount = BIG[what] // 20 + 1 if what in BIG else CROWD // 2
        return [Fault(at + (i + 1) * 300 * MS, "flood", (node,), amount, what) for i in range(6)]
    return []


def _releases(seed: int) -> list[Fault]:
    """One upgrade, and often the way back."""
    at = int((0.1 + 0.8 * draw(seed, "upgrade")) * SECOND)
    faults = [Fault(at, "release", (), 0, "v2")]
    if draw(seed, "back") < 0.6:
        later = at + int((0.6 + 2 * draw(seed, "back at")) * SECOND)
        faults.append(Fault(later, "release", (), 0, "v1"))
    return faults


def _old_copy(seed: int, node: int) -> Fault:
    at = int((1.0 + 1.5 * draw(seed, "copy")) * SECOND)
    return Fault(at, "old copy", (node,), int((0.1 + 0.9 * draw(seed, "age")) * SECOND))


def _membership(seed: int, nodes: int) -> list[Fault]:
    """Add the spare node, or replace a member by it."""
    everyone = tuple(range(nodes + 1))
    leaver = int(draw(seed, "leaver") * nodes)
    at = int((0.2 + 1.5 * draw(seed, "joining")) * SECOND)
    members = everyone
    if draw(seed, "replaced") < 0.5:
        members = tuple([n for n in everyone if n != leaver])
    return [Fault(at, "members", members)]
