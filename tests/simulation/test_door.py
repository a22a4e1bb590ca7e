"""Members that send all they can within their rights, in every kind, and then fall silent.

Whatever f members send: what waits of a peer stays within its quota, no honest artifact of a height
that can be judged is turned away, and heights are final and certified again within ten seconds.
"""

from __future__ import annotations

import pytest

from replica.consensus.quota import PEER_BYTES_MAX
from replica.protocol.artifacts import KINDS, BlockProposal, CertificationShare, Cup
from replica.protocol.ids import Height
from simulation.door_floods import (
    MAKERS,
    PER_HEIGHT,
    HalfUpgraded,
    Hoarder,
    Splitter,
    TwoFaced,
    flooded,
    forged,
)
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND


def test_every_kind_is_flooded() -> None:
    assert set(MAKERS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=[k.__name__ for k in KINDS])
def test_a_flood_of_one_kind_in_advance_stops_nobody(kind: type) -> None:
    world = flooded()
    tip = world.tip()
    world.flood((kind,), range(tip + 1, tip + 9), 0, PER_HEIGHT)
    world.goes_on()
    world.run(lambda: False, SECOND)
    world.muted = True  # silent ever after
    world.goes_on(2)


@pytest.mark.parametrize("nodes", [4, 7])
def test_a_flood_of_everything_then_silence_stops_nobody(nodes: int) -> None:
    world = flooded(nodes)
    tip = world.tip()
    world.flood(KINDS, range(tip + 3, tip + 6), 0, 520 // nodes)
    world.at(world.now + 60 * MS, lambda: setattr(world, "muted", True))
    world.goes_on(3)


def test_a_flood_that_never_ends_stops_nobody() -> None:
    world = flooded()

    def again() -> None:
        world.flood(KINDS, range(world.tip() + 1, world.tip() + 4), 0, 8)
        world.at(world.now + 100 * MS, again)

    again()
    world.goes_on(3)


def test_oversized_artifacts_have_no_place() -> None:
    world = flooded()
    victim, flooder = world.nodes[0], world.nodes[3]
    assert victim.driver is not None
    small = [k for k in KINDS if k is not BlockProposal]
    for kind in small:
        for height in (world.tip() + 1, world.tip() + 2, 10**6):
            made = forged(world, flooder, kind, height, 0, 200_000)
            assert not victim.driver.take_in(made, flooder.keys.node, world.now).is_in, kind
    world.goes_on()


def test_blocks_of_five_megabytes_stay_within_their_senders_quota() -> None:
    world = flooded()
    victim, flooder = world.nodes[0].driver, world.nodes[3]
    assert victim is not None
    admitted, peer, tip = 0, flooder.keys.node, world.tip()
    for height in (*range(tip + 20, tip + 30), *range(tip + 2, tip + 12)):
        for i in range(4):
            made = forged(world, flooder, BlockProposal, height, i, 5 << 20)
            admitted += victim.receive(made, peer, world.now)
            assert victim.held_bytes(peer) <= PEER_BYTES_MAX
    assert 24 <= admitted <= 40, "two a height; nearer ones take the place of farther ones"
    waiting = victim.pool.unvalidated.heights(BlockProposal)
    assert waiting and max(waiting) <= tip + 8
    world.goes_on()


@pytest.mark.parametrize("interval", [15, 29])
def test_shares_of_heights_that_no_summary_tells_of_stop_no_certification(interval: int) -> None:
    world = flooded(interval=interval)
    world.muted = True
    world.flood_unknown_heights()
    world.goes_on(4)


@pytest.mark.parametrize("nodes", [4, 7])
def test_a_block_that_others_notarized_is_let_in_beside_its_makers_two_others(nodes: int) -> None:
    world = TwoFaced(1, Plan(nodes=nodes, interval=99))
    world.goes_on(6)
    assert world.counts["shown two faces"] > 3


@pytest.mark.parametrize("nodes", [4, 7])
def test_a_maker_that_filled_its_places_with_orphans_does_not_split_the_members(
    nodes: int,
) -> None:
    world = Splitter(1, Plan(nodes=nodes, interval=99))
    world.goes_on(6)
    assert world.counts["places filled"] > 3


def test_old_packages_are_not_taken_again() -> None:
    world = Hoarder(1, Plan(interval=15))
    world.goes_on(20)
    assert len(world.hoard) > 4


def test_a_node_that_is_not_upgraded_yet_blames_nobody() -> None:
    world = HalfUpgraded(1, Plan(interval=99))
    world.goes_on(2)
    driver = world.nodes[0].driver
    assert driver is not None and not driver.pool.unvalidated.heights(BlockProposal)


def test_evidence_that_is_kept_for_good_is_bounded() -> None:
    world = flooded()
    flooder, victim = world.nodes[3], world.nodes[0].driver
    assert victim is not None
    height = victim.chain.finalized_height + 60
    for burst in range(3):
        for i in range(40):
            made = forged(world, flooder, CertificationShare, height, 40 * burst + i, 0)
            world.network.broadcast(3, made)
        world.run(lambda: False, SECOND // 4)
    kept = victim.certifications.validated.owned(CertificationShare, height, flooder.keys.node)
    assert len(kept) == 2
    world.goes_on()


def test_ten_thousand_tiny_packages_end_nobody() -> None:
    world = flooded()
    driver, flooder = world.nodes[0].driver, world.nodes[3].keys.node
    assert driver is not None
    for height in range(1000, 1080):
        for i in range(126):
            made = Cup(world.nodes[0].package.epoch, Height(height), i.to_bytes(12, "big"))
            assert not driver.receive(made, flooder, world.now)
    driver.step(world.now, world.now)
    assert not driver.pool.unvalidated.heights(Cup)
    world.goes_on()
