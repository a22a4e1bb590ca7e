"""Distributed key generation: who can sign with what comes out, and who is found out."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.dkg import HIGH, INTERVAL, LOW, BlsDkg, Config, Dealing, KeyGeneration
from replica.protocol.crypto.dkg_double import DoubleDkg
from replica.protocol.crypto.scheme import KeyedHash, Scheme, Transcript, threshold_high
from replica.protocol.ids import Epoch, Height, NodeId, Principal, SubnetId

SUBNET = SubnetId(Principal(b"subnet"))


def secret(node: NodeId) -> bytes:
    return (int.from_bytes(sha256(bytes(node)).digest(), "big") % bls.ORDER).to_bytes(32, "big")


class Scene:
    """One scheme, real or double, with keys for any node."""

    def __init__(self, real: bool) -> None:
        self.dkg: KeyGeneration = BlsDkg() if real else DoubleDkg()
        self.scheme: Scheme = bls.Bls() if real else KeyedHash()
        self.real = real

    def key(self, node: NodeId) -> bytes:
        return dkg.public_key(secret(node)) if self.real else secret(node)

    def keys(self, config: Config) -> dict[NodeId, bytes]:
        return {r: self.key(r) for r in config.receivers}

    def fresh(self, nodes: tuple[NodeId, ...], threshold: int, height: int = 0) -> Config:
        return Config(
            INTERVAL, SUBNET, Epoch(1), Height(height), LOW, nodes, nodes, threshold, None
        )

    def reshare(self, old: Transcript, receivers: tuple[NodeId, ...], height: int = 0) -> Config:
        return dkg.config(SUBNET, Epoch(1), Height(height), HIGH, receivers, old)

    def deal(self, config: Config, dealer: NodeId, old: Transcript | None = None) -> Dealing:
        share = self.dkg.share_of(old, dealer, secret(dealer)) if old else None
        seed = sha256(b"seed" + bytes(dealer)).digest()
        return self.dkg.deal(config, dealer, seed, share, self.keys(config))

    def generate(
        self, config: Config, dealers: tuple[NodeId, ...], old: Transcript | None = None
    ) -> Transcript | None:
        return self.dkg.combine(config, {d: self.deal(config, d, old) for d in dealers})

    def signs(self, transcript: Transcript, nodes: tuple[NodeId, ...]) -> bool:
        """Whether these nodes together sign under the transcript's key."""
        shares: dict[int, bytes] = {}
        for node in nodes:
            share = self.dkg.share_of(transcript, node, secret(node))
            index = transcript.index_of(node)
            if share is None or index is None:
                return False
            signature = self.scheme.sign_threshold(share, b"m")
            assert self.scheme.verify_threshold(transcript.share_keys[index], b"m", signature)
            shares[index] = signature
        made = self.scheme.combine_threshold(b"m", shares, transcript)
        return self.scheme.verify_threshold(transcript.public_key, b"m", made)


def nodes(count: int, first: int = 0) -> tuple[NodeId, ...]:
    return tuple(NodeId(Principal(bytes([i + 1]) * 29)) for i in range(first, first + count))


@pytest.fixture(params=[True, False], ids=["bls", "double"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


def test_a_fresh_key_is_shared_by_its_receivers(scene: Scene) -> None:
    members = nodes(4)
    config = scene.fresh(members, 2)
    assert scene.generate(config, members[:1]) is None, "one dealer alone would know the key"
    made = scene.generate(config, members[1:3])
    assert made is not None
    assert scene.signs(made, members[:2])
    assert scene.signs(made, members[2:])


@pytest.mark.parametrize(
    ("before", "after", "dead"),
    [(4, 4, 1), (4, 7, 1), (7, 4, 2), (4, 5, 0), (13, 13, 4)],
)
def test_resharing_keeps_the_key(scene: Scene, before: int, after: int, dead: int) -> None:
    old_members, new_members = nodes(before), nodes(after, first=2)
    old = scene.generate(scene.fresh(old_members, threshold_high(before)), old_members)
    assert old is not None
    config = scene.reshare(old, new_members, 10)
    dealers = old_members[dead:]
    new = scene.generate(config, dealers, old)
    assert new is not None
    assert new.public_key == old.public_key
    assert new.threshold == threshold_high(after)
    assert scene.signs(new, new_members[: new.threshold])
    assert scene.signs(new, new_members[-new.threshold :])
    again = scene.generate(scene.reshare(new, old_members, 20), new_members[: new.threshold], new)
    assert again is not None and again.public_key == old.public_key
    assert scene.signs(again, old_members[-again.threshold :])
    too_few = old_members[: old.threshold - 1]
    assert scene.generate(config, too_few, old) is None


def test_a_member_that_left_signs_no_more(scene: Scene) -> None:
    members, staying = nodes(4), nodes(4, first=1)
    old = scene.generate(scene.fresh(members, 3), members)
    assert old is not None
    new = scene.generate(scene.reshare(old, staying, 1), members[:3], old)
    assert new is not None
    assert scene.dkg.share_of(new, members[0], secret(members[0])) is None
    share = scene.dkg.share_of(old, members[0], secret(members[0]))
    assert share is not None
    mixed = {
        0: scene.scheme.sign_threshold(share, b"m"),
        1: scene.scheme.sign_threshold(_need(scene, new, staying[1]), b"m"),
        2: scene.scheme.sign_threshold(_need(scene, new, staying[2]), b"m"),
    }
    made = scene.scheme.combine_threshold(b"m", mixed, new)
    assert not scene.scheme.verify_threshold(new.public_key, b"m", made)


def _need(scene: Scene, transcript: Transcript, node: NodeId) -> bytes:
    share = scene.dkg.share_of(transcript, node, secret(node))
    assert share is not None
    return share


def test_a_cheated_receiver_can_prove_it_and_nobody_else_can(scene: Scene) -> None:
    members = nodes(4)
    config = scene.fresh(members, 2)
    good = scene.deal(config, members[0])
    wrong = bytes([good.sealed[2][0] ^ 1]) + good.sealed[2][1:]
    bad = replace(good, sealed=(*good.sealed[:2], wrong, good.sealed[3]))
    assert scene.dkg.fault(config, members[0], bad) is None, "nobody else can see it"
    victim, other = members[2], members[1]
    assert scene.dkg.opens(config, good, victim, secret(victim))
    assert not scene.dkg.opens(config, bad, victim, secret(victim))
    assert scene.dkg.opens(config, bad, other, secret(other))
    complaint = scene.dkg.complain(config, bad, secret(victim))
    judge = scene.dkg.is_justified
    assert judge(config, bad, victim, scene.key(victim), complaint)
    assert not judge(config, good, victim, scene.key(victim), complaint), "a good dealing stays"
    slander = scene.dkg.complain(config, bad, secret(other))
    assert not judge(config, bad, other, scene.key(other), slander)
    assert not judge(config, bad, victim, scene.key(victim), slander), "a key that is not its own"
    forged = replace(complaint, key=scene.dkg.complain(config, good, secret(other)).key)
    assert not judge(config, bad, victim, scene.key(victim), forged)
    stranger = nodes(1, first=9)[0]
    assert not judge(config, bad, stranger, scene.key(stranger), complaint)


def test_what_everybody_sees_to_be_wrong(scene: Scene) -> None:
    members = nodes(4)
    old = scene.generate(scene.fresh(members, 3), members)
    assert old is not None
    config = scene.reshare(old, members, 5)
    good = scene.deal(config, members[0], old)
    fault = scene.dkg.fault
    assert fault(config, members[0], good) is None
    assert fault(config, nodes(1, first=9)[0], good)
    assert fault(config, members[1], good), "another dealer's share"
    assert fault(config, members[0], replace(good, sealed=good.sealed[1:]))
    assert fault(config, members[0], replace(good, commitments=good.commitments[1:]))
    short = (good.sealed[0][1:], *good.sealed[1:])
    assert fault(config, members[0], replace(good, sealed=short))


@pytest.mark.parametrize("raw", [b"", bytes(96), b"\xc0" + bytes(95), b"\xff" * 96, b"\x80" * 95])
def test_points_that_are_none(raw: bytes) -> None:
    scene, members = Scene(real=True), nodes(4)
    config = scene.fresh(members, 2)
    good = scene.deal(config, members[0])
    bad = replace(good, commitments=(raw, good.commitments[1]))
    assert scene.dkg.fault(config, members[0], bad)
    assert scene.dkg.fault(config, members[0], replace(good, ephemeral=raw[:48]))


def test_dealing_again_deals_the_same(scene: Scene) -> None:
    """A dealer that crashed before its dealing was sent does not contradict itself."""
    config = scene.fresh(nodes(4), 2)
    assert scene.deal(config, nodes(1)[0]) == scene.deal(config, nodes(1)[0])
    assert scene.deal(config, nodes(1)[0]) != scene.deal(config, nodes(2)[1])
    other = scene.fresh(nodes(4), 2, height=7)
    assert scene.deal(config, nodes(1)[0]) != scene.deal(other, nodes(1)[0])


def test_a_dealer_can_not_borrow_anothers_ephemeral_point() -> None:
    """Else a complaint of its dealing would show the key of the other dealer's share."""
    scene, members = Scene(True), nodes(4)
    config = scene.fresh(members, 2)
    honest = scene.deal(config, members[0])
    assert scene.dkg.fault(config, members[0], honest) is None
    borrowed = replace(honest, sealed=tuple(bytes(32) for _ in members))
    assert "ephemeral" in (scene.dkg.fault(config, members[1], borrowed) or "")
    own = scene.deal(config, members[1])
    mixed = replace(own, ephemeral=honest.ephemeral)
    assert "ephemeral" in (scene.dkg.fault(config, members[1], mixed) or "")
    other = replace(config, height=Height(7))
    assert "ephemeral" in (scene.dkg.fault(other, members[0], honest) or "")
