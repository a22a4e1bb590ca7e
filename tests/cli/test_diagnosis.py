"""What is said of a subnet, from what its nodes say at two times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import detect, flooders
from cli.recovery.reports import NodeReport
from replica.client.subnet_view import SubnetView
from replica.protocol.errors import Unavailable
from replica.protocol.ids import NodeId, Principal, RegistryVersion, SubnetId

IDS = [NodeId(Principal(bytes([i + 1]) * 29)) for i in range(4)]
NODES = [NodeEntry(f"app-{i}", id_, "app", "", "", Path()) for i, id_ in enumerate(IDS)]
VIEW = SubnetView(
    RegistryVersion(1), tuple(IDS), {}, "v1", 99, 400, 40, 10, 100, False, False, 5 * 10**9
)
CALM = {
    "score": 0.0,
    "faults": 0,
    "useless_frames": 100,
    "slowed_frames": 0,
    "disconnections": 0,
    "refused_dials": 0,
    "refused_for_s": 0.0,
    "held_bytes": 20_000,
}


def report(index: int, at_s: float = 0.0, peers: dict[int, Any] | None = None, **more: Any) -> Any:
    """Return what a node says that stands at height 100, or what is said here otherwise."""
    told = {i: {**CALM, **(peers or {}).get(i, {})} for i in range(4) if i != index}
    status = {
        "status": "running",
        "notarized_height": 100,
        "finalized_height": 100,
        "certified_height": 98,
        "short_of_space": "",
        "peer_standings": {str(IDS[i]): plain for i, plain in told.items()},
        **more,
    }
    return NodeReport(NODES[index], status, at_s)


def silent(index: int) -> NodeReport:
    return NodeReport(NODES[index], None, 0.0)


def all_of(at_s: float, **more: Any) -> list[NodeReport]:
    return [report(i, at_s, **more) for i in range(4)]


class Records:
    version = 1

    def view(self, *_: object) -> SubnetView:
        return VIEW


class Deaf:
    """No orchestrator answers."""

    def each(self, work: Any, items: Any) -> list[Any]:
        return [work(item) for item in items]

    def orchestrator_status(self, _url: str) -> dict[str, Any]:
        raise Unavailable("nobody there")


def diagnosed(before: list[NodeReport], after: list[NodeReport]) -> detect.Diagnosis:
    subnet = SubnetEntry("app", SubnetId(Principal(b"s" * 29)), tuple(NODES))
    return detect.diagnose(subnet, before, after, Records(), Deaf())  # type: ignore[arg-type]


def test_a_quorum_that_answers_and_stands_is_standing() -> None:
    told = {"divergence": None, "registry_version": 1}
    found = diagnosed(all_of(0.0, **told), [silent(3), *all_of(5.0, **told)[:3]])
    assert found.cause == detect.STANDING
    assert "3 of 4 nodes answer; app-3 does not answer" in found.text


def test_who_is_missing_from_the_quorum_is_named() -> None:
    after = [report(0, divergence=None), report(1, divergence=None), silent(2), silent(3)]
    found = diagnosed(after, after)
    assert found.cause == detect.NO_QUORUM
    assert found.text == "2 of 4 nodes answer, not app-2, app-3; 3 are needed"


def test_a_subnet_none_of_whose_heights_move_is_standing_never_slow() -> None:
    found = detect.judge_movement(VIEW, all_of(0.0), all_of(5.0))
    assert found.cause == detect.STANDING
    assert "slow" not in found.text and "why is not known" in found.text


def test_a_subnet_that_certifies_nothing_though_blocks_go_on_is_told_so() -> None:
    after = all_of(5.0, notarized_height=140, finalized_height=138)
    found = detect.judge_movement(VIEW, all_of(0.0), after)
    assert found.cause == detect.UNCERTIFIED
    assert "from height 100 to 140, but nothing is certified" in found.text


def test_a_subnet_is_slow_only_when_something_moved() -> None:
    after = [report(0, 5.0, certified_height=99), *all_of(5.0)[1:]]
    assert detect.judge_movement(VIEW, all_of(0.0), after).cause == detect.SLOW


def test_a_node_that_comes_back_behind_the_others_is_no_movement() -> None:
    before = [silent(0), *all_of(0.0)[1:]]
    after = [report(0, 5.0, notarized_height=60), *all_of(5.0)[1:]]
    assert detect.judge_movement(VIEW, before, after).cause == detect.STANDING


def test_a_standing_subnets_idle_nodes_are_named_with_what_the_quorum_lacks() -> None:
    after = [
        report(0, signing="old copy: silent until a CUP above 171"),
        report(1, short_of_space="waits for space: answers reads only"),
        silent(2),
        report(3),
    ]
    found = detect.judge_movement(VIEW, after, after, ["app-2: its disk is read-only"])
    assert found.cause == detect.STANDING
    for what in (
        "app-2 does not answer",
        "app-0: old copy: silent until a CUP above 171",
        "app-1: waits for space",
        "1 of 4 nodes sign; 3 are needed",
        "app-2: its disk is read-only",
    ):
        assert what in found.text, found.text


def test_a_node_that_makes_empty_blocks_for_want_of_space_still_counts() -> None:
    full = "makes empty blocks: takes no requests"
    told = detect.idle_nodes(VIEW, all_of(0.0, short_of_space=full))
    assert len(told) == 4 and not any("are needed" in text for text in told)


def test_the_flooder_of_a_standing_subnet_is_named_with_how_many_say_so() -> None:
    bad = {3: {**CALM, "faults": 70, "disconnections": 1}}
    after = [report(i, 5.0, peers=bad if i < 2 else None) for i in range(4)]
    text = detect.judge_movement(VIEW, all_of(0.0), after).text
    assert "app-3 floods, say 2 of 4 nodes (70 wrong artifacts, 1 disconnections)" in text


def test_each_sign_of_a_flood_is_enough() -> None:
    signs: list[dict[str, Any]] = [
        {"faults": 1},
        {"disconnections": 1},
        {"refused_dials": 1},
        {"refused_for_s": 3.0},
        {"slowed_frames": 2},
        {"held_bytes": 20 << 20},
        {"useless_frames": 600},
    ]
    for sign in signs:
        after = [report(0, 5.0, peers={3: sign}), *all_of(5.0)[1:]]
        (found,) = flooders.flooders(all_of(0.0), after)
        assert (found.name, found.told_by) == ("app-3", ("app-0",)), sign


def test_what_honest_peers_do_names_nobody() -> None:
    """They repeat what is known, alike; and what was wrong before the watch is over."""
    old = {3: {"faults": 70, "slowed_frames": 900, "disconnections": 3}}
    busy = {i: {**old.get(i, {}), "useless_frames": 1200 + 100 * i} for i in range(4)}
    after = [report(i, 5.0, peers=busy) for i in range(4)]
    assert flooders.flooders([report(i, peers=old) for i in range(4)], after) == []


def test_a_node_that_was_started_anew_counts_from_zero() -> None:
    before = [report(0, peers={3: {"faults": 70}}), *all_of(0.0)[1:]]
    anew = {3: {"faults": 5, "useless_frames": 0}}
    (found,) = flooders.flooders(before, [report(0, 5.0, peers=anew), *all_of(5.0)[1:]])
    assert found.deeds == ("5 wrong artifacts",)
