"""A node whose disk went back in time finds out before it signs, and then contradicts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from replica.consensus.old_copy import MARGIN, OldCopyWatch
from replica.protocol import artifacts
from replica.protocol.artifacts import NotarizationShare, Run
from replica.protocol.ids import Height
from replica.protocol.signed import Question, Signed
from simulation import past
from simulation.plan import Fault, Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

PLAN = Plan(old_copies=(3,), old_copies_find_out=True, delay_ms_max=5, payload_bytes=64)


def grown(plan: Plan, height: int, seed: int = 1) -> World:
    world = World(seed, plan)
    grow(world, height)
    return world


def grow(world: World, height: int, seconds: int = 120) -> None:
    assert world.run(lambda: world.finalized_height() >= height, seconds * SECOND)


def put_back(world: World, heights: int, index: int = 3) -> Node:
    """Have a node come back with the disk that it had so many heights ago."""
    node, copies = world.nodes[index], world.cast.old_copies
    copies.take(node)
    grow(world, world.finalized_height() + heights)
    copies.put_back(node)
    return node


def signing(node: Node) -> str:
    assert node.driver is not None
    return node.driver.signing


def top_signed(world: World, index: int = 3) -> int:
    """Return the highest height for which a node ever signed."""
    tops = world.cast.old_copies._tops
    return max(top for (who, _), top in tops.items() if who == index)


@pytest.mark.parametrize("heights", [3, 60, 200])
def test_a_node_put_back_under_load_is_silent_until_nothing_can_be_contradicted(
    heights: int,
) -> None:
    """Another one crashes right after it: what is signed twice is a violation in this plan."""
    world = grown(PLAN, 20)
    node = put_back(world, heights)
    assert world.run(lambda: bool(world.counts["old copies found out"]), SECOND)
    world.stop(world.nodes[0])
    assert signing(node).startswith("old copy: silent until a CUP above ")
    world.run(lambda: False, SECOND)
    world.start(world.nodes[0])
    before = world.cast.old_copies._signed[3].copy()
    assert node.driver is not None
    shown = node.driver.past.shown
    assert shown is not None and shown <= top_signed(world) <= shown + MARGIN
    assert world.run(lambda: signing(node) == "yes", 60 * SECOND)
    assert node.package.height > shown + MARGIN
    world.run(lambda: False, SECOND)
    again = world.cast.old_copies._signed[3] - before
    assert min(a.height for a in again) > top_signed(world), "and then it signs again"
    assert not world.counts["old copies contradict themselves"]


def test_a_subnet_that_starts_at_once_is_up_at_once() -> None:
    world = grown(Plan(delay_ms_max=5), 20)
    height = world.finalized_height()
    for node in world.nodes:
        world.stop(node)
    for node in world.nodes:
        world.start(node)
    assert all(signing(n) == "waiting for answers (0 of 2)" for n in world.nodes)
    assert world.run(lambda: all(signing(n) == "yes" for n in world.nodes), 30 * MS)
    grow(world, height + 2, seconds=1)
    assert not world.counts["old copies found out"]


def test_a_subnet_of_one_waits_for_nobody() -> None:
    world = grown(Plan(nodes=1), 5)
    (node,) = world.nodes
    world.stop(node)
    world.start(node)
    height = world.finalized_height()
    grow(world, height + 2, seconds=2)
    assert signing(node) == "yes"


def test_one_of_seven_finds_out_while_another_is_away() -> None:
    world = grown(replace(PLAN, nodes=7), 20)
    world.stop(world.nodes[0])
    node, copies = world.nodes[3], world.cast.old_copies
    copies.take(node)
    world.run(lambda: False, SECOND)
    copies.put_back(node)
    height = world.top_heights()[0]
    assert world.run(lambda: signing(node).startswith("old copy"), SECOND)
    assert world.run(lambda: world.top_heights()[0] > height + 5, 5 * SECOND), "five go on"


def test_a_node_waits_for_as_many_as_make_a_quorum_with_it() -> None:
    world = grown(PLAN, 20)
    node, copies = world.nodes[3], world.cast.old_copies
    copies.take(node)
    grow(world, 30)
    world.stop(world.nodes[0])
    world.stop(world.nodes[1])
    signed = copies._signed[3].copy()
    copies.put_back(node)
    world.run(lambda: False, 3 * SECOND)
    assert node.driver is not None and node.driver.past.is_waiting
    assert copies._signed[3] == signed, "one answer is not enough"
    world.start(world.nodes[0])
    assert world.run(lambda: not node.driver.past.is_waiting, 100 * MS)  # type: ignore[union-attr]


def test_who_lost_its_disk_is_an_old_copy_of_age_zero() -> None:
    world = grown(replace(PLAN, interval=29), 40)
    node = world.nodes[3]
    world.stop(node)
    world.cast.past.forgot.add(3)
    node.durable, node.state = {}, world.new_state(3)
    world.start(node)
    assert world.run(lambda: signing(node).startswith("old copy"), SECOND)


def test_what_comes_by_the_way_proves_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the answers did not tell: here nobody is asked, and its blocks come back."""
    monkeypatch.setattr(OldCopyWatch, "count", lambda self: setattr(self, "is_waiting", False))
    world = grown(replace(PLAN, old_copies_find_out=False), 20)
    node = put_back(world, 20)
    assert world.run(lambda: signing(node).startswith("old copy"), 2 * SECOND)


@pytest.fixture
def forging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Byzantine members answer with forgeries, always."""
    monkeypatch.setattr(past, "SILENT", 0.0)
    monkeypatch.setattr(past, "FORGES", 1.0)
    yield


@pytest.mark.usefixtures("forging")
def test_a_peer_that_lies_about_signatures_holds_nobody_and_is_blamed() -> None:
    world = grown(Plan(forgers=(0,), delay_ms_max=5), 20)
    node = world.nodes[2]
    world.stop(node)
    world.start(node)
    assert world.run(lambda: signing(node) == "yes", SECOND)
    world.run(lambda: False, SECOND)
    assert signing(node) == "yes" and world.counts["bad answers"]


def share(world: World, node: Node, run: Run, height: int) -> NotarizationShare:
    message = artifacts.notarization_message(
        world.subnet, node.package.epoch, run, Height(height), bytes(32)
    )
    signature = world.scheme.sign_multi(node.keys.committee, message)
    return NotarizationShare(
        node.package.epoch, Height(height), bytes(32), node.keys.node, signature
    )


def test_what_was_signed_in_the_run_before_holds_nobody_after_an_upgrade() -> None:
    upgrade = (Fault(300 * MS, "release", (), 0, "v2"),)
    world = World(1, Plan(delay_ms_max=5, faults=upgrade))
    world.schedule_faults()
    assert world.run(lambda: all(n.run.start for n in world.nodes), 60 * SECOND)
    node, former = world.nodes[0], Run("v1", Height(0))
    for run, is_old in (
        (replace(node.run, start=Height(0)), False),
        (former, False),
        (node.run, True),
    ):
        world.stop(node)
        world.start(node)
        assert node.driver is not None
        height = node.driver.chain.finalized_height + 9
        node.driver.step(world.now, world.now)
        answer = Signed(notarization_shares=(share(world, node, run, height),))
        node.driver.signed_answer(world.nodes[1].keys.node, answer)
        assert node.driver.is_old_copy == is_old


def test_who_is_in_another_run_or_epoch_says_so() -> None:
    world = grown(Plan(delay_ms_max=5), 20)
    driver, asks = world.nodes[0].driver, world.nodes[1].keys.node
    assert driver is not None
    here = Question(driver.chain.cup.epoch, driver.run, Height(0))
    assert driver.signed_by(asks, here) is not None
    assert driver.signed_by(asks, replace(here, run=Run("v2", Height(0)))) is None
    assert driver.signed_by(asks, replace(here, epoch=here.epoch + 1)) is None
