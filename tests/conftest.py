"""Sums up what the simulations met, so that a campaign in which nothing happened is visible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "simulation":
                    totals.update(value)
    if totals:
        text = ", ".join(f"{v} {k}" for k, v in sorted(totals.items()))
        terminalreporter.write_line(f"simulated: {text}")


@pytest.fixture
def campaign(record_property: Any) -> Iterator[Counter[str]]:
    """Counts of what a simulation met; reported at the end."""
    counts: Counter[str] = Counter()
    yield counts
    record_property("simulation", dict(counts))
