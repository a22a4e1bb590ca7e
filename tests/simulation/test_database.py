"""Databases and disks that fail below whole swarms: nobody signs another state, all heal."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from replica.protocol import envelope
from replica.protocol.ids import ANONYMOUS, canister_id
from simulation import mutants
from simulation.plan import Fault, Plan
from simulation.scheduler import GENESIS_NS, MS, SECOND
from simulation.system import drills, machine
from simulation.system.database import Database, Databases
from simulation.system.swarm import System

APP = (1, 2, 3, 4)


def run(faults: list[Fault], act: Callable[[System], None] = lambda _: None) -> System:
    system = System(1, Plan(delay_ms_max=20, step_us=8000, faults=tuple(faults)))
    act(system)
    drills.run_on(system, "canister-failure")
    return system


def certified(system: System) -> int:
    """Return the highest certified height of the application subnet."""
    heights = [0]
    for index in APP:
        process = system.machines[index].replica
        if process is not None and process.real is not None:
            heights.append(process.real.state.certified_height)
    return max(heights)


@pytest.mark.timeout(600)
def test_a_database_that_fails_anywhere_or_rots_ends_its_replica_which_heals() -> None:
    faults = [Fault((9_000 + 600 * i) * MS, "bad database", (i % 5,), 7 * i) for i in range(16)]
    faults += [Fault((9_300 + 900 * i) * MS, "database rot", (APP[i % 4],)) for i in range(8)]
    system = run(faults)
    assert system.counts["machines' faults"] >= 5
    assert system.counts["database errors"] > system.counts["machines' faults"]


@pytest.mark.timeout(600)
def test_what_fails_in_a_seed_fails_in_the_same_way_in_any_folder() -> None:
    faults = [Fault((9_000 + 900 * i) * MS, "bad database", (i % 5,), 7 * i) for i in range(4)]
    faults += [Fault((9_300 + 900 * i) * MS, "database rot", (APP[i],)) for i in range(4)]
    assert run(faults).trace() == run(faults).trace()


@pytest.mark.timeout(600)
def test_half_of_a_subnet_on_rotten_databases_stops_nobody() -> None:
    """Two traps that were signed made a divergence that only a vote could end."""
    faults = [Fault((10_000 + 2_500 * i) * MS, "database rot", (1, 2)) for i in range(4)]
    system = run(faults)
    assert system.counts["database rot"] == 4 and not system.counts["diverged nodes"]


@pytest.mark.timeout(600)
def test_a_database_that_stays_bad_is_tried_now_and_then_and_the_node_says_so() -> None:
    starts: list[int] = []
    words: list[str] = []

    def act(system: System) -> None:
        bad = system.machines[1]

        def look() -> None:
            if bad.orchestrator is not None and bad.orchestrator.real is not None:
                words.append(str(bad.orchestrator.real.status()["replica_last_words"]))

        honest = system.checker.starting

        def starting(of: machine.Machine, version: str) -> None:
            if of is bad:
                starts.append(system.now)
            honest(of, version)

        system.checker.starting = starting  # type: ignore[method-assign]
        system.at(GENESIS_NS + 9 * SECOND, lambda: bad.database.fail(0, stays_bad=True))
        system.at(GENESIS_NS + 17 * SECOND, look)
        system.at(GENESIS_NS + 17 * SECOND, bad.database.heal)

    # There are machines once the swarm is up.
    def later(system: System) -> None:
        system.at(GENESIS_NS + 8 * SECOND, act, system)

    system = run([], later)
    assert 3 <= len([s for s in starts if s < GENESIS_NS + 17 * SECOND]) <= 8
    assert "did not start: opening the database" in words[0]
    process = system.machines[1]
    assert process.database.failures > 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seen", [1.0, 0.0], ids=["noticed before", "met in the middle"])
def test_four_of_four_full_disks_answer_reads_and_go_on_once_there_is_space(
    seen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SEEN_FULL", seen)
    begin, end = 10 * SECOND, 16 * SECOND
    heights: dict[str, int] = {}
    answers: list[int] = []

    def act(system: System) -> None:
        def read() -> None:
            for index in APP:
                process = system.machines[index].replica
                if process is not None and process.is_up():
                    answers.append(_read(system, index))

        def note(name: str) -> None:
            heights[name] = max(heights.get(name, 0), certified(system))

        if seen:
            system.at(GENESIS_NS + end - SECOND, lambda: system.fibers.spawn(read))
        after = [("later", end + i * SECOND // 2) for i in range(1, 21)]
        for name, at in (("full", begin + SECOND), ("space", end), *after):
            system.at(GENESIS_NS + at, note, name)

    full = [Fault(begin, "full disk", APP), Fault(end, "space again", APP)]
    system = run(full, act)
    assert heights["space"] <= heights["full"] + 1, "nothing goes on without space"
    assert heights["later"] > heights["space"] + 5
    if seen:
        assert answers == [200] * 4 and system.counts["waits for space"] > 20
        assert not system.counts["machines' faults"]


def _read(system: System, index: int) -> int:
    replica = system.machines[index].replica
    assert replica is not None and replica.real is not None
    body = envelope.sign_request(
        {
            "request_type": "read_state",
            "sender": bytes(ANONYMOUS),
            "ingress_expiry": system.now + SECOND,
            "paths": [[b"time"]],
        },
        None,
    )[1]
    return replica.answer("POST", f"/api/v2/canister/{canister_id(1)}/read_state", "", body).status


def test_what_the_mutant_disk_signs_is_caught_by_passes_without_it() -> None:
    assert mutants.fault("rotten", 0) is None


@pytest.mark.parametrize("after", range(6))
def test_a_statement_fails_when_it_is_time_and_the_connection_lives_on(
    after: int, tmp_path: Path
) -> None:
    bad, databases = Database(lambda *_: 0.5), Databases()
    databases.add(tmp_path, bad)
    with databases.watched():
        connection = sqlite3.dbapi2.connect(str(tmp_path / "state.db"))
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (k INTEGER)")
        bad.fail(after)
        done = 0
        with pytest.raises(sqlite3.Error) as caught:
            for number in range(10):
                cursor.execute("INSERT INTO t VALUES (?)", (number,))
                done += 1
                connection.commit()
                done += 1
        assert done == after and caught.value.sqlite_errorcode
        connection.rollback()
        rows = cursor.execute("SELECT count(*) FROM t").fetchone()[0]
        assert rows == done // 2 and bad.failures == 1
        connection.close()
