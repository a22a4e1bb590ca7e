"""Runs that once failed, or that others failed in, kept as readable plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation import mutants, shrink
from simulation.campaign import run_plan
from simulation.plan import Fault, Plan, random_plan
from simulation.scheduler import MS
from simulation.system import drills
from simulation.system.swarm import System

FILES = sorted((Path(__file__).parent.parent / "scenarios").glob("*.json"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_scenario(path: Path) -> None:
    scenario = shrink.load(path)
    if scenario.drill:
        drills.run_on(System(scenario.seed, scenario.plan), scenario.drill)
    else:
        run_plan(scenario.seed, scenario.plan, exhaustive=True)


def test_shrinking_keeps_the_faults_that_matter() -> None:
    """Of many faults, two make the condition true: they are what is left."""
    plan = random_plan(7, 200)
    assert len(plan.faults) > 8

    def fails(candidate: Plan) -> str | None:
        kinds = [f.kind for f in candidate.faults]
        return "both" if "crash" in kinds and "partition" in kinds else None

    small = shrink.shrink(plan, fails)
    assert sorted(f.kind for f in small.faults) == ["crash", "partition"]
    assert small.loss == 0 and not small.faulty


def test_a_broken_protocol_shrinks_to_a_readable_plan(tmp_path: Path) -> None:
    """A finalizer that forgets its notarizations: a few partitions and the equivocator remain."""
    from replica.consensus import finalizer

    kept = finalizer.NotarizationShare  # type: ignore[attr-defined]
    faults = [
        Fault((300 + 300 * i) * MS, "partition" if i % 2 == 0 else "heal", (0, 1 + i % 3))
        for i in range(16)
    ]
    plan = Plan(faults=tuple(faults), equivocators=(0,), loss=0.05)
    try:
        next(m for m in mutants.MUTANTS if m.name == "forgetful-finalizer").break_it()
        assert shrink.why(0, plan) is not None
        small = shrink.shrink(plan, lambda p: shrink.why(0, p))
        assert shrink.why(0, small) is not None
    finally:
        finalizer.NotarizationShare = kept  # type: ignore[attr-defined]
    assert len(small.faults) < len(plan.faults) / 2
    path = tmp_path / "small.json"
    shrink.store(shrink.Scenario("forgetful finalizer", 0, small), path)
    assert shrink.load(path).plan == small
    assert shrink.why(0, small) is None, "the honest protocol survives it"


def test_what_is_not_a_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"about": "", "seed": 1, "plan": {"nodez": 4, "faults": []}}')
    with pytest.raises(ValueError, match="nodez"):
        shrink.load(path)
