"""Mutants count as caught by what passes without them. That all are: `make mutants`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from simulation import mutants
from simulation.mutants import Mutant

broken: list[bool] = []


def _campaign(seed: int) -> None:
    assert not broken or seed < 2, "noticed"


def _campaign_that_fails_anyway(seed: int) -> None:
    raise AssertionError("always")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(work: Callable[..., Any], *arguments: Any) -> Any:
        broken.clear()
        return work(*arguments)

    monkeypatch.setattr(mutants, "_apart", apart)
    made = Mutant("made", "for this test", "made", lambda: broken.append(True))
    monkeypatch.setattr(mutants, "MUTANTS", (made,))


def test_a_mutant_is_caught_by_a_seed_that_passes_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(mutants.CAMPAIGNS, "made", _campaign)
    verdict = mutants.judge("made")
    assert verdict.killed and verdict.seed == 2 and verdict.reason.startswith("noticed")


def test_what_fails_anyway_catches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mutants.CAMPAIGNS, "made", _campaign_that_fails_anyway)
    verdict = mutants.judge("made")
    assert not verdict.killed
    assert "seed 0 fails without it as well: always" in verdict.reason
