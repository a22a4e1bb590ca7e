"""A fault plan: all that goes wrong in a run, as data that can be shrunk, stored and read."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from simulation.scheduler import MS, SECOND, draw

KINDS = (
    "crash",
    "torn crash",
    "restart",
    "wipe",
    "pause",
    "resume",
    "partition",
    "deafen",
    "clog",
    "heal",
    "skew",
    "stall clock",
    "members",
)
SYSTEM_KINDS = (
    "orchestrator crash",
    "power cut",
    "full disk",
    "space again",
    "slow disk",
    "bit rot",
    "misdirected write",
    "old registry",
    "diverge",
    "bad database",
    "database rot",
)
"""Of whole swarms only."""
ADVERSARIAL_KINDS = ("flood", "silence", "leave", "release", "old copy")
"""Of adversarial plans only (see `simulation.adversarial`)."""
ROLES = (
    "equivocators",
    "twins",
    "amnesiacs",
    "liars",
    "bad_dealers",
    "forgers",
    "perjurers",
    "flooders",
    "withholders",
    "stretchers",
    "accusers",
    "triplets",
    "old_copies",
)
"""Kinds of Byzantine nodes: fields of a plan."""


@dataclass(frozen=True)
class Fault:
    """One entry of a plan."""

    at_ns: int
    """After genesis."""
    kind: str
    """One of:
    crash: the process stops between two steps; torn crash: within the next one, also in the middle
    of writing; restart; wipe: it stops and its disk is lost; pause, resume: it stands still.
    partition: these nodes against the rest; deafen: they hear nobody but are heard; clog: what
    they send is held up; heal: all of it ends, and what was held up arrives.
    skew: their clocks are set; stall clock: their clocks stand until `heal`.
    members: the registry names these as the subnet's members from now on.
    Of whole swarms only: orchestrator crash; power cut: the machine goes dark at one of its next
    syncs, and loses what was not synced; full disk, space again; slow disk: from now on its replica
    waits for each sync; bit rot: of the newest checkpoint; misdirected write: a page of what it
    syncs next, if it does before it is started again, lands in another place, among checkpoints,
    catch-up package and registry store; old registry: it comes back with a backup; diverge: its
    replica computes another state, once, a few heights later; bad database: one of its replica's
    next statements fails; database rot: of pages of its replica's database.
    Of adversarial plans only: flood: these send rubbish; silence: they send nothing more, for ever;
    leave: they stop for good; release: the registry names another one; old copy: what they have on
    disk is again what it was a while ago."""
    nodes: tuple[int, ...] = ()
    amount: int = 0
    """skew: by how many nanoseconds; power cut: after how many more syncs; slow disk: nanoseconds
    for each; bad database: after how many more statements; flood: how many artifacts; old copy:
    how many nanoseconds old."""
    what: str = ""
    """flood: of what (see `simulation.floods`); release: which."""


@dataclass(frozen=True)
class Plan:
    nodes: int = 4
    spares: int = 0
    """Registered nodes, numbered after the members, that are in no subnet at first."""
    outsiders: int = 0
    """Nodes of another subnet, numbered last, for which the state asks for keys all the time."""
    interval: int = 15
    """Length of an interval, less one: CUPs are this + 1 heights apart."""
    delay_ms_min: int = 1
    delay_ms_max: int = 40
    loss: float = 0.0
    duplicates: float = 0.0
    corruption: float = 0.0
    step_us: int = 1000
    """How long a process takes to come round to what arrived."""
    payload_bytes: int = 0
    """Size of the request in every block; 0: empty blocks."""
    faults: tuple[Fault, ...] = ()
    equivocators: tuple[int, ...] = ()
    twins: tuple[int, ...] = ()
    """Nodes of which two instances run with one identity."""
    amnesiacs: tuple[int, ...] = ()
    """Nodes whose disk is lost once: faulty ones, though they find out and are silent."""
    liars: tuple[int, ...] = ()
    """Nodes that sign another state than they should."""
    bad_dealers: tuple[int, ...] = ()
    """Nodes that deal wrong shares to some, or nothing at all."""
    forgers: tuple[int, ...] = ()
    """Nodes that send what nobody signed, old catch-up packages, and shares that are none."""
    perjurers: tuple[int, ...] = ()
    """Of whole swarms only: nodes that attest states which nobody has."""
    flooders: tuple[int, ...] = ()
    """Nodes that send what `flood` says, beside what they owe."""
    withholders: tuple[int, ...] = ()
    """Nodes that send what they owe to some only, or too late."""
    stretchers: tuple[int, ...] = ()
    """Nodes that date their blocks as far ahead as others let pass."""
    accusers: tuple[int, ...] = ()
    """Nodes that make proofs of any two signatures of a maker that they see, and of their own."""
    triplets: tuple[int, ...] = ()
    """Nodes that make three blocks of a height, of which most of the others see the third only."""
    old_copies: tuple[int, ...] = ()
    """Nodes that are put back to an old copy of their disk, once."""
    old_copies_find_out: bool = False
    """Whether an old copy that contradicts itself is a violation."""
    real_bls: bool = False
    """Signatures and dealings of the curve: not keyed hashes, nor groups with open logarithms."""
    slow_execution: bool = False
    checkpoint_ms: int = 0
    """How long the manifest of a checkpoint takes after the height was executed."""
    rounds: int = 0
    """Heights that have to be final; 0: as many as the campaign asks for."""
    cups: int | None = None
    """Catch-up packages that have to follow; None: as many as the campaign asks for."""

    @cached_property
    def is_adversarial(self) -> bool:
        """Whether more than the faults and roles of `random_plan` is in it."""
        roles = ("flooders", "withholders", "stretchers", "accusers", "triplets", "old_copies")
        return any(getattr(self, r) for r in roles) or any(
            f.kind in ADVERSARIAL_KINDS for f in self.faults
        )

    @cached_property
    def faulty(self) -> frozenset[int]:
        """Byzantine nodes; what they sign is no business of the checkers."""
        return frozenset(node for role in ROLES for node in getattr(self, role))


def random_plan(seed: int, rounds: int, nodes: int = 4) -> Plan:
    """Draw a plan: one Byzantine node; crashes, partitions and more, at least one of each."""
    faults: list[Fault] = []
    time = int(SECOND * 0.3)
    byzantine = seed % nodes
    honest = [n for n in range(nodes) if n != byzantine]
    span_ns = rounds * 130 * MS
    for i in itertools.count():
        time += int((0.1 + (0.4 if i < 2 else 1.5) * draw(seed, "gap", i)) * SECOND)
        if time > span_ns:
            break
        length = int((0.1 + (0.5 if i < 2 else 1.2) * draw(seed, "length", i)) * SECOND)
        target = honest[int(draw(seed, "target", i) * len(honest))]
        faults += pair_of_faults(seed, i, time, time + length, target, nodes)
        time += length
    # An amnesiac harms only where it restarts, so it gets a crash of its own.
    roles = (
        "equivocators",
        "equivocators",
        "amnesiacs",
        "liars",
        "bad_dealers",
        "twins",
        "forgers",
    )
    role = roles[int(len(roles) * draw(seed, "role"))]
    if role == "amnesiacs":
        # One that lost its disk has forgotten what it signed: within f, like any other lie.
        for at, kind in ((SECOND, "crash"), (3 * SECOND, "wipe"), (5 * SECOND, "crash")):
            faults += [
                Fault(at, kind, (byzantine,)),
                Fault(at + 200 * MS, "restart", (byzantine,)),
            ]
    spares = 0
    if draw(seed, "membership") < 0.35:
        spares = 1
        faults += _membership(seed, nodes)
    plan = Plan(
        nodes=nodes,
        spares=spares,
        outsiders=4 if draw(seed, "outsiders") < 0.25 else 0,
        delay_ms_max=int(5 + 75 * draw(seed, "delay")),
        loss=0.2 * draw(seed, "loss"),
        duplicates=0.1 * draw(seed, "duplicates"),
        corruption=0.02 * draw(seed, "corruption"),
        faults=tuple(sorted(faults, key=lambda f: f.at_ns)),
        slow_execution=draw(seed, "slow") < 0.3,
        payload_bytes=64,
    )
    changed: dict[str, Any] = {role: (byzantine,)}
    return replace(plan, **changed)


def _membership(seed: int, nodes: int) -> list[Fault]:
    """Add the spare node, replace one by it, or add it and then remove one."""
    everyone = tuple(range(nodes + 1))
    leaver = int(draw(seed, "leaver") * nodes)
    rest = tuple(n for n in everyone if n != leaver)
    at = int((0.2 + 1.5 * draw(seed, "joining")) * SECOND)
    later = at + int((0.5 + 2 * draw(seed, "leaving")) * SECOND)
    steps = draw(seed, "steps")
    if steps < 0.4:
        return [Fault(at, "members", everyone)]
    if steps < 0.7:
        return [Fault(at, "members", rest)]
    return [Fault(at, "members", everyone), Fault(later, "members", rest)]


def pair_of_faults(seed: int, i: int, begin: int, end: int, target: int, nodes: int) -> list[Fault]:
    """Return a fault and its end: the first two are a crash and a partition, in either order."""
    dice = draw(seed, "kind", i)
    if i < 2:
        dice = 0.0 if (seed + i) % 2 == 0 else 0.5
    other = int(draw(seed, "other", i) * nodes)
    side = tuple(sorted({target, other} if draw(seed, "two", i) < 0.4 else {target}))
    if dice < 0.30:
        return [Fault(begin, "crash", (target,)), Fault(end, "restart", (target,))]
    if dice < 0.42:
        return [Fault(begin, "torn crash", (target,)), Fault(end, "restart", (target,))]
    if dice < 0.62:
        return [Fault(begin, "partition", side), Fault(end, "heal")]
    if dice < 0.70:
        return [Fault(begin, "deafen", (target,)), Fault(end, "heal")]
    if dice < 0.78:
        return [Fault(begin, "clog", (target,)), Fault(end, "heal")]
    if dice < 0.90:
        return [Fault(begin, "pause", (target,)), Fault(end, "resume", (target,))]
    if dice < 0.97:
        amount = int((draw(seed, "skew", i) - 0.5) * SECOND)
        return [Fault(begin, "skew", (target,), amount), Fault(end, "skew", (target,), -amount)]
    return [Fault(begin, "stall clock", side), Fault(end, "heal")]


# -- plans as text


def to_json(plan: Plan) -> str:
    """Write down what differs from a quiet run; read it back with `from_json`."""
    quiet = Plan()
    plain: dict[str, Any] = {
        f.name: getattr(plan, f.name)
        for f in fields(plan)
        if f.name != "faults" and getattr(plan, f.name) != getattr(quiet, f.name)
    }
    plain["faults"] = [_fault_as_text(fault) for fault in plan.faults]
    return json.dumps(plain, indent=1, sort_keys=True)


def _fault_as_text(fault: Fault) -> dict[str, Any]:
    plain = asdict(fault)
    if not fault.what:
        del plain["what"]
    return plain


def from_json(text: str) -> Plan:
    """Raises: ValueError, TypeError for anything that is not a plan."""
    plain = json.loads(text)
    plain["faults"] = tuple(
        Fault(f["at_ns"], f["kind"], tuple(f["nodes"]), f.get("amount", 0), f.get("what", ""))
        for f in plain["faults"]
    )
    known = {f.name for f in fields(Plan)}
    if set(plain) - known:
        raise ValueError(f"not parts of a plan: {sorted(set(plain) - known)}")
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    return Plan(**lists)
