"""The orchestrator's choice, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.decide import (
    Facts,
    Report,
    StartReplica,
    StopReplica,
    StoreCup,
    choose_cup,
    decide,
)
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import Beacon, Block, Summary, ValidationContext
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.ids import (
    Epoch,
    Height,
    NodeId,
    Principal,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
)

MEMBER = NodeId(Principal(b"n"))


def package(
    height: int, epoch: int = 1, signed: bool = True, run_start: int = 0
) -> cup.CatchUpPackage:
    keys = Transcript(1, (MEMBER,), b"k", (b"k",))
    summary = Summary(
        RegistryVersion(epoch),
        Height(height),
        9,
        9,
        keys,
        keys,
        RegistryVersion(epoch),
        (),
        Height(run_start),
    )
    block = Block(
        "v1",
        Height(run_start),
        SubnetId(Principal(b"s")),
        Epoch(epoch),
        Height(height),
        Rank(0),
        b"",
        artifacts.payload_hash(summary),
        ValidationContext(RegistryVersion(epoch), Height(height), TimeNs(1)),
    )
    beacon = Beacon(Epoch(epoch), Height(height), b"", b"")
    content = cup.content(block, summary, beacon, b"")
    return cup.CatchUpPackage(content, b"signature" if signed else b"")


NOTHING = Facts(
    is_member=True,
    local_cup=None,
    registry_cup=None,
    peer_cup=None,
    replica_running=False,
    running_version=None,
    running_cup_epoch=None,
    running_run_start=None,
    wanted_version="v1",
    wanted_is_here=True,
    recalled_versions=(),
    restart_not_before_ns=0,
    now_ns=0,
)
HEALTHY = replace(
    NOTHING,
    local_cup=package(100),
    registry_cup=package(0, signed=False),
    replica_running=True,
    running_version="v1",
    running_cup_epoch=1,
    running_run_start=0,
)


def test_nothing_to_do_when_all_is_well() -> None:
    assert decide(HEALTHY) == []


def test_a_new_node_takes_the_registrys_cup_and_starts() -> None:
    genesis = package(0, signed=False)
    assert decide(replace(NOTHING, registry_cup=genesis)) == [StoreCup(genesis), StartReplica("v1")]


def test_a_wiped_node_prefers_the_higher_cup_of_its_peers() -> None:
    found = replace(NOTHING, registry_cup=package(0, signed=False), peer_cup=package(80))
    assert decide(found) == [StoreCup(package(80)), StartReplica("v1")]


def test_a_recovery_cup_restarts_the_replica_with_it() -> None:
    recovery = package(200, epoch=5, signed=False)
    actions = decide(replace(HEALTHY, registry_cup=recovery))
    assert [type(a) for a in actions] == [StoreCup, StopReplica, StartReplica]


def test_persist_before_acting_survives_a_crash_in_between() -> None:
    """The CUP was stored, then the orchestrator died: the next turn goes on from there."""
    recovery = package(200, epoch=5, signed=False)
    stored = replace(HEALTHY, registry_cup=recovery, local_cup=recovery, replica_running=False)
    assert decide(stored) == [StartReplica("v1")]


def test_a_lower_registry_cup_changes_nothing() -> None:
    assert decide(replace(HEALTHY, registry_cup=package(50, epoch=3, signed=False))) == []


@pytest.mark.parametrize("order", ["peer", "registry"])
def test_ties_go_to_peers_then_registry(order: str) -> None:
    local, registry, peer = package(5, 1), package(5, 2, signed=False), package(5, 3)
    facts = replace(NOTHING, local_cup=local, registry_cup=registry)
    if order == "peer":
        assert choose_cup(replace(facts, peer_cup=peer)) is peer
    else:
        assert choose_cup(facts) is registry


def test_a_recalled_release_never_starts() -> None:
    actions = decide(replace(HEALTHY, replica_running=False, recalled_versions=("v1",)))
    assert [type(a) for a in actions] == [Report]


def test_another_release_is_swapped_in() -> None:
    actions = decide(replace(HEALTHY, wanted_version="v2"))
    assert [type(a) for a in actions] == [StopReplica, StartReplica]


def test_the_release_before_serves_until_the_next_is_here() -> None:
    waiting = replace(HEALTHY, wanted_version="v2", wanted_is_here=False)
    assert [type(a) for a in decide(waiting)] == [Report]
    down = replace(waiting, replica_running=False)
    assert [type(a) for a in decide(down)] == [Report], "and nothing else is started in its place"
    recalled = replace(HEALTHY, wanted_version="v2", recalled_versions=("v2",))
    assert [type(a) for a in decide(recalled)] == [Report]


def test_crash_loops_back_off() -> None:
    facts = replace(HEALTHY, replica_running=False, restart_not_before_ns=10)
    assert [type(a) for a in decide(facts)] == [Report]
    assert decide(replace(facts, now_ns=10)) == [StartReplica("v1")]


def test_a_node_of_no_subnet_runs_nothing() -> None:
    assert decide(replace(NOTHING, is_member=False)) == []
    stopped = decide(replace(HEALTHY, is_member=False))
    assert [type(a) for a in stopped] == [StopReplica]


def test_a_release_that_comes_back_is_restarted_with_its_new_run() -> None:
    """The node was away while another release ran: its replica knows the run before only."""
    actions = decide(replace(HEALTHY, local_cup=package(200, run_start=180)))
    assert [type(a) for a in actions] == [StopReplica, StartReplica]
