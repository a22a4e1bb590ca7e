"""What a person sees of a campaign, while it runs and after it."""

from __future__ import annotations

from collections import Counter

from simulation.__main__ import Watch, report
from simulation.campaign import Failure, Result


def test_violations_are_told_once_and_as_soon_as_they_are_found() -> None:
    told: list[str] = []
    watch, so_far = Watch(told.append, 40), Result()
    for seed in range(40):
        so_far.seeds += 1
        if seed in (7, 8):
            so_far.failures.append(Failure("upgrade", seed, "it forked"))
        watch.look(so_far, in_tenths=False)
    assert told == ["upgrade, seed 7: it forked", "upgrade, seed 8: it forked"]


def test_where_nobody_sees_a_bar_each_tenth_is_told_once() -> None:
    told: list[str] = []
    watch, so_far = Watch(told.append, 1000), Result()
    for done in (1, 99, 100, 101, 350, 1000):
        so_far.seeds, so_far.seconds = done, 2.0 * done
        watch.look(so_far, in_tenths=True)
    assert told == [
        "100 of 1000 seeds, 200 s, 0 violations",
        "350 of 1000 seeds, 700 s, 0 violations",
    ]


def test_a_report_names_how_to_run_a_failure_again_and_what_was_never_met() -> None:
    result = Result(
        seeds=4,
        rounds=80,
        seconds=2.0,
        counts=Counter({"crash": 3, "losses": 5, "upgrade": 1}),
        failures=[Failure("upgrade", 12, "it forked")],
        rare=("crash", "pause"),
    )
    assert report("all", result, 10, 4) == [
        "all, seeds 10 to 13: 2.0 seeds/s, 40 rounds/s, 80 rounds, 1 violations",
        "  faults injected",
        "    crash    3",
        "  situations met",
        "    losses   5",
        "  drills run",
        "    upgrade  1",
        "  never met: pause",
        "  upgrade, seed 12: it forked\n    again: make simulate SEEDS=1 FIRST=12 SCENARIO=upgrade",
    ]
