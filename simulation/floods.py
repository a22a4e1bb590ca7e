"""Floods: members that send rubbish within their rights, with their real keys.

What a flood is made of: every kind of artifact, in advance, in the sender's own name, as far as it
can be signed signed well. Each is named, so that a plan can hold it as data; how much of it is sent
is told by the fault. A flood counts as full when every honest replica has refused some of it, or
has let some of it go for more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replica.consensus.dkg import config_of
from replica.consensus.door import Admission
from replica.protocol import artifacts, hash_tree
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BeaconShare,
    BlockProposal,
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
from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.dkg import Complaint
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.hashing import domain_hash, leb128, sha256
from replica.protocol.ids import Epoch, Height, SubnetId, TimeNs
from simulation.adversary import proof_of, signed_block
from simulation.doubles import tree_of

if TYPE_CHECKING:
    from replica.consensus.chain import Chain
    from replica.consensus.driver import Driver
    from simulation.subnet import Node, World

CROWD = 130
"""Artifacts of a height: more than a pool takes of a kind and height."""
AHEAD = 3
"""The first height that is crowded, above the tip: what is nearer is late when it arrives."""
THIN_HEIGHTS = (12, 40, 75, 150, 399, 401, 100_000)
"""Further ones, above the tip, of which each gets a few."""
BLOCK_BYTES, TREE_BYTES, LONG_BYTES = 5 << 20, 100_000, 1 << 20


@dataclass(frozen=True)
class Member:
    """A Byzantine member about to make something up."""

    world: World
    node: Node
    what: str
    driver: Driver

    @property
    def chain(self) -> Chain:
        return self.driver.chain

    @property
    def epoch(self) -> Epoch:
        return self.chain.cup.epoch

    @property
    def subnet(self) -> SubnetId:
        return self.world.subnet

    def invent(self, height: int, i: int) -> bytes:
        """Return 32 bytes that name nothing."""
        return sha256(repr((self.what, self.node.index, self.world.now, height, i)).encode())

    def multi(self, message: bytes) -> bytes:
        return self.driver.context.scheme.sign_multi(self.node.keys.committee, message)

    def threshold(self, key: Transcript, message: bytes) -> bytes:
        """Sign with this member's share of a key; with nothing when it holds none."""
        share = self.driver.reader(self.world.now).share_of(key)
        return b"" if share is None else self.driver.context.scheme.sign_threshold(share, message)


Maker = Callable[[Member, Height, int], Artifact]
"""Makes the i-th artifact of a height."""


def _block(m: Member, height: Height, i: int, ballast: bytes = b"") -> Artifact:
    """A block on a parent that nobody has, signed by its maker."""
    payload = Data((m.invent(height, -i) + ballast,)) if ballast else Data()
    tip = m.chain.finalized_tip.block
    context = replace(tip.context, time_ns=TimeNs(tip.context.time_ns + height - tip.height))
    block = replace(
        tip,
        version=m.driver.run.release,
        run_start=m.driver.run.start,
        height=height,
        parent=m.invent(height, i),
        payload_hash=artifacts.payload_hash(payload),
        context=context,
    )
    return signed_block(m.node, block, payload)


def _big_block(m: Member, height: Height, i: int) -> Artifact:
    return _block(m, height, i, bytes(BLOCK_BYTES))


def _notarization_share(m: Member, height: Height, i: int) -> Artifact:
    hash_ = m.invent(height, i)
    signature = m.multi(
        artifacts.notarization_message(m.subnet, m.epoch, m.driver.run, height, hash_)
    )
    return NotarizationShare(m.epoch, height, hash_, m.node.keys.node, signature)


def _long_share(m: Member, height: Height, i: int) -> Artifact:
    """A share whose signature is as long as one likes."""
    return NotarizationShare(
        m.epoch, height, m.invent(height, i), m.node.keys.node, bytes(LONG_BYTES)
    )


def _finalization_share(m: Member, height: Height, i: int) -> Artifact:
    hash_ = m.invent(height, i)
    signature = m.multi(
        artifacts.finalization_message(m.subnet, m.epoch, m.driver.run, height, hash_)
    )
    return FinalizationShare(m.epoch, height, hash_, m.node.keys.node, signature)


def _beacon_share(m: Member, height: Height, i: int) -> Artifact:
    parent = m.invent(height, i)
    message = artifacts.beacon_message(m.subnet, m.epoch, height, parent)
    signature = m.threshold(m.chain.summary_at(m.chain.finalized_height).low, message)
    return BeaconShare(m.epoch, height, parent, m.node.keys.node, signature)


def _tape_share(m: Member, height: Height, i: int) -> Artifact:
    return TapeShare(m.epoch, height, m.node.keys.node, m.invent(height, i)[:24])


def _cup_share(m: Member, height: Height, i: int) -> Artifact:
    return CupShare(m.epoch, height, m.invent(height, i), m.node.keys.node, bytes(24))


def _certification_share(m: Member, height: Height, i: int) -> Artifact:
    """A share on a root of the sender's own invention, signed well."""
    root, witness = tree_of(m.epoch, height, m.invent(height, i))
    return _on_root(m, height, root, witness)


def _big_certification_share(m: Member, height: Height, i: int) -> Artifact:
    """The same, with the whole of a big tree as witness."""
    other = m.invent(height, i) + bytes(TREE_BYTES)
    tree = hash_tree.build(
        {b"metadata": {b"epoch": leb128(m.epoch), b"height": leb128(height), b"x": other}}
    )
    return _on_root(m, height, tree.digest, hash_tree.encode(tree))


def _on_root(m: Member, height: Height, root: bytes, witness: bytes) -> Artifact:
    key = m.chain.summary_at(m.chain.finalized_height).high
    signature = m.threshold(key, artifacts.certification_message(root))
    return CertificationShare(m.epoch, height, root, witness, m.node.keys.node, signature)


def _notarization(m: Member, height: Height, i: int) -> Artifact:
    signers = m.chain.cup.summary.receivers
    return Notarization(m.epoch, height, m.invent(height, i), signers, bytes(24))


def _finalization(m: Member, height: Height, i: int) -> Artifact:
    signers = m.chain.cup.summary.receivers
    return Finalization(m.epoch, height, m.invent(height, i), signers, bytes(24))


def _beacon(m: Member, height: Height, i: int) -> Artifact:
    return Beacon(m.epoch, height, m.invent(height, i), bytes(24))


def _tape(m: Member, height: Height, i: int) -> Artifact:
    return Tape(m.epoch, height, m.invent(height, i)[:24])


def _cup(m: Member, height: Height, i: int) -> Artifact:
    """A package of a height far away that is none."""
    return Cup(m.epoch, Height(height + 10**6), m.invent(height, i)[:12])


def _big_cup(m: Member, height: Height, i: int) -> Artifact:
    return Cup(m.epoch, Height(height + 10**6), m.invent(height, i) + bytes(LONG_BYTES))


def _certification(m: Member, height: Height, i: int) -> Artifact:
    root, witness = tree_of(m.epoch, height, m.invent(height, i))
    return Certification(m.epoch, height, root, witness, bytes(24))


def _dealing(m: Member, height: Height, i: int) -> Artifact:
    """Dealings of its own, ever others, for this key generation and the next one."""
    summary = m.chain.summary_at(m.chain.finalized_height)
    config = config_of(m.driver.reader(m.world.now), summary, dkg.LOW)
    count = len(config.receivers)
    sealed = tuple([m.invent(k, i) for k in range(count)])
    commitments = tuple([m.invent(-k - 1, i) for k in range(count + 1)])
    dealing = dkg.Dealing(commitments, m.invent(height, i), sealed)
    signature = m.node.keys.signing.sign(dkg.message(config, dealing))
    opened = Height(summary.height if i % 2 else summary.next_start)
    return DkgDealing(m.epoch, opened, dkg.LOW, m.node.keys.node, dealing, signature)


def _complaint(m: Member, height: Height, i: int) -> Artifact:
    """Complaints of dealings that nobody has, for this key generation.

    On the curve, true ones of its own dealing, each with another nonce.
    """
    summary, me = m.chain.summary_at(m.chain.finalized_height), m.node.keys.node
    mine = [a for a in m.driver.pool.validated.at(DkgDealing, summary.height) if a.dealer == me]
    if m.world.plan.real_bls and mine:
        digest = dkg.digest(mine[0].dealing)
        complaint = _justified(m, mine[0].dealing.ephemeral, m.invent(height, i))
        return DkgComplaint(m.epoch, summary.height, mine[0].tag, me, digest, me, complaint)
    complaint = Complaint(m.invent(height, i), b"", b"")
    return DkgComplaint(m.epoch, summary.height, dkg.LOW, me, m.invent(height, i), me, complaint)


def _justified(m: Member, ephemeral: bytes, nonce: bytes) -> Complaint:
    """Open a share to everybody, with a proof of equal logarithms by a nonce of one's choice."""
    secret = int.from_bytes(m.node.keys.dealing, "big") % bls.ORDER
    chosen = int.from_bytes(nonce, "big") % bls.ORDER
    base = bls.decode_g1(ephemeral)
    assert base is not None, "its own dealing is one"
    public, key, first, second = [
        bytes(point.scalar_mul(k).compress())
        for k, point in ((secret, bls.G1), (secret, base), (chosen, bls.G1), (chosen, base))
    ]
    hashed = domain_hash("ni-dkg-complaint", public, ephemeral, key, first, second)
    challenge = int.from_bytes(hashed, "big") % bls.ORDER
    response = (chosen + challenge * secret) % bls.ORDER
    return Complaint(key, challenge.to_bytes(32, "big"), response.to_bytes(32, "big"))


def spoiled(world: World, node: Node, message: DkgDealing) -> DkgDealing:
    """Return a member's dealing in which its own share is wrong, so that it may complain of it."""
    driver, me = node.driver, node.keys.node
    assert driver is not None
    config = config_of(
        driver.reader(world.now), driver.chain.summary_at(message.height), message.tag
    )
    sealed = list(message.dealing.sealed)
    index = config.receivers.index(me)
    sealed[index] = bytes([sealed[index][0] ^ 1]) + sealed[index][1:]
    dealing = replace(message.dealing, sealed=tuple(sealed))
    signature = node.keys.signing.sign(dkg.message(config, dealing))
    made = replace(message, dealing=dealing, signature=signature)
    driver.pool.validated.remove(message)
    driver.pool.validated.insert(made, world.now)
    return made


def _proof(m: Member, height: Height, i: int) -> Artifact:
    """Proofs against itself, of ever other blocks, all of them true."""
    pair = [_block(m, height, k) for k in (2 * i, 2 * i + 1)]
    one, two = [p for p in pair if isinstance(p, BlockProposal)]
    return proof_of(one, two, m.driver.run)


FLOODS: dict[str, Maker] = {
    "blocks": _block,
    "notarization shares": _notarization_share,
    "finalization shares": _finalization_share,
    "beacon shares": _beacon_share,
    "tape shares": _tape_share,
    "cup shares": _cup_share,
    "certification shares": _certification_share,
    "notarizations": _notarization,
    "finalizations": _finalization,
    "beacons": _beacon,
    "tapes": _tape,
    "cups": _cup,
    "certifications": _certification,
    "dealings": _dealing,
    "complaints": _complaint,
    "proofs": _proof,
    "big blocks": _big_block,
    "long signatures": _long_share,
    "big certification shares": _big_certification_share,
    "big cups": _big_cup,
}
"""All sixteen kinds of artifact, and oversized ones."""
BIG = {
    "big blocks": 14,
    "long signatures": 70,
    "big certification shares": 700,
    "big cups": 70,
}
"""How many of the oversized ones are more than 64 MiB; of two each height gets some."""
BIG_A_HEIGHT = {"big certification shares": CROWD}


def heights_of(what: str, amount: int, tip: int) -> Iterator[tuple[Height, int]]:
    """Return the heights of a flood's artifacts, and the number of each at its height.

    Whole crowds fill some heights and leave a few far ahead; any other amount is spread, one a
    height, over those to come.
    """
    crowd = CROWD if amount % CROWD == 0 else 1
    if what in BIG:
        crowd = BIG_A_HEIGHT.get(what, 2)
    for k in range(amount):
        yield Height(tip + AHEAD + k // crowd), k % crowd
    if crowd == CROWD and what not in BIG:
        for distance in THIN_HEIGHTS:
            yield from ((Height(tip + distance), i) for i in range(2))


class Flooder:
    """Carries floods out, and sees when they are full."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sent: dict[Artifact, str] = {}
        self.deeds: Counter[tuple[str, int]] = Counter()
        """How much of each flood came to each honest node."""
        self._refused: dict[tuple[int, str], set[int]] = {}
        """By flooder and flood: honest nodes that had no more room for it."""

    def flood(self, node: Node, what: str, amount: int) -> None:
        if node.driver is None:
            return
        member = Member(self.world, node, what, node.driver)
        self.world.counts[f"flood: {what}"] += 1
        tip = node.driver.chain.notarized_height
        for height, i in heights_of(what, amount, tip):
            artifact = FLOODS[what](member, height, i)
            self._sent[artifact] = what
            self.world.network.broadcast(node.index, artifact)

    def arrived(self, source: int, target: Node, artifact: Artifact, became: Admission) -> None:
        """An honest replica was sent an artifact that is not late; `became`: what became of it."""
        what = self._sent.get(artifact)
        if what is None:
            return
        self.deeds[what, target.index] += 1
        if became is Admission.ADMITTED:
            return
        at = self._refused.setdefault((source, what), set())
        if target.index in at:
            return
        at.add(target.index)
        if at >= {n.index for n in self.world.honest if n.driver is not None}:
            self.world.counts[f"full: {what}"] += 1
