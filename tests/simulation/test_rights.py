"""What f members may not take from the others is noticed when they do: S19 to S22, L12."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from replica.consensus.driver import Misbehaved
from replica.protocol import artifacts
from replica.protocol.artifacts import BlockProposal, CertificationShare, NotarizationShare
from replica.protocol.ids import Height, TimeNs
from simulation import rights
from simulation.adversary import proof_of, twin_of
from simulation.campaign import goes_on
from simulation.checker import Violation
from simulation.floods import (
    Member,
    _big_certification_share,
    _certification_share,
    _notarization_share,
)
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World


@pytest.fixture
def world() -> World:
    """Four nodes, of which the last may be Byzantine, in the middle of a run."""
    made = World(1, Plan(flooders=(3,), interval=99, delay_ms_max=5))
    made.run(lambda: False, 500 * MS)
    return made


def member(world: World, index: int) -> Member:
    node = world.nodes[index]
    assert node.driver is not None
    return Member(world, node, "test", node.driver)


def tip(world: World) -> int:
    return max(n.driver.chain.notarized_height for n in world.nodes if n.driver)


def newest_block(world: World, maker: Node) -> BlockProposal:
    """Return the newest block of a maker whose height is not final anywhere."""
    found: list[BlockProposal] = []

    def made() -> bool:
        driver = maker.driver
        assert driver is not None
        found[:] = [
            p
            for p in driver.pool.validated.at(BlockProposal, driver.chain.notarized_height + 1)
            if p.maker == maker.keys.node
        ]
        return bool(found)

    for _ in range(5000):
        world.run(lambda: False, MS)
        if made():
            return found[0]
    raise AssertionError("it makes no blocks")


def test_s19_a_peer_takes_no_more_room_than_is_its_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = world.nodes[3], world.nodes[0]
    share = _notarization_share(member(world, 3), Height(tip(world) + 5), 0)
    room = world.rights.bytes_of(target, source) + len(artifacts.encode(share))
    monkeypatch.setattr(rights, "PEER_BYTES_MAX", room + 10)
    assert target.driver is not None
    for i in range(2):
        share = _notarization_share(member(world, 3), Height(tip(world) + 5), i)
        target.driver.receive(share, source.keys.node, world.now)
        if i:
            with pytest.raises(Violation, match=r"holds 0 MiB of node 3 \(S19\)"):
                world.rights.delivered(source, target, share, taken=True)
        else:
            world.rights.delivered(source, target, share, taken=True)


def test_s19_what_a_driver_says_of_a_peer_counts_too(world: World) -> None:
    source, target = world.nodes[3], world.nodes[0]
    share = _notarization_share(member(world, 3), Height(tip(world) + 5), 0)
    driver: Any = target.driver
    driver.held_bytes = lambda peer: 65 << 20
    with pytest.raises(Violation, match="holds 65 MiB of node 3"):
        world.rights.delivered(source, target, share, taken=True)


def test_s19_an_honest_artifact_of_the_current_height_is_admitted(world: World) -> None:
    """Refused is not wrong by itself: only when it is missing for long at its height."""
    source, target = world.nodes[1], world.nodes[0]
    world.network.cut = frozenset({3, 2})  # nothing goes on, and 0 and 1 hear each other
    share = _notarization_share(member(world, 1), Height(tip(world) + 1), 0)
    world.rights.delivered(source, target, share, taken=False)
    world.run(lambda: False, 2 * SECOND)
    with pytest.raises(Violation, match=r"node 0 refuses the NotarizationShare .* \(S19\)"):
        world.run(lambda: False, 2 * SECOND)


def test_s19_what_is_superseded_or_asked_for_and_had_is_not_missed(world: World) -> None:
    source, target = world.nodes[1], world.nodes[0]
    late = _notarization_share(member(world, 1), Height(tip(world) + 1), 0)
    far = _notarization_share(member(world, 1), Height(tip(world) + 390), 0)
    for share in (late, far):
        world.rights.delivered(source, target, share, taken=False)
    world.run(lambda: False, 4 * SECOND)
    assert not world.nodes[0].paused


def test_s19_few_shares_of_a_signer_are_kept(world: World) -> None:
    target, height = world.nodes[0], Height(tip(world) + 5)
    shares = [_certification_share(member(world, 3), height, i) for i in range(3)]
    assert all(isinstance(s, CertificationShare) for s in shares)
    for share in shares[:2]:
        world.rights.kept(target, share)
    with pytest.raises(Violation, match="keeps 3 of one signer's CertificationShares"):
        world.rights.kept(target, shares[2])
    for i in range(4):
        world.rights.kept(target, _notarization_share(member(world, 3), height, i))
    with pytest.raises(Violation, match="NotarizationShares"):
        world.rights.kept(target, _notarization_share(member(world, 3), height, 4))


def test_s7_what_is_kept_of_a_certified_state_shows_where_it_stands_and_no_more(
    world: World,
) -> None:
    height = Height(tip(world) + 5)
    world.rights.kept(world.nodes[0], _certification_share(member(world, 3), height, 0))
    wide = _big_certification_share(member(world, 3), height, 0)
    with pytest.raises(Violation, match=r"a wrong witness \(S7\)"):
        world.rights.kept(world.nodes[0], wide)


def test_s20_block_time_is_not_ahead_of_all_honest_clocks(world: World) -> None:
    node: Any = world.nodes[0]
    entry = node.driver.chain.finalized_tip

    def at(lead_ns: int, height: int) -> Any:
        context = replace(entry.block.context, time_ns=TimeNs(world.now + lead_ns))
        block = replace(entry.block, height=Height(height), context=context)
        chain = SimpleNamespace(finalized_height=height, finalized_tip=SimpleNamespace(block=block))
        return SimpleNamespace(driver=SimpleNamespace(chain=chain))

    world.rights.look(at(SECOND, 1000))
    with pytest.raises(Violation, match=r"1100 ms ahead of all honest clocks \(S20\)"):
        world.rights.look(at(1100 * MS, 1001))
    world.rights.shows(node, world.now + 300 * MS)
    world.rights.shows(node, world.now - 300 * MS)
    world.rights.look(at(1100 * MS, 1002))


def test_s21_two_blocks_of_an_honest_maker_prove_something_and_one_does_not(world: World) -> None:
    node = world.nodes[0]
    block = newest_block(world, node)
    world.rights.signed(node, block)
    world.rights.signed(node, block)
    with pytest.raises(Violation, match=r"prove that it equivocates \(S21\)"):
        world.rights.signed(node, twin_of(node, block))


def test_s21_no_honest_maker_is_taken_for_an_equivocator(world: World) -> None:
    for index in (3, 1):
        block = newest_block(world, world.nodes[index])
        proof = proof_of(block, twin_of(world.nodes[index], block), block.block.run)
        if index == 3:
            world.rights.kept(world.nodes[0], proof)
        else:
            with pytest.raises(Violation, match=r"honest maker for an equivocator \(S21\)"):
                world.rights.kept(world.nodes[0], proof)


def test_s22_honest_nodes_are_not_blamed(world: World) -> None:
    share = _notarization_share(member(world, 3), Height(tip(world) + 5), 0)
    target = world.nodes[0]
    world.rights.misbehaved(target, Misbehaved(share, "wrong", (world.nodes[3].keys.node,)))
    honest = Misbehaved(share, "wrong", (world.nodes[2].keys.node,))
    with pytest.raises(Violation, match=r"blames node 2 for a NotarizationShare.*\(S22\)"):
        world.rights.misbehaved(target, honest)
    world.network.garbled.add(artifacts.encode(share))
    world.rights.misbehaved(target, honest)


def test_l12_heights_become_final_and_certified_in_every_ten_seconds(world: World) -> None:
    assert isinstance(_notarization_share(member(world, 3), Height(9), 0), NotarizationShare)
    goes_on(world, lambda: tip(world) > 60, 20 * SECOND)
    for node in world.nodes[2:]:
        world.stop(node)
    with pytest.raises(Violation, match=r"in 10 s nothing became final .* \(L12\)"):
        goes_on(world, lambda: False, 30 * SECOND)
