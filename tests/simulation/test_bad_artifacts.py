"""What can't be valid is dropped, the peer is named, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from replica.consensus import driver as d
from replica.consensus.pool import PER_HEIGHT_MAX
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    Artifact,
    BeaconShare,
    BlockProposal,
    Cup,
    Finalization,
    Notarization,
    NotarizationShare,
    Tape,
)
from replica.protocol.ids import Epoch, Height, NodeId, Principal
from simulation.plan import Plan
from simulation.scheduler import SECOND
from simulation.subnet import World


@pytest.fixture
def world() -> World:
    made = World(1, Plan())
    assert made.run(lambda: made.cup_height() >= 16, 60 * SECOND)
    return made


def peer(world: World) -> NodeId:
    return world.nodes[1].keys.node


def fresh(world: World, index: int = 0) -> d.Driver:
    """A driver that begins at the last CUP, with an empty pool."""
    node = world.nodes[index]
    assert node.driver is not None
    node.state.restart(node.package.height)
    return d.Driver(node.driver.context, node.package, world.now)


def newest(world: World, kind: type[Artifact]) -> Artifact:
    driver = world.nodes[1].driver
    assert driver is not None
    found = list(driver.pool.validated.of_kind(kind))
    return found[-1]


def forged_cup(world: World) -> Artifact:
    found = newest(world, Cup)
    assert isinstance(found, Cup)
    package = cup.decode(found.package)
    bad = cup.CatchUpPackage(package.content, bytes(24)).encode()
    return replace(found, package=bad, height=Height(found.height))


def test_a_cup_with_a_wrong_signature_changes_nothing(world: World) -> None:
    genesis = World(1, Plan())
    driver = genesis.nodes[0].driver
    assert driver is not None
    bad = forged_cup(world)
    assert driver.receive(bad, peer(genesis), genesis.now)
    effects = driver.step(genesis.now, genesis.now)
    wrong = [e for e in effects if isinstance(e, d.Misbehaved)]
    assert wrong and "does not verify" in wrong[0].reason
    assert not any(isinstance(e, d.AdoptCup | d.FetchState) for e in effects)
    assert driver.chain.cup.height == 0
    good = newest(world, Cup)
    assert driver.receive(good, peer(genesis), genesis.now)
    later = genesis.now + 20 * SECOND  # past the time in which replaying would be tried
    assert any(isinstance(e, d.AdoptCup) for e in driver.step(later, later))


def signature_of(kind: type[Artifact]) -> Callable[[World], Artifact]:
    return lambda world: replace(newest(world, kind), signature=b"\x01" * 24)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "make",
    [signature_of(k) for k in (Notarization, Finalization, Tape)],
    ids=["notarization", "finalization", "tape"],
)
def test_wrong_signatures(world: World, make: Callable[[World], Artifact]) -> None:
    driver = world.nodes[0].driver
    assert driver is not None
    bad = replace(make(world), height=Height(driver.chain.finalized_height + 1))  # type: ignore[call-arg]
    if isinstance(bad, Notarization | Finalization):
        entry = driver.chain.finalized_tip
        bad = replace(bad, block=entry.hash)
    driver.receive(bad, peer(world), world.now)
    driver.step(world.now, world.now)
    assert bad not in driver.pool.validated


def test_strangers_and_other_epochs_are_turned_away(world: World) -> None:
    driver = world.nodes[0].driver
    assert driver is not None
    height = Height(driver.chain.notarized_height + 1)
    stranger = NodeId(Principal(b"nobody"))
    share = NotarizationShare(Epoch(1), height, bytes(32), stranger, bytes(24))
    old = replace(share, epoch=Epoch(0))
    assert not driver.receive(old, stranger, world.now), "of another epoch: not even admitted"
    far = replace(share, height=Height(height + d.LOOKAHEAD + 5))
    assert not driver.receive(far, stranger, world.now)
    beacon = BeaconShare(
        Epoch(1),
        Height(driver.chain.beacon_height + 1),
        artifacts.beacon_hash(driver.chain.beacons[driver.chain.beacon_height]),
        stranger,
        bytes(24),
    )
    assert driver.receive(beacon, stranger, world.now)
    other = NodeId(Principal(b"nobody else"))  # shares are looked at when there are enough
    assert driver.receive(replace(beacon, signer=other), other, world.now)
    reasons = [e.reason for e in driver.step(world.now, world.now) if isinstance(e, d.Misbehaved)]
    assert "the signer is not in the committee" in reasons


def test_a_flood_is_bounded(world: World) -> None:
    driver = fresh(world)
    height = Height(driver.chain.notarized_height + 3)
    admitted = sum(
        driver.receive(
            NotarizationShare(
                Epoch(1), height, bytes([i % 256, i // 256]) * 16, world.nodes[1].keys.node, b"s"
            ),
            world.nodes[1].keys.node,
            world.now,
        )
        for i in range(5000)
    )
    assert admitted == PER_HEIGHT_MAX


def test_a_block_of_another_subnet_or_with_another_payload(world: World) -> None:
    driver = world.nodes[0].driver
    assert driver is not None
    found = newest(world, BlockProposal)
    assert isinstance(found, BlockProposal)
    height = Height(driver.chain.notarized_height + 1)
    foreign = replace(
        found,
        block=replace(found.block, height=height, subnet=Principal(b"another subnet")),
    )
    other = replace(
        found,
        block=replace(found.block, height=height, parent=bytes(32)),
        payload=artifacts.Data((b"smuggled",)),
    )
    for bad, text in ((foreign, "another subnet"), (other, "not the one the block names")):
        assert driver.receive(bad, peer(world), world.now)
        effects = driver.step(world.now, world.now)
        reasons = [e.reason for e in effects if isinstance(e, d.Misbehaved)]
        assert any(text in r for r in reasons)
