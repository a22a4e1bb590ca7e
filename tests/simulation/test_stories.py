"""Drills in virtual time: every phase is gone through, whatever the seed kills and cuts off."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from simulation.recovery import PHASES
from simulation.stories import STORIES


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_story_ends_well(name: str, seed: int) -> None:
    story = STORIES[name](seed)
    assert story.rto_seconds > 0 and story.height_after > story.height_before
    assert all(seconds >= 0 for _, seconds in story.phases)
    if name == "subnet-divergence":
        assert tuple(phase for phase, _ in story.phases) == PHASES


def test_a_seed_tells_the_same_story_twice() -> None:
    assert STORIES["subnet-divergence"](5) == STORIES["subnet-divergence"](5)
    assert STORIES["subnet-divergence"](5) != STORIES["subnet-divergence"](6)


def test_the_command_prints_what_a_drill_prints() -> None:
    command = [sys.executable, "-m", "cli.main", "drill", "run"]
    done = subprocess.run(
        [*command, "subnet-divergence", "--simulated", "--seed", "7", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout)
    assert (outcome["scenario"], outcome["seed"]) == ("subnet-divergence", 7)
    assert outcome["outcome"] == "recovered"
    refused = subprocess.run([*command, "upgrade", "--simulated"], capture_output=True, text=True)
    assert refused.returncode == 5 and "can't be simulated yet" in refused.stderr
