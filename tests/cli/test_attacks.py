"""The drills' bad member is a strong one: what it sends is sound where it can be, and ever new."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from cli.lab import attacks
from cli.lab import swarm as lab
from cli.lab.attacker import SPARE_S_MAX, Limits
from cli.lab.ground import Ground
from cli.lab.insider import DKG, Insider
from replica.abi.bundle import pack
from replica.client import release
from replica.client.local_registry import LocalRegistry
from replica.protocol import artifacts, certification, cup, envelope, frames
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    CertificationShare,
    Cup,
    DkgComplaint,
    DkgDealing,
)
from replica.protocol.crypto import dkg
from replica.protocol.crypto.bls import VERIFIER
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.errors import Malformed, NotVerified, ReprisError
from replica.protocol.ids import Height
from replica.runtime import settings as node_settings
from replica.runtime import stored_cup

PACKAGE = pack([("replica/__main__.py", b"# nothing\n")])


class Small(Ground):
    def first_release(self, published: Path) -> Path:
        return release.unpack(PACKAGE, published, release.digest(PACKAGE))


@pytest.fixture(scope="module")
def me(tmp_path_factory: pytest.TempPathFactory) -> Insider:
    swarm = lab.create(tmp_path_factory.mktemp("bad") / "swarm", lab.Options(), Small())
    settings = node_settings.load(swarm.app.nodes[3].folder)
    records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
    package = records.registry_cup(swarm.app.id)
    assert package is not None
    stored_cup.write(settings.cup_path, package)
    return Insider.of(settings)


def artifacts_of(me: Insider, name: str, count: int) -> list[Artifact]:
    out = []
    for frame in islice(attacks.ATTACKS[name](me), count):
        assert frame[4] == frames.ARTIFACT
        body = frame[frames.HEAD_BYTES :]
        assert body.startswith(me.tag), "it is of the run that the subnet is in"
        out.append(artifacts.decode(body[artifacts.RUN_TAG_BYTES :]))
    return out


ANEW = set(attacks.ATTACKS) - {"complaints", "questions", "garbage", "mix"}


@pytest.mark.parametrize("name", sorted(ANEW))
def test_no_frame_is_sent_twice(me: Insider, name: str) -> None:
    made = list(islice(attacks.ATTACKS[name](me), 60))
    assert len(set(made)) == 60


@pytest.mark.parametrize("name", ["orphan-blocks", "blocks-of-one-height", "oversized"])
def test_blocks_are_signed_by_the_member(me: Insider, name: str) -> None:
    key = me.secrets.signing.public_key
    blocks = [a for a in artifacts_of(me, name, 5) if isinstance(a, BlockProposal)]
    assert blocks
    for block in blocks:
        made = block.block
        hash_ = artifacts.block_hash(made)
        message = artifacts.block_message(made.subnet, made.epoch, made.run, made.height, hash_)
        assert block.maker == me.node and verify_ed25519(key, message, block.signature)


def test_invented_roots_are_signed_and_witnessed_well(me: Insider) -> None:
    for share in artifacts_of(me, "invented-roots", 5):
        assert isinstance(share, CertificationShare)
        fault = certification.witness_fault(share.root, share.witness, me.epoch, share.height)
        assert fault is None
        high = me.package.high_at(share.height)
        index = high.index_of(me.node)
        assert index is not None
        message = artifacts.certification_message(share.root)
        assert VERIFIER.verify_threshold(high.share_keys[index], message, share.signature)


def test_complaints_are_justified_and_each_is_another_proof(me: Insider) -> None:
    dealing, *complaints = artifacts_of(me, "complaints", 6)
    assert isinstance(dealing, DkgDealing)
    s = me.summary
    config = dkg.config(me.package.subnet, me.epoch, s.height, dkg.LOW, s.receivers, s.high)
    assert DKG.fault(config, me.node, dealing.dealing) is None
    key = dkg.public_key(me.secrets.dealing)
    for complaint in complaints:
        assert isinstance(complaint, DkgComplaint)
        assert DKG.is_justified(config, dealing.dealing, me.node, key, complaint.complaint)
    assert len({artifacts.encode(c) for c in complaints}) == 5


def test_forged_packages_are_sound_in_all_but_the_signature(me: Insider) -> None:
    sent = artifacts_of(me, "junk-cups", 2)[1]
    assert isinstance(sent, Cup)
    package = cup.decode(sent.package)
    assert package.height == sent.height > me.package.height
    with pytest.raises(NotVerified):
        package.verify(me.records.subnet_public_key(me.package.subnet))


def test_requests_of_users_are_valid_wrongly_signed_and_none(me: Insider) -> None:
    now_ns = me.package.block.context.time_ns
    valid, wrong, none = (f[frames.HEAD_BYTES :] for f in islice(attacks.ingress(me), 3))
    assert envelope.decode(valid, now_ns)
    for raw in (wrong, none):
        with pytest.raises(ReprisError):
            envelope.decode(raw, now_ns)


def test_it_follows_what_its_peers_send(me: Insider) -> None:
    heard = replace(me, tip=None)
    block = me.block(50, b"p" * 32)
    heard.hear(me.frame(block)[frames.HEAD_BYTES :])
    assert heard.tip is not None and heard.tip.height == 50
    heard.hear(me.frame(me.block(40, b"p" * 32))[frames.HEAD_BYTES :])
    assert heard.tip.height == 50, "an older block is no news"
    (first,) = artifacts_of(heard, "blocks-of-one-height", 1)
    assert isinstance(first, BlockProposal)
    assert (first.height, first.block.parent) == (Height(51), artifacts.block_hash(heard.tip))
    with pytest.raises(Malformed):
        heard.hear(bytes(artifacts.RUN_TAG_BYTES) + b"\x81\x82\x00 no block")


def test_the_attacker_keeps_to_its_limits_and_saves_nothing_up() -> None:
    limits = Limits(bytes_a_second=1000.0, cpu_share=0.2, began_s=100.0, cpu_began_s=5.0)
    assert limits.pause_s(3000, 100.0, 5.0) == pytest.approx(3.0)
    assert limits.pause_s(3000, 100.0, 6.0) == pytest.approx(5.0), "a second of work takes five"
    assert limits.pause_s(3000, 160.0, 6.0) < 0
    spared = limits.pause_s(3000, 160.0, 6.0)
    assert spared == pytest.approx(-SPARE_S_MAX), "what was not used is gone"
