"""The drills' own scenarios, run on a simulated swarm."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cli.lab import drills as lab
from cli.lab.drill import Outcome
from cli.lab.swarm import Options
from simulation.checker import Violation
from simulation.plan import Plan
from simulation.scheduler import SECOND
from simulation.system.swarm import SimulatedGround, System

LIMIT_NS = 1800 * SECOND
"""Of virtual time, within which a drill must be over."""
OPTIONS = Options(
    interval_blocks=20,
    notary_delay_ms=300,
    unit_delay_ms=1500,
    nns_notary_delay_ms=300,
    backoff_ms=20,
    journal_entries=40,
)
"""Blocks are slow: virtual time costs nothing, blocks do."""


def run(
    name: str, seed: int, plan: Plan, say: Callable[[str], None] | None = None
) -> tuple[System, Outcome]:
    """Run a drill. Raises: Violation, also when it fails or does not end."""
    system = System(seed, plan, say)
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="reprise-simulated-", dir=where))
    outcomes: list[Outcome] = []

    def work() -> None:
        options = replace(OPTIONS, nns_nodes=lab.SCENARIOS[name].nns_nodes)
        talk = say if say is not None else lambda _: None
        outcomes.append(lab.run(name, options, talk, folder, ground=SimulatedGround(system)))

    main = system.fibers.spawn(work)
    try:
        if not system.run(lambda: main.ended, LIMIT_NS):
            raise Violation(f"the drill is not over after {LIMIT_NS / 1e9:.0f} s")
    finally:
        for machine in system.machines:
            machine.hold()
        shutil.rmtree(folder, ignore_errors=True)
    (outcome,) = outcomes
    if outcome.outcome != "recovered":
        raise Violation(f"{name} failed: {outcome.error or 'state not preserved'}")
    return system, outcome
