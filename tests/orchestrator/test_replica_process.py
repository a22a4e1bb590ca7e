"""A replica that keeps crashing: started less and less often, and its last words are told."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.lab.layout import NodeEntry
from cli.recovery.detect import NodeReport, crash_loops
from orchestrator.replica_process import (
    BACKOFF_NS_MIN,
    FAULT_EXIT,
    CrashLoop,
    ReplicaProcess,
)
from replica import node
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Principal

CRASHING = """
import sys
sys.stderr.write("starts\\n" + "x" * 5000 + "\\nthe disk is on fire\\n\\n")
sys.exit(1)
"""


PACKAGE = SimpleNamespace(epoch=1, run_start=0)


def _crash(process: ReplicaProcess, release: Path) -> None:
    process.start(release, "aa", PACKAGE)
    end = time.monotonic() + 60
    while process.is_running():
        assert time.monotonic() < end, "it never ended"
        time.sleep(0.01)


def test_what_a_crashed_replica_said_last_is_known(tmp_path: Path) -> None:
    release = tmp_path / "release"
    (release / "replica").mkdir(parents=True)
    (release / "replica" / "__init__.py").touch()
    (release / "replica" / "__main__.py").write_text(CRASHING)
    process = ReplicaProcess(tmp_path, tmp_path / "replica.log")
    assert (process.crashes, process.last_words) == (0, "")
    _crash(process, release)
    assert (process.crashes, process.last_words) == (1, "the disk is on fire")
    before = time.monotonic_ns()
    _crash(process, release)
    assert process.crashes == 2
    assert process.not_before_ns >= before + BACKOFF_NS_MIN
    assert process.version is None and process.pid is None


class _Agent:
    """Answers for orchestrators by what their URL says: crashes, or that it is down."""

    def orchestrator_status(self, url: str) -> dict[str, Any]:
        if url == "down":
            raise Unavailable("down")
        return {"replica_crashes": int(url), "replica_last_words": f"crash {url}"}

    def each(self, work: Any, items: Any) -> list[Any]:
        return [work(i) for i in items]


@pytest.mark.parametrize(
    ("url", "expected"),
    [("down", []), ("0", []), ("1", []), ("2", ["app-1: the replica keeps crashing: crash 2"])],
)
def test_one_crash_is_no_loop_and_a_dead_machine_none_either(
    url: str, expected: list[str], tmp_path: Path
) -> None:
    answers = NodeEntry("app-0", Principal(b"0"), "app", "", "0", tmp_path)
    silent = NodeEntry("app-1", Principal(b"1"), "app", "", url, tmp_path)
    reports = [NodeReport(answers, {"certified_height": 1}), NodeReport(silent, None)]
    assert crash_loops(reports, _Agent()) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "pause_s_max"), [(FAULT_EXIT, 5), (1, 30)])
def test_a_disk_that_stays_bad_is_tried_less_and_less_often_but_never_given_up(
    status: int, pause_s_max: int
) -> None:
    """In ten minutes of virtual time; each start lives for half a second."""
    loop, now, starts = CrashLoop(), 0, list[int]()
    while now < 600 * 10**9:
        starts.append(now)
        now += 500_000_000
        loop.note(500_000_000, now, is_fault=status == FAULT_EXIT)
        now = max(now, loop.not_before_ns)
    pauses = [later - earlier - 500_000_000 for earlier, later in pairwise(starts)]
    assert pauses == sorted(pauses) and pauses[-1] == pause_s_max * 10**9
    assert loop.crashes == len(starts) <= 120


def test_what_a_replica_on_a_bad_disk_says_is_in_the_status(tmp_path: Path) -> None:
    release = tmp_path / "release"
    (release / "replica").mkdir(parents=True)
    (release / "replica" / "__init__.py").touch()
    words = "DISK OR MEMORY FAILED, ends unsigned"
    (release / "replica" / "__main__.py").write_text(
        f"import sys\nsys.stderr.write({words!r} + chr(10))\nsys.exit({FAULT_EXIT})\n"
    )
    process = ReplicaProcess(tmp_path, tmp_path / "replica.log")
    for _ in range(5):
        before = time.monotonic_ns()
        _crash(process, release)
    assert process.last_words == words
    assert before + 3 * 10**9 < process.not_before_ns <= time.monotonic_ns() + 5 * 10**9
    assert FAULT_EXIT == node.FAULT_EXIT
