"""What goes wrong while a drill runs: short faults of one machine or link after the other.

The drill's own disaster uses up what a subnet tolerates, so everything here passes after a second
or two, and one at a time: it may delay a recovery, and must not spoil it. In half of the storms one
replica of the application subnet is Byzantine all the time: it equivocates, or sends forgeries; in
others one computes another state at some height. Where a recovery can do without one node's word on
its state, that node's is false in some.
"""

from __future__ import annotations

from cli.lab.drills import SIMULATED
from simulation.plan import Fault, Plan
from simulation.scheduler import MS, SECOND, draw

BEGIN_NS, END_NS = 12 * SECOND, 60 * SECOND
"""After the swarm was started: from about when its canisters are installed."""
FAULTS_MAX = 7
SYNCS_MAX = 25
"""So many more times at most may a machine sync a file before its power is cut."""
SYNC_NS_MAX = 300 * MS
DATABASE_FAULTS = 0.4
"""In so many storms a replica's database fails as well."""
STATEMENTS_MAX = 100
"""So many more statements at most are run before one fails."""
REAL_BLS = 0.2
"""In so many storms, threshold signatures are of the curve and not of `open_groups`."""
AT_THE_LIMIT = ("node-catch-up", "membership-change")
"""Drills in which f members are faulty already, for one forgets what it signed or stays down: one
more that is faulty would be too many."""

DIVERGING = ("subnet-divergence", "subnet-loss")
"""Drills in which as many states have to agree as there are good ones, the first two: neither is
Byzantine. (A maker that equivocates may miss the one of its blocks that the others agreed on.)"""
WITHOUT_THE_FOURTH = ("subnet-divergence", "nns-stall")
"""Drills in which three nodes' words on their state are enough: the fourth one's may be false."""


def storm(name: str, seed: int) -> Plan:
    """Draw the network, and what goes wrong during a drill."""
    scenario = SIMULATED[name]
    nns, app = scenario.nns_nodes, 4
    faults: list[Fault] = []
    count = 1 + int(draw(seed, "faults") * FAULTS_MAX)
    step = (END_NS - BEGIN_NS) // count
    for i in range(count):
        begin = BEGIN_NS + i * step + int(draw(seed, "begin", i) * step / 2)
        faults += _fault(seed, i, begin, nns, nns + app)
    faults += _database_faults(seed, nns + app)
    perjurers: tuple[int, ...] = ()
    if name in WITHOUT_THE_FOURTH and draw(seed, "perjury") < 0.4:
        perjurers = (3 if name == "nns-stall" else nns + 3,)
    liar = nns + int(draw(seed, "liar") * app)
    spared = 2 if name in DIVERGING else 0
    traitor = (nns + spared + int(draw(seed, "traitor") * (app - spared)),)
    treason = 1.0 if name in AT_THE_LIMIT else draw(seed, "treason")
    if 0.5 <= treason < 0.7 and name not in DIVERGING:
        when = BEGIN_NS + int(draw(seed, "diverges") * (END_NS - BEGIN_NS) / 3)
        faults.append(Fault(when, "diverge", traitor))
    return Plan(
        delay_ms_max=int(5 + 55 * draw(seed, "delay")),
        step_us=8000,
        loss=0.08 * draw(seed, "loss"),
        duplicates=0.05 * draw(seed, "duplicates"),
        corruption=0.01 * draw(seed, "corruption"),
        faults=tuple(sorted(faults, key=lambda f: f.at_ns)),
        liars=(liar,) if draw(seed, "lies") < 0.4 else (),
        equivocators=traitor if treason < 0.3 else (),
        forgers=traitor if 0.3 <= treason < 0.5 else (),
        perjurers=perjurers,
        real_bls=draw(seed, "curve") < REAL_BLS,
    )


def _database_faults(seed: int, machines: int) -> list[Fault]:
    """Draw whether a database fails in this storm: apart from all else, so that it stays as it was
    where none does."""
    if draw(seed, "database") >= DATABASE_FAULTS:
        return []
    at = BEGIN_NS + int(draw(seed, "database fails") * (END_NS - BEGIN_NS))
    target = (int(draw(seed, "whose database") * machines),)
    if draw(seed, "database rots") < 0.4:
        return [Fault(at, "database rot", target)]
    return [Fault(at, "bad database", target, int(draw(seed, "statements") * STATEMENTS_MAX))]


def _fault(seed: int, i: int, begin: int, nns: int, machines: int) -> list[Fault]:
    """Return a fault and its end; an NNS of one node is never cut off for long, nor loses data."""
    target = int(draw(seed, "target", i) * machines)
    length = int((0.3 + 1.5 * draw(seed, "length", i)) * SECOND)
    end = begin + length
    dice = draw(seed, "kind", i)
    alone = nns == 1 and target == 0
    if dice < 0.15:
        return [Fault(begin, "crash", (target,))]
    if dice < 0.21:
        return [Fault(begin, "torn crash", (target,))]
    if dice < 0.30:
        return [Fault(begin, "power cut", (target,), int(draw(seed, "syncs", i) * SYNCS_MAX))]
    if dice < 0.45:
        return [Fault(begin, "orchestrator crash", (target,))]
    if dice < 0.50:
        return [Fault(begin, "pause", (target,)), Fault(end, "resume", (target,))]
    if dice < 0.55:
        slow = int(draw(seed, "sync", i) * SYNC_NS_MAX)
        return [Fault(begin, "slow disk", (target,), slow), Fault(end, "slow disk", (target,), 0)]
    if dice < 0.70:
        return [Fault(begin, "partition", (target,)), Fault(end, "heal")]
    if dice < 0.76:
        return [Fault(begin, "deafen", (target,)), Fault(end, "heal")]
    if dice < 0.82:
        return [Fault(begin, "clog", (target,)), Fault(end, "heal")]
    if dice < 0.90 and not alone:
        if draw(seed, "astray", i) < 0.5:
            astray = Fault(begin, "misdirected write", (target,))
            return [astray, Fault(end + SECOND, "orchestrator crash", (target,))]
        rot = Fault(begin, "bit rot", (target,))
        return [rot, Fault(begin + 100 * MS, "crash", (target,))]
    if dice < 0.93 and not alone:
        old = [Fault(begin, "old registry", (target,)), Fault(begin, "partition", (target,))]
        return [*old, Fault(end, "heal")]
    if dice < 0.97:
        return [Fault(begin, "full disk", (target,)), Fault(end, "space again", (target,))]
    amount = int((draw(seed, "skew", i) - 0.5) * SECOND)
    return [Fault(begin, "skew", (target,), amount), Fault(end, "skew", (target,), -amount)]
