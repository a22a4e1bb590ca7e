"""Whole swarms in virtual time: the drills' own code, with everything else real, in a storm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.lab.drills import SIMULATED
from replica.protocol import cbor, envelope
from replica.protocol.ids import ANONYMOUS, REGISTRY
from simulation import mutants
from simulation.checker import Violation
from simulation.plan import KINDS, SYSTEM_KINDS, Plan
from simulation.scheduler import GENESIS_NS, MS, SECOND, Scheduler
from simulation.system import drills
from simulation.system.fibers import Fibers, Lock
from simulation.system.storms import storm
from simulation.system.swarm import System


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SIMULATED)
def test_a_drill_in_a_storm(name: str) -> None:
    outcome, met = drills.run(name, 1)
    assert outcome.state_preserved and not outcome.error
    assert outcome.height_after > outcome.height_before
    assert met["catch-up packages"] > 0 and met["losses"] > 0


@pytest.mark.parametrize("campaign", ["stop and go", "impatient"])
def test_what_mutants_are_caught_by_passes_without_them(campaign: str) -> None:
    """Replicas that paused lag behind what was certified: they repeated requests once (S12)."""
    assert mutants.fault(campaign, 1) is None


def test_a_replica_that_is_behind_says_so_and_answers_nobody() -> None:
    system = System(1, Plan(delay_ms_max=20, step_us=8000))
    seen: list[tuple[str, int]] = []

    def ask() -> None:
        replica = system.machines[0].replica
        while replica is None or not replica.is_up():
            system.fibers.sleep(8 * MS)
            replica = system.machines[0].replica
        body = envelope.sign_request(
            {
                "request_type": "read_state",
                "sender": bytes(ANONYMOUS),
                "ingress_expiry": system.now + SECOND,
                "paths": [[b"time"]],
            },
            None,
        )[1]
        url = f"/api/v2/canister/{REGISTRY}/read_state"
        while not seen or seen[-1][0] != "healthy":
            status = cbor.loads(replica.answer("GET", "/api/v2/status", "", b"").body)
            reply = replica.answer("POST", url, "", body)
            assert reply.status == 200 or b"try again in a second" in reply.body
            seen.append((status["replica_health_status"], reply.status))
            system.fibers.sleep(8 * MS)

    def crash() -> None:
        assert system.machines[0].replica is not None
        system.machines[0].replica.end("killed")
        system.fibers.spawn(ask)

    system.at(GENESIS_NS + 14 * SECOND, crash)
    drills.run_on(system, "canister-failure")
    assert list(dict.fromkeys(seen)) == [
        ("waiting_for_certified_state", 503),
        ("certified_state_behind", 503),
        ("healthy", 200),
    ]


def test_storms_draw_every_fault_of_swarms_and_none_that_has_no_name() -> None:
    drawn = {f.kind for seed in range(400) for f in storm("upgrade", seed).faults}
    assert set(SYSTEM_KINDS) <= drawn <= {*KINDS, *SYSTEM_KINDS}


def test_a_seed_is_the_same_run_under_any_hash_seed() -> None:
    code = (
        "from simulation.system.swarm import System; from simulation.system import drills;"
        "from simulation.system.storms import storm;"
        "system = System(3, storm('canister-failure', 3));"
        "drills.run_on(system, 'canister-failure'); print(system.trace())"
    )
    traces = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]
    assert traces[0] == traces[1] != ""


def test_a_fiber_waits_for_a_lock_also_when_its_holder_is_killed() -> None:
    scheduler = Scheduler(1)
    fibers = Fibers(scheduler)
    lock, order = Lock(fibers), list[str]()

    def work(name: str) -> None:
        with lock:
            order.append(f"{name} in")
            fibers.sleep(SECOND)
            order.append(f"{name} out")

    def later() -> None:
        fibers.sleep(3 * SECOND // 2)
        fibers.spawn(lambda: work("last"))
        fibers.sleep(SECOND // 4)
        holder.kill()
        fibers.sleep(2 * SECOND)

    tasks = [fibers.spawn(lambda: work("first")), fibers.spawn(later)]
    scheduler.run(lambda: order == ["first in"], SECOND)
    holder = fibers.spawn(lambda: work("second"))
    scheduler.run(lambda: all(t.ended for t in tasks), 10 * SECOND)
    assert order == ["first in", "first out", "second in", "last in", "last out"]


def test_who_acts_is_known_to_each_fiber() -> None:
    scheduler = Scheduler(1)
    fibers = Fibers(scheduler)
    seen: list[object] = []

    def work(name: str) -> None:
        with fibers.acting(name):
            fibers.sleep(SECOND)
            with fibers.acting(f"{name}'s server"):
                fibers.sleep(SECOND)
                seen.append(fibers.actor)
            seen.append(fibers.actor)
        seen.append(fibers.actor)

    tasks = [fibers.spawn(lambda n=n: work(n)) for n in ("a", "b")]  # type: ignore[misc]
    scheduler.run(lambda: all(t.ended for t in tasks), 10 * SECOND)
    assert seen == ["a's server", "a", None, "b's server", "b", None]


def test_the_command_prints_what_a_drill_prints() -> None:
    command = [sys.executable, "-m", "cli.main", "drill", "run", "canister-failure"]
    done = subprocess.run(
        [*command, "--simulated", "--seed", "7", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout)
    assert (outcome["scenario"], outcome["seed"]) == ("canister-failure", 7)
    assert outcome["outcome"] == "recovered" and outcome["state_preserved"]


def test_a_drill_that_does_not_end_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drills, "LIMIT_NS", 3 * SECOND)
    with pytest.raises(Violation, match="not over"):
        drills.run("canister-failure", 1)


def test_fibers_wait_for_each_other_and_die_where_they_wait() -> None:
    scheduler = Scheduler(1)
    fibers, said = Fibers(scheduler), []

    def count(name: str, step: int) -> None:
        try:
            for i in range(5):
                fibers.sleep(step)
                said.append(f"{name}{i}")
        finally:
            said.append(f"{name} ends")

    def main() -> None:
        slow, fast = fibers.spawn(lambda: count("s", 310)), fibers.spawn(lambda: count("f", 200))
        fast.join()
        slow.kill()
        assert not slow.is_alive() and not fast.is_alive()
        said.append("joined")

    main_fiber = fibers.spawn(main)
    assert scheduler.run(lambda: main_fiber.ended, SECOND)
    assert said[:4] == ["f0", "s0", "f1", "f2"] and said[-1] == "joined"
    assert said.count("f ends") == said.count("s ends") == 1


def test_coroutines_run_under_virtual_time_one_inside_the_other() -> None:
    import asyncio

    scheduler = Scheduler(1)
    fibers, took = Fibers(scheduler), []

    async def inner() -> str:
        await asyncio.sleep(2.0)
        return "inner"

    async def outer() -> str:
        await asyncio.sleep(1.0)
        return fibers.run(inner())

    def main() -> None:
        began = scheduler.now
        assert fibers.run(outer()) == "inner"
        with pytest.raises(TimeoutError):
            fibers.run(asyncio.wait_for(asyncio.sleep(50), 0.5))
        took.append(scheduler.now - began)

    fiber = fibers.spawn(main)
    assert scheduler.run(lambda: fiber.ended, 60 * SECOND)
    assert 3.5 <= took[0] / SECOND < 3.6
