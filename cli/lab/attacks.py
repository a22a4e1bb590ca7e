"""What one bad member sends: each attack is an endless sequence of frames, the same to each peer.

Those within a member's rights come first: who sends what is wrong by itself is refused for a while,
and what it does next then comes to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

from cli.lab.insider import BLS, DKG, Insider
from replica.protocol import artifacts, cup, envelope, frames, hash_tree
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BeaconShare,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    Data,
    DkgComplaint,
    DkgDealing,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.hashing import leb128
from replica.protocol.ids import Height, canister_id

AHEAD_HEIGHTS = 400
BLOCK_BYTES, WITNESS_BYTES = 5 << 20, 100_000
ABSURD_HEIGHT = 10**6
EXPIRY_NS = 200 * 10**9

Frames = Iterator[bytes]


def _share(me: Insider, kind: int, height: Height, block: bytes) -> Artifact:
    """Return a share in its own name whose signature is a point, and of nothing."""
    e, n, x, s = me.epoch, me.node, me.noise(), me.point()
    return (
        NotarizationShare(e, height, block, n, s),
        FinalizationShare(e, height, block, n, s),
        BeaconShare(e, height, x, n, s),
        TapeShare(e, height, n, s),
        CupShare(e, height, x, n, s),
        CertificationShare(e, height, x, x, n, s),
    )[kind % 6]


def shares_ahead(me: Insider) -> Frames:
    for i in count():
        height = Height(me.notarized + 2 + i // 6 % AHEAD_HEIGHTS)
        yield me.frame(_share(me, i, height, me.noise()))


def orphan_blocks(me: Insider) -> Frames:
    for i in count():
        yield me.frame(me.block(me.notarized + 1 + i % 50, me.noise(), later_ns=i + 1))


def blocks_of_one_height(me: Insider) -> Frames:
    """On the newest block that there is, so that each is worth a look."""
    for i in count():
        tip = me.tip
        parent = artifacts.block_hash(tip) if tip else me.noise()
        height = tip.height + 1 if tip else me.notarized + 1
        yield me.frame(me.block(height, parent, later_ns=i + 1))


def oversized(me: Insider) -> Frames:
    """Blocks as large as they may be, and witnesses that are larger."""
    for i in count():
        data = Data((me.noise() + bytes(BLOCK_BYTES),))
        yield me.frame(me.block(me.notarized + 1 + i % 3, me.noise(), data, later_ns=i + 1))
        for k in range(20):
            witness, height = me.noise() + bytes(WITNESS_BYTES), Height(me.finalized + k)
            share = CertificationShare(me.epoch, height, me.noise(), witness, me.node, me.point())
            yield me.frame(share)


def invented_roots(me: Insider) -> Frames:
    """Shares that are well signed and well witnessed, on states that nobody computed."""
    for i in count():
        height = Height(me.finalized + i % 60)
        position = {b"epoch": leb128(me.epoch), b"height": leb128(height)}
        tree = hash_tree.build({b"metadata": {**position, b"x": me.noise()}})
        witness = hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS))
        secret = me.share_of(me.package.high_at(height))
        message = artifacts.certification_message(tree.digest)
        signature = BLS.sign_threshold(secret, message) if secret else me.point()
        share = CertificationShare(me.epoch, height, tree.digest, witness, me.node, signature)
        yield me.frame(share)


def complaints(me: Insider) -> Frames:
    """True ones, of a dealing of its own in which its own share is spoiled; each another proof."""
    k = 0
    while True:
        summary = me.summary
        config = dkg.config(
            me.package.subnet, me.epoch, summary.height, dkg.LOW, summary.receivers, summary.high
        )
        keys = {m.node: m.dealing_key for m in me.members}
        dealt = DKG.deal(config, me.node, me.noise(), None, keys)
        own = config.receivers.index(me.node)
        sealed = list(dealt.sealed)
        sealed[own] = bytes([sealed[own][0] ^ 1]) + sealed[own][1:]
        spoiled = replace(dealt, sealed=tuple(sealed))
        signature = me.secrets.signing.sign(dkg.message(config, spoiled))
        yield me.frame(DkgDealing(me.epoch, summary.height, dkg.LOW, me.node, spoiled, signature))
        digest = dkg.digest(spoiled)
        for _ in range(200):
            k += 1
            # The same exponent, written in another way: the proof's nonce is drawn from the bytes.
            secret = int.from_bytes(me.secrets.dealing, "big") + k * bls.ORDER
            complaint = DKG.complain(config, spoiled, secret.to_bytes(40, "big"))
            yield me.frame(
                DkgComplaint(me.epoch, summary.height, dkg.LOW, me.node, digest, me.node, complaint)
            )


def ingress(me: Insider) -> Frames:
    """Requests of users that nobody has: to no canister, wrongly signed, no requests at all."""
    user = Ed25519Key(me.noise())
    for i in count():
        if i % 3 == 2:
            yield frames.frame(frames.INGRESS, me.noise() * (1 + i % 100))
            continue
        known = me.tip or me.package.block
        content = {
            "request_type": "call",
            "sender": bytes(user.principal),
            "ingress_expiry": known.context.time_ns + EXPIRY_NS,
            "canister_id": bytes(canister_id((1 << 20) + 999)),
            "method_name": "nothing",
            "arg": me.noise(),
            "nonce": me.noise()[:16],
        }
        _, body = envelope.sign_request(content, user)
        if i % 3 == 1:
            body = body[:-20] + bytes(20)
        yield frames.frame(frames.INGRESS, body)


def questions(me: Insider) -> Frames:
    """Adverts of what is not there, questions for all there is, chunks over and over."""
    everything = tuple(range(len(artifacts.KINDS)))
    for i in count():
        states = tuple((ABSURD_HEIGHT + k, me.noise()) for k in range(frames.ADVERTS_MAX))
        yield frames.record_frame(frames.ADVERT, frames.Advert(states))
        yield frames.record_frame(frames.ASK, frames.Ask(everything, 0, 1 << 40))
        for height, root in me.checkpoints or [(0, me.noise())]:
            for kind in ("meta", "sub", "chunk"):
                request = frames.StateRequest(i, height, root, kind, i % 4)
                yield frames.record_frame(frames.REQUEST, request)


def wrong_signatures(me: Insider) -> Frames:
    """Of every kind, at the heights that are being decided."""
    for i in count():
        tip, height = me.tip, Height(me.notarized + 1)
        block = artifacts.block_hash(tip) if tip else me.noise()
        at = tip.height if tip else height
        most = tuple(sorted(m.node for m in me.members))[: me.summary.high.threshold]
        e, x, s = me.epoch, me.noise(), me.point()
        yield me.frame(_share(me, i, at, block))
        yield me.frame(Notarization(e, at, block, most, s))
        yield me.frame(Finalization(e, at, block, most, s))
        yield me.frame(Beacon(e, height, x, s))
        yield me.frame(Tape(e, height, s))
        yield me.frame(Certification(e, Height(me.finalized), x, x, s))
        yield me.frame(replace(me.block(height, block, later_ns=i + 1), signature=x + x))


def junk_cups(me: Insider) -> Frames:
    for i in count():
        height = Height(ABSURD_HEIGHT + i)
        yield me.frame(Cup(me.epoch, height, me.noise()))
        package = forged_cup(me)
        yield me.frame(Cup(me.epoch, package.height, package.encode()))
        yield me.frame(Cup(me.epoch, height, package.encode()[: 100 + i % 1000]))


def forged_cup(me: Insider) -> cup.CatchUpPackage:
    """Return the next package, sound in all but its signature."""
    height = me.summary.next_start
    summary = replace(me.summary, height=height)
    block = replace(
        me.package.block,
        height=height,
        parent=me.noise(),
        payload_hash=artifacts.payload_hash(summary),
    )
    beacon = Beacon(me.epoch, height, me.noise(), me.point())
    return cup.CatchUpPackage(cup.content(block, summary, beacon, me.noise()), me.point())


def garbage(me: Insider) -> Frames:
    """What does not decode, in every layer: frames, records, artifacts, points."""
    for i in count():
        noise = me.noise() * (1 + i % 50)
        yield frames.frame(frames.ARTIFACT, me.tag + noise)
        yield frames.frame(
            frames.ARTIFACT, me.tag + bytes([0x81, 0x82, i % 20, 0x86, 1, 1]) + noise
        )
        yield frames.frame(frames.ARTIFACT, me.tag + b"\x81" * 20_000)
        yield frames.frame(frames.ASK, noise[:100])
        yield frames.frame(frames.REQUEST, noise[:8000])
        yield frames.record_frame(frames.RESPONSE, frames.StateResponse(i, noise))
        yield frames.frame(9, noise)
        yield (1 << 31).to_bytes(4, "big") + bytes([frames.ARTIFACT]) + noise
        share = NotarizationShare(me.epoch, Height(me.notarized + 1), noise[:32], me.node, b"\xff")
        yield me.frame(share)


def mix(me: Insider) -> Frames:
    """Some of each in turn."""
    parts = [make(me) for name, make in ATTACKS.items() if make is not mix]
    while True:
        for part in parts:
            for _ in range(10):
                yield next(part)


ATTACKS: dict[str, Callable[[Insider], Frames]] = {
    "shares-ahead": shares_ahead,
    "orphan-blocks": orphan_blocks,
    "blocks-of-one-height": blocks_of_one_height,
    "invented-roots": invented_roots,
    "ingress": ingress,
    "questions": questions,
    "complaints": complaints,
    "oversized": oversized,
    "junk-cups": junk_cups,
    "wrong-signatures": wrong_signatures,
    "garbage": garbage,
    "mix": mix,
}
"""By name; `connections` is another, which sends nothing (see `cli.lab.attacker`)."""
CONNECTIONS = "connections"
NAMES = (*list(ATTACKS)[:7], CONNECTIONS, *list(ATTACKS)[7:])
