"""How slow a machine is: cores that do less, and cores that are elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.calibration import REFERENCE_S, Meter, Ticks, loop, ticks


def test_the_kernels_counters_are_read(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 5 20 9000 7 1 2 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert ticks(stat) == Ticks(total=9175, stolen=40)
    assert ticks(tmp_path / "none") == Ticks(0, 0)


def test_slow_cores_and_stolen_time_multiply() -> None:
    meter = Meter(loops=[REFERENCE_S, 3 * REFERENCE_S], total=400, stolen=100)
    assert meter.stolen_share == pytest.approx(0.25)
    assert meter.slowness == pytest.approx(2 / 0.75)
    assert "25% of its time stolen" in meter.note


def test_what_is_measured_is_counted_and_calibrated() -> None:
    meter = Meter()
    meter.calibrate()
    with meter.counting():
        taken = sum(loop() for _ in range(3))
    meter.calibrate()
    assert len(meter.loops) == 6
    assert 0 < taken < 100
    assert meter.slowness > 0
