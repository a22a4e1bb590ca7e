"""From a failing run to the few faults that matter, and back from a file.

Every draw of a run hangs on the name of what it decides, not on what was drawn before: leaving a
fault out leaves the rest as it was. So halving the list of faults (ddmin) and calming one
parameter after the other ends at a plan that a person can read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulation import campaign
from simulation.plan import ROLES, Fault, Plan, from_json, to_json

Fails = Callable[[Plan], str | None]
"""Why a run under a plan fails; None: it does not."""


@dataclass(frozen=True)
class Scenario:
    """A run worth keeping, as it is stored under tests/scenarios."""

    about: str
    seed: int
    plan: Plan
    drill: str = ""
    """The drill that a whole swarm goes through meanwhile; empty: consensus alone."""


def why(seed: int, plan: Plan, drill: str = "") -> str | None:
    try:
        if drill:
            from simulation.system import drills
            from simulation.system.swarm import System

            drills.run_on(System(seed, plan), drill)
        else:
            campaign.run_plan(seed, plan)
    except Exception as error:  # whatever escapes from the simulated code is a bug of it
        return str(error) or type(error).__name__
    return None


def shrink(plan: Plan, fails: Fails, say: Callable[[str], None] = lambda _: None) -> Plan:
    """Return a smaller plan that fails as well. The given one has to fail."""
    assert fails(plan) is not None, "a run that does not fail can't be shrunk"
    while True:
        smaller = _calm(_fewer(plan, fails, say), fails)
        if smaller == plan:
            return plan
        say(f"{len(smaller.faults)} faults left")
        plan = smaller


def _fewer(plan: Plan, fails: Fails, say: Callable[[str], None]) -> Plan:
    """Drop groups of faults, then single ones, as long as the run still fails."""
    size = max(1, len(plan.faults) // 2)
    while plan.faults:
        position = 0
        while position < len(plan.faults):
            kept = plan.faults[:position] + plan.faults[position + size :]
            if fails(replace(plan, faults=kept)) is not None:
                plan = replace(plan, faults=kept)
                say(f"{len(kept)} faults left")
            else:
                position += size
        if size == 1:
            break
        size //= 2
    return plan


QUIET = Plan()
CALMER = (
    "loss",
    "duplicates",
    "corruption",
    "slow_execution",
    "payload_bytes",
    "checkpoint_ms",
    *ROLES,
    "delay_ms_max",
    "interval",
)


def _calm(plan: Plan, fails: Fails) -> Plan:
    """Set parameters to what they are in a quiet run, and round the times of faults."""
    for name in CALMER:
        change: dict[str, Any] = {name: getattr(QUIET, name)}
        candidate = replace(plan, **change)
        if candidate != plan and fails(candidate) is not None:
            plan = candidate
    rounded = tuple([_rounded(f) for f in plan.faults])
    if rounded != plan.faults and fails(replace(plan, faults=rounded)) is not None:
        plan = replace(plan, faults=rounded)
    return plan


def _rounded(fault: Fault) -> Fault:
    step = 50_000_000
    return replace(fault, at_ns=round(fault.at_ns / step) * step)


def load(path: Path) -> Scenario:
    """Raises: ValueError, TypeError, KeyError for anything that is not a scenario."""
    plain = json.loads(path.read_text())
    plan = from_json(json.dumps(plain["plan"]))
    return Scenario(plain["about"], plain["seed"], plan, plain.get("drill", ""))


def store(scenario: Scenario, path: Path) -> None:
    plain = {
        "about": scenario.about,
        **({"drill": scenario.drill} if scenario.drill else {}),
        "seed": scenario.seed,
        "plan": json.loads(to_json(scenario.plan)),
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")
