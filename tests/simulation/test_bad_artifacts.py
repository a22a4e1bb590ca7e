"""What can't be valid is dropped, the peer is named, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from replica.consensus import driver as d
from replica.consensus import quota
from replica.consensus.asking import ANY_HEIGHT, PAUSE_NS
from replica.consensus.door import Admission
from replica.consensus.horizon import LOOKAHEAD
from replica.consensus.reader import SecretKeys
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
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
    assert not driver.receive(bad, peer(genesis), genesis.now)
    effects = driver.step(genesis.now, genesis.now)
    wrong = [e for e in effects if isinstance(e, d.Misbehaved)]
    assert wrong and "does not verify" in wrong[0].reason
    assert wrong[0].senders == (peer(genesis),)
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
    far = replace(share, height=Height(height + LOOKAHEAD + 5))
    assert not driver.receive(far, stranger, world.now)
    beacon = BeaconShare(
        Epoch(1),
        Height(driver.chain.beacon_height + 1),
        artifacts.beacon_hash(driver.chain.beacons[driver.chain.beacon_height]),
        stranger,
        bytes(24),
    )
    assert not driver.receive(beacon, stranger, world.now)
    assert not driver.receive(beacon, peer(world), world.now), "not its signer"
    reasons = [e.reason for e in driver.step(world.now, world.now) if isinstance(e, d.Misbehaved)]
    assert reasons == ["the signer is not in the committee", "it is another signer's share"]


def shares_of(world: World, height: int, count: int) -> list[NotarizationShare]:
    signer = world.nodes[1].keys.node
    return [
        NotarizationShare(Epoch(1), Height(height), bytes([i % 256, i // 256]) * 16, signer, b"s")
        for i in range(count)
    ]


def test_a_signer_has_one_share_a_block_and_as_many_as_there_can_be_blocks(world: World) -> None:
    driver = fresh(world)
    height = driver.chain.notarized_height + 3
    many = shares_of(world, height, 5000)
    assert sum(driver.receive(s, peer(world), world.now) for s in many) == 4
    newer = replace(many[0], signature=b"t")
    assert driver.take_in(newer, peer(world), world.now) is Admission.DISPLACED
    waiting = driver.pool.unvalidated.at(NotarizationShare, height)
    assert len(waiting) == 4 and newer in waiting and many[0] not in waiting


def test_a_full_quota_lets_go_what_lies_farthest_and_asks_for_it_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, sender = fresh(world), peer(world)
    driver.step(world.now, world.now)
    monkeypatch.setattr(quota, "PEER_COUNT_MAX", 4)
    tip = driver.chain.notarized_height
    far, near = shares_of(world, tip + 4, 4), shares_of(world, tip + 2, 3)
    assert all(driver.receive(s, sender, world.now) for s in far)
    assert all(driver.take_in(s, sender, world.now) is Admission.DISPLACED for s in near)
    assert driver.take_in(shares_of(world, tip + 9, 1)[0], sender, world.now) is Admission.REFUSED
    assert driver.pool.unvalidated.count_at(NotarizationShare, tip + 4) == 1
    asks = questions(driver, world.now + PAUSE_NS)
    kinds = (artifacts.KINDS.index(NotarizationShare),)
    assert d.Ask(sender, kinds, tip + 4, tip + 9) in asks
    assert not questions(driver, world.now + PAUSE_NS), "once a second"


def questions(driver: d.Driver, now: int) -> list[d.Ask]:
    return [e for e in driver.step(now, now) if isinstance(e, d.Ask)]


def test_one_peers_quota_costs_no_other_peers_artifacts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = fresh(world)
    monkeypatch.setattr(quota, "PEER_COUNT_MAX", 1)
    first, second = (world.nodes[i].keys.node for i in (1, 2))
    height = Height(driver.chain.notarized_height + 3)
    shared = Notarization(Epoch(1), height, bytes(32), (first,), b"s")
    assert driver.receive(shared, first, world.now)
    assert not driver.receive(shared, second, world.now), "known; charged to it too"
    assert driver.held_bytes(first) == driver.held_bytes(second) > 0
    near = replace(shared, height=Height(height - 1))
    assert driver.receive(near, first, world.now)
    assert shared in driver.pool.unvalidated, "the second one's quota holds it"


def test_a_notarized_block_has_a_place_though_its_maker_showed_two_others(world: World) -> None:
    """Its notarization verifies before it is here; then it is asked for, and let in."""
    driver, sender = fresh(world), peer(world)
    height = driver.chain.notarized_height + 1
    giver = world.nodes[1].driver
    assert giver is not None
    good = giver.pool.validated.at(Notarization, height)[0]
    entry = next(
        p
        for p in giver.pool.validated.at(BlockProposal, height)
        if artifacts.block_hash(p.block) == good.block
    )
    maker = next(n for n in world.nodes if n.keys.node == entry.maker)
    for i in range(2):
        assert driver.receive(signed_variant(entry, maker.keys, i), sender, world.now)
    assert driver.take_in(entry, sender, world.now) is Admission.REFUSED
    assert driver.receive(good, sender, world.now)
    asks = questions(driver, world.now) + questions(driver, world.now + PAUSE_NS)
    kinds = (artifacts.KINDS.index(BlockProposal),)
    assert d.Ask(sender, kinds, height, height) in asks
    assert entry in giver.answer(kinds, height, height)
    assert driver.receive(entry, sender, world.now)


def signed_variant(proposal: BlockProposal, keys: SecretKeys, i: int) -> BlockProposal:
    block = replace(proposal.block, parent=bytes([i]) * 32)
    hash_ = artifacts.block_hash(block)
    message = artifacts.block_message(block.subnet, block.epoch, block.run, block.height, hash_)
    return replace(proposal, block=block, signature=keys.signing.sign(message))


def test_what_depends_on_our_own_view_is_nobodys_fault(world: World) -> None:
    """A beacon that follows another, a block of another release: dropped, and it costs nothing."""
    driver, sender = fresh(world), peer(world)
    height = Height(driver.chain.beacon_height + 1)
    foreign = Beacon(Epoch(1), height, bytes(32), bytes(24))
    found = newest(world, BlockProposal)
    assert isinstance(found, BlockProposal)
    block = replace(found.block, height=Height(height + 1), version="v2")
    assert driver.receive(foreign, sender, world.now)
    assert not driver.receive(replace(found, block=block), sender, world.now)
    effects = driver.step(world.now, world.now)
    assert not [e for e in effects if isinstance(e, d.Misbehaved)]
    assert foreign not in driver.pool.unvalidated


def test_the_highest_package_is_kept_and_waits_from_when_the_first_came(world: World) -> None:
    assert world.run(lambda: world.cup_height() >= 48, 60 * SECOND)
    genesis = World(1, Plan())
    driver, sender = genesis.nodes[0].driver, peer(genesis)
    assert driver is not None
    driver.step(genesis.now, genesis.now)
    cups = [a for a in world.nodes[1].durable if isinstance(a, Cup)]
    cups.sort(key=lambda a: a.height)
    low, high = next(a for a in cups if a.height == 16), cups[-1]
    assert driver.receive(low, sender, genesis.now)
    assert driver.receive(high, sender, genesis.now + SECOND) and low.height < high.height
    assert list(driver.pool.unvalidated.of_kind(Cup)) == [high]
    assert driver.pool.unvalidated.time_of(high) == genesis.now
    assert not driver.receive(low, sender, genesis.now + SECOND)


def test_who_stands_still_asks_everybody_for_all_that_may_lack(world: World) -> None:
    driver = fresh(world)
    now = world.now
    assert not questions(driver, now)
    asked: list[d.Ask] = []
    for second in range(1, 12):
        asked += questions(driver, now + second * SECOND)
    peers = {n.keys.node for n in world.nodes[1:]}
    assert {a.peer for a in asked} == peers
    assert any(a.last >= ANY_HEIGHT for a in asked), "for packages"
    first = driver.chain.finalized_height + 1
    assert any(BlockProposal in kinds_of(a) and a.first == first for a in asked)
    for node in peers:
        assert len([a for a in asked if a.peer == node]) <= 11


def kinds_of(ask: d.Ask) -> list[type[Artifact]]:
    return [artifacts.KINDS[k] for k in ask.kinds]


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
    forged = replace(found, block=replace(found.block, height=height), signature=bytes(64))
    cases = (
        (foreign, "another subnet"),
        (other, "no member made this block"),
        (forged, "no member made this block"),
    )
    for bad, text in cases:
        assert not driver.receive(bad, peer(world), world.now)
        effects = driver.step(world.now, world.now)
        reasons = [e.reason for e in effects if isinstance(e, d.Misbehaved)]
        assert any(text in r for r in reasons)
