"""The drills' own scenarios, run on a simulated swarm, with a storm of faults."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from cli.lab import drills as lab
from cli.lab.drill import Outcome
from cli.lab.swarm import Options
from simulation import open_groups
from simulation.checker import Violation
from simulation.scheduler import SECOND, draw
from simulation.system.sockets import OPERATOR
from simulation.system.storms import storm
from simulation.system.swarm import SimulatedGround, System

LIMIT_NS = 900 * SECOND
"""Of virtual time, within which a drill must be over."""
OPTIONS = Options(
    interval_blocks=14,
    notary_delay_ms=300,
    unit_delay_ms=1500,
    nns_notary_delay_ms=200,
    backoff_ms=20,
    poll_ms=600,
    journal_entries=40,
)
"""Blocks are slow: virtual time costs nothing, blocks do."""
WEIGHTS = {
    "subnet-divergence": 4,
    "subnet-loss": 4,
    "node-catch-up": 4,
    "upgrade": 3,
    "membership-change": 1,
    "canister-failure": 1,
    "root-failure": 1,
    "governance-failure": 1,
    "nns-stall": 1,
    "nns-loss": 1,
}
"""How often each is drawn when a seed may choose."""
assert set(WEIGHTS) == set(lab.SIMULATED), "what is drawn is what can be simulated"


def drawn(seed: int) -> str:
    """Return the scenario that a seed stands for."""
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    return names[int(draw(seed, "scenario") * len(names))]


def run(
    name: str, seed: int, say: Callable[[str], None] = lambda _: None
) -> tuple[Outcome, Counter[str]]:
    """Run a drill in the storm that is drawn from the seed; also return what happened how often.

    Raises: Violation, also when it fails or does not end.
    """
    system = System(seed, storm(name, seed))
    return run_on(system, name, say), system.counts


def run_on(system: System, name: str, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run a drill on a fresh system. Raises: Violation, also when it fails or does not end."""
    system.counts["on the curve"] += system.plan.real_bls
    with nullcontext() if system.plan.real_bls else open_groups.in_use():
        return _run_on(system, name, say)


def _run_on(system: System, name: str, say: Callable[[str], None]) -> Outcome:
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="reprise-simulated-", dir=where))
    outcomes: list[Outcome] = []

    def work() -> None:
        options = replace(OPTIONS, nns_nodes=lab.SIMULATED[name].nns_nodes)
        with system.fibers.acting(OPERATOR):
            outcomes.append(lab.run(name, options, say, folder, ground=SimulatedGround(system)))

    main = system.fibers.spawn(work)
    system.schedule_faults()
    try:
        with system.disks.watched(), system.databases.watched():
            if not system.run(lambda: main.ended, LIMIT_NS):
                raise Violation(f"the drill is not over after {LIMIT_NS / 1e9:.0f} s")
    finally:
        main.kill()
        system.counts["asked again"] += system.wires.asked_again
        for machine in system.machines:
            machine.hold()
            for what, count in machine.disk.lost.items():
                system.counts[f"lost {what}"] += count
            system.counts["pages gone astray"] += machine.disk.astray
            system.counts["database errors"] += machine.database.failures
        system.fibers.close()
        shutil.rmtree(folder, ignore_errors=True)
    (outcome,) = outcomes
    # A drill may also fail because more was fetched than on a calm day: that is no violation.
    if outcome.error or not outcome.state_preserved:
        raise Violation(f"{name} failed: {outcome.error or 'state not preserved'}")
    return outcome
