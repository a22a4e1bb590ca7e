"""Key generation on the chain: who is dealt keys, and what happens when dealers fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from replica.consensus.dkg import config_of
from replica.consensus.effects import Misbehaved
from replica.protocol.artifacts import DkgComplaint, DkgDealing
from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.dkg import Config, Dealing
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.ids import NodeId
from simulation.campaign import has_keys, run_plan
from simulation.plan import Fault, Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import World


def reached(world: World, height: int) -> bool:
    return world.run(lambda: world.cup_height() >= height, 120 * SECOND)


def names(world: World, committee: tuple[object, ...]) -> list[int]:
    by_id = {n.keys.node: n.index for n in world.nodes}
    return sorted(by_id[m] for m in committee)  # type: ignore[index]


@pytest.mark.parametrize("real_bls", [False, True], ids=["double", "bls"])
def test_low_is_fresh_and_high_stays_the_same_key(real_bls: bool) -> None:
    world = World(1, Plan(interval=11, real_bls=real_bls))
    assert reached(world, 12)
    first = world.nodes[0].package.summary
    assert reached(world, 36)
    later = world.nodes[0].package.summary
    assert later.low.public_key != first.low.public_key
    assert later.high.public_key == first.high.public_key
    assert later.high.share_keys != first.high.share_keys, "the shares are others"


def test_a_member_joins_another_leaves_and_the_key_stays() -> None:
    plan = Plan(spares=1, faults=(Fault(SECOND, "members", (1, 2, 3, 4)),))
    world = World(3, plan)
    key = world.genesis.high.transcript.public_key
    world.schedule_faults()
    assert reached(world, 96)
    summary = world.nodes[1].package.summary
    assert names(world, summary.high.committee) == [1, 2, 3, 4]
    assert names(world, summary.low.committee) == [1, 2, 3, 4]
    assert summary.high.public_key == key
    assert world.nodes[0].driver is None, "nobody counts on it any more"
    assert world.nodes[4].driver is not None


@pytest.mark.parametrize("fault", ["crash", "bad dealer"])
def test_key_generation_does_without_f_dealers(fault: str) -> None:
    if fault == "crash":
        plan = Plan(faults=(Fault(100 * MS, "crash", (2,)),))
    else:
        plan = Plan(bad_dealers=(2,))
    world = World(5, plan)
    world.schedule_faults()
    up = [world.nodes[i] for i in (0, 1, 3)]
    assert world.run(lambda: min(n.package.height for n in up) >= 80, 120 * SECOND)
    summary = up[0].package.summary
    assert summary.next_low is not None and summary.next_high is not None
    assert summary.high.sealed, "the key in force was reshared, not the genesis dealer's"


def test_a_cheated_receiver_complains_and_the_dealing_is_dropped() -> None:
    world = World(2, Plan(bad_dealers=(1,), interval=23))
    assert reached(world, 120)
    assert world.counts["complaints"] and world.counts["bad dealings"]
    bad = world.nodes[1].keys.node
    for node in (world.nodes[0], world.nodes[2], world.nodes[3]):
        summary = node.package.summary
        for key in (summary.low, summary.high, summary.next_low, summary.next_high):
            assert key is not None
            reader = node.driver.reader(world.now) if node.driver else None
            assert reader is not None and reader.share_of(key) is not None, "every share is good"
    assert bad in world.nodes[0].package.summary.high.committee, "it stays a member"


def test_too_few_dealings_keep_the_key() -> None:
    """One interval's dealings make no key: the present ones stay in force, then it goes on."""
    world = World(7, Plan(interval=15))
    honest = world.dkg.combine

    def combine(config: Config, dealings: Mapping[NodeId, Dealing]) -> Transcript | None:
        few = dict(list(dealings.items())[: config.needed - 1])
        return honest(config, few if config.height == 16 else dealings)

    world.dkg.combine = combine  # type: ignore[method-assign]
    summaries = {}
    while world.nodes[0].package.height < 96:
        assert reached(world, world.nodes[0].package.height + 16)
        summaries[world.nodes[0].package.height] = world.nodes[0].package.summary
    assert summaries[32].next_low is None and summaries[32].next_high is None
    assert summaries[48].low == summaries[32].low, "kept"
    assert summaries[48].high == summaries[32].high
    assert summaries[64].low != summaries[48].low, "and generated again in the next interval"
    assert summaries[64].high.public_key == summaries[16].high.public_key


def test_membership_changes_with_a_byzantine_node_and_crashes() -> None:
    """A replacement while the network is bad, with real resharing of the double's keys."""
    faults = (
        Fault(300 * MS, "crash", (2,)),
        Fault(600 * MS, "members", (0, 1, 2, 4)),
        Fault(1500 * MS, "restart", (2,)),
        Fault(2 * SECOND, "partition", (4,)),
        Fault(3 * SECOND, "heal"),
    )
    plan = Plan(spares=1, faults=faults, equivocators=(0,), loss=0.1)
    world = run_plan(11, plan)
    assert has_keys(world)
    assert names(world, world.nodes[1].package.summary.high.committee) == [0, 1, 2, 4]


def test_one_complaint_of_a_dealing_is_kept_whatever_its_nonce() -> None:
    """Who cheats itself can prove it in any number of ways, and is heard once."""
    world = World(1, Plan(interval=99, real_bls=True))
    assert world.run(lambda: world.finalized_height() >= 5, 10 * SECOND)
    cheat, driver = world.nodes[3], world.nodes[0].driver
    assert driver is not None
    reader = driver.reader(world.now)
    summary = driver.chain.summary_at(driver.chain.finalized_height)
    own = next(
        a
        for a in driver.pool.validated.at(DkgDealing, summary.height)
        if a.dealer == cheat.keys.node
    )
    config = config_of(reader, summary, own.tag)
    sealed = list(own.dealing.sealed)
    mine = config.receivers.index(cheat.keys.node)
    sealed[mine] = bytes([sealed[mine][0] ^ 1]) + sealed[mine][1:]
    dealing = replace(own.dealing, sealed=tuple(sealed))
    signature = cheat.keys.signing.sign(dkg.message(config, dealing))
    driver.pool.validated.remove(own)
    driver.pool.validated.insert(replace(own, dealing=dealing, signature=signature), world.now)
    for nonce in range(1, 40):
        complaint = complaint_with(dealing, cheat.keys.dealing, nonce)
        made = DkgComplaint(
            own.epoch, own.height, own.tag, own.dealer, dkg.digest(dealing), own.dealer, complaint
        )
        driver.receive(made, cheat.keys.node, world.now)
        effects = driver.step(world.now, world.now)
        assert not [e for e in effects if isinstance(e, Misbehaved)]
    kept = driver.pool.validated.at(DkgComplaint, summary.height)
    assert [c.accuser for c in kept] == [cheat.keys.node]


def complaint_with(dealing: dkg.Dealing, secret: bytes, nonce: int) -> dkg.Complaint:
    """Return a justified complaint that differs from others in its nonce alone."""
    ephemeral, exponent = dkg._g1(dealing.ephemeral), dkg._scalar_of(secret)
    point = dkg._times(ephemeral, exponent)
    challenge = dkg._challenge(
        dkg._times(bls.G1, exponent),
        dealing.ephemeral,
        point,
        dkg._times(bls.G1, nonce),
        dkg._times(ephemeral, nonce),
    )
    response = (nonce + challenge * exponent) % bls.ORDER
    return dkg.Complaint(point, challenge.to_bytes(32, "big"), response.to_bytes(32, "big"))
