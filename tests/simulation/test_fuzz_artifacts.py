"""Anything that a peer may send: dropped or kept within bounds, never taken for valid.

Artifacts of every kind, as a running subnet makes them, are changed in one or several ways and
handed to a running driver, as the transport would. It never fails, holds no more than its bounds,
and validates nothing that its own checks would not validate again.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replica.consensus import driver as d
from replica.consensus import quota
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    KINDS,
    Artifact,
    BlockProposal,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
)
from replica.protocol.errors import Malformed
from replica.protocol.ids import Epoch, Height, NodeId, Principal
from simulation.doubles import HashChain
from simulation.plan import Plan
from simulation.scheduler import SECOND
from simulation.subnet import World

STRANGER = NodeId(Principal(b"a stranger"))


TIP, CUP_AT = 1, 16
PACKAGES = (Cup, CupShare)
DKG = (DkgDealing, DkgComplaint)
PLACES_MAX = 4
"""Of one peer, kind and height, with four members."""


@pytest.fixture(scope="module")
def world() -> World:
    """A run in which all that can happen to a driver at the tip did: much of it is drawn."""
    for seed in range(8, 48):
        made = World(seed, Plan(equivocators=(1,), bad_dealers=(2,), payload_bytes=80))
        assert made.run(lambda made=made: made.cup_height() >= 32, 120 * SECOND)  # type: ignore[misc]
        if all(samples_of(all_of(made)).values()):
            return made
    raise AssertionError("in none of 40 runs there were artifacts of all kinds")


def all_of(world: World) -> list[Artifact]:
    return list(dict.fromkeys(a for node in world.nodes for a in node.durable))


def samples_of(everything: list[Artifact]) -> dict[type, list[Artifact]]:
    found: dict[type, list[Artifact]] = {kind: [] for kind in KINDS}
    for artifact in everything:
        kind = type(artifact)
        is_next = TIP < artifact.height <= TIP + 2
        if is_next or kind in PACKAGES or (kind in DKG and artifact.height == 0):
            found[kind].append(artifact)
    return found


@pytest.fixture(scope="module")
def everything(world: World) -> list[Artifact]:
    """All that the subnet's nodes ever made or took for valid."""
    return all_of(world)


@pytest.fixture(scope="module")
def samples(everything: list[Artifact]) -> dict[type, list[Artifact]]:
    """Artifacts that a driver at the tip below would take."""
    return samples_of(everything)


def at_tip(world: World, everything: list[Artifact], kind: type) -> d.Driver:
    """A replica that holds all up to a height, and nothing of this kind beyond."""
    node = world.nodes[0]
    state = HashChain()
    tip = CUP_AT + 1 if kind in PACKAGES else TIP
    known = [a for a in everything if a.height <= tip and type(a) not in (*PACKAGES, kind)]
    made = d.Driver(world.context(node, state), world.genesis.package, world.now)
    made.restore(known, world.now)
    for _ in range(3 * tip):
        for effect in made.step(world.now, world.now):
            if isinstance(effect, d.Execute):
                state.execute(effect.batch)
                made.executed(effect.batch.height)
            elif isinstance(effect, d.DeliverCertification):
                state.certified_height = effect.certification.height
    assert made.chain.finalized_height >= tip - 2
    return made


@pytest.mark.parametrize("kind", KINDS, ids=[k.__name__ for k in KINDS])
def test_unaltered_it_is_admitted(
    world: World, everything: list[Artifact], samples: dict[type, list[Artifact]], kind: type
) -> None:
    """Else the tests below would show nothing."""
    driver = at_tip(world, everything, kind)
    good = [a for a in samples[kind] if getattr(a, "signer", None) != driver.context.node]
    admitted = [driver.receive(a, sender_of(world, a), world.now) for a in good]
    assert any(admitted)


def sender_of(world: World, artifact: Artifact) -> NodeId:
    found: NodeId = getattr(artifact, "signer", world.nodes[1].keys.node)
    return found


def test_every_kind_is_there_to_be_changed(samples: dict[type, list[Artifact]]) -> None:
    missing = [kind.__name__ for kind, found in samples.items() if not found]
    assert missing == []


def altered(value: Any, dice: bytes, depth: int = 0) -> Any:
    """Return another value of the same type: what a liar could encode."""
    pick = dice[depth % len(dice)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return abs(value + (1, -1, 3, 400, 10**6, 1 << 40)[pick % 6])
    if isinstance(value, Principal):
        return STRANGER
    if isinstance(value, bytes):
        options = (
            b"",
            bytes(len(value)),
            value[:-1],
            value + b"\x01",
            sha256(value + dice).digest(),
        )
        return options[pick % len(options)]
    if isinstance(value, tuple):
        return (value[:-1], value + value[:1], ())[pick % 3] if value else value
    if is_dataclass(value) and not isinstance(value, type):
        return altered_record(value, dice, depth + 1)
    return value


def altered_record(record: Any, dice: bytes, depth: int = 0) -> Any:
    names = [f.name for f in fields(record) if f.init]
    name = names[dice[depth % len(dice)] % len(names)]
    return replace(record, **{name: altered(getattr(record, name), dice, depth + 1)})


@pytest.mark.parametrize("kind", KINDS, ids=[k.__name__ for k in KINDS])
@given(dice=st.binary(min_size=8, max_size=8), which=st.integers(0, 1 << 16))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_an_altered_artifact_is_never_taken_for_valid(
    world: World,
    everything: list[Artifact],
    samples: dict[type, list[Artifact]],
    kind: type,
    dice: bytes,
    which: int,
) -> None:
    driver = at_tip(world, everything, kind)
    original = samples[kind][which % len(samples[kind])]
    changed = altered_record(original, dice)
    if changed == original:
        return
    try:
        arrived = artifacts.decode(artifacts.encode(changed))
    except (Malformed, ValueError):
        return  # can't even be encoded within the format
    before = set(driver.pool.validated) | set(driver.certifications.validated)
    cup = driver.chain.cup
    driver.receive(arrived, sender_of(world, arrived), world.now)
    driver.step(world.now, world.now)
    valid = set(driver.pool.validated) | set(driver.certifications.validated)
    added = {a for a in valid - before if getattr(a, "signer", None) != driver.context.node}
    assert arrived not in added or is_honest_anyway(world, arrived), f"took {arrived}"
    assert driver.chain.cup == cup


def is_honest_anyway(world: World, artifact: Artifact) -> bool:
    """Whether somebody made just this: two genuine fields may have been put together."""
    return any(artifact in node.durable for node in world.nodes)


@pytest.mark.parametrize("kind", KINDS, ids=[k.__name__ for k in KINDS])
def test_another_epoch_and_the_far_future_are_not_admitted(
    world: World, everything: list[Artifact], samples: dict[type, list[Artifact]], kind: type
) -> None:
    driver = at_tip(world, everything, kind)
    sample: Any = samples[kind][-1]
    sender = sender_of(world, sample)
    if isinstance(sample, BlockProposal):
        other = replace(sample, block=replace(sample.block, epoch=Epoch(9)))
        far = replace(sample, block=replace(sample.block, height=Height(10**6)))
    else:
        other = replace(sample, epoch=Epoch(9))
        far = replace(sample, height=Height(10**6))
    assert not driver.receive(other, sender, world.now)
    if not isinstance(sample, Cup):  # a package may jump ahead; its signature decides
        assert not driver.receive(far, sender, world.now)


@pytest.mark.parametrize("kind", KINDS, ids=[k.__name__ for k in KINDS])
def test_a_flood_of_one_kind_and_height_is_bounded(
    world: World, everything: list[Artifact], samples: dict[type, list[Artifact]], kind: type
) -> None:
    driver = at_tip(world, everything, kind)
    sample: Any = samples[kind][-1]
    height = Height(driver.chain.notarized_height + 2)
    for i in range(PLACES_MAX * 8):
        noise = sha256(i.to_bytes(4, "big")).digest()
        if isinstance(sample, BlockProposal):
            block = replace(sample.block, height=height, parent=noise)
            made: Any = replace(sample, block=block, signature=noise)
        else:
            name = next(f.name for f in reversed(fields(sample)) if f.type == "bytes")
            made = replace(sample, height=height, **{name: noise})
        driver.receive(made, sender_of(world, made), world.now)
        assert driver.held_bytes(sender_of(world, made)) <= quota.PEER_BYTES_MAX
    sections = (driver.pool.unvalidated, driver.certifications.unvalidated)
    assert sum(s.count_at(kind, height) for s in sections) <= PLACES_MAX


@given(raw=st.binary(max_size=400))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_noise_is_malformed_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Malformed):
        artifacts.decode(raw)


def test_an_oversized_artifact_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Malformed, match="bytes"):
        artifacts.decode(bytes(artifacts.ARTIFACT_BYTES_MAX + 1))
