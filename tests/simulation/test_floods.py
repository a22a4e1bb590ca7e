"""Members that send all they can within their rights, in every kind, and then fall silent.

Whatever f members send: what waits of a peer stays within its quota, no honest artifact of a height
that can be judged is turned away, and heights are final and certified again within ten seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from replica.consensus.door import Admission
from replica.consensus.quota import PEER_BYTES_MAX
from replica.protocol import artifacts, hash_tree
from replica.protocol.artifacts import (
    KINDS,
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
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.crypto.dkg import Complaint, Dealing
from replica.protocol.hashing import leb128, sha256
from replica.protocol.ids import Epoch, Height, NodeId, Rank
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

PER_HEIGHT = 160
"""More than any kind ever had places at a height."""


class FloodedWorld(World):
    """A subnet whose last f members flood."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.flooders = range(plan.nodes - (plan.nodes - 1) // 3, plan.nodes)
        self.muted = False
        super().__init__(seed, plan)

    def is_honest(self, node: Node) -> bool:
        return node.index not in self.flooders and super().is_honest(node)

    def send(self, node: Node, artifact: Artifact) -> None:
        if not (self.muted and node.index in self.flooders):
            super().send(node, artifact)

    def _arrive(self, source: int, target: int, artifact: Artifact) -> None:
        node, peer = self.nodes[target], self.nodes[source].keys.node
        if node.driver is None or not self.is_honest(node):
            super()._arrive(source, target, artifact)
            return
        became = node.driver.take_in(artifact, peer, self.now)
        assert node.driver.held_bytes(peer) <= PEER_BYTES_MAX
        if became.is_in or became is Admission.WRONG:
            self.wake(node, self.now + self.plan.step_us * 1000)
        if self.is_honest(self.nodes[source]) and not self._is_of_flooder(artifact):
            chain = node.driver.chain
            is_now = artifact.height <= chain.notarized_height + 1
            refused = became in (Admission.REFUSED, Admission.WRONG)
            assert not (refused and is_now), f"{type(artifact).__name__} is turned away"

    def _is_of_flooder(self, artifact: Artifact) -> bool:
        """Whether it is a flooder's block: its third of a height has a place once notarized."""
        makers = [self.nodes[i].keys.node for i in self.flooders]
        return isinstance(artifact, BlockProposal) and artifact.maker in makers

    def heights(self) -> list[int]:
        """Return how far each honest node is: final, certified."""
        found = []
        for node in self.honest:
            assert node.driver is not None
            found += [node.driver.chain.finalized_height, node.state.certified_height]
        return found

    def goes_on(self, times: int = 1) -> None:
        """Assert that all heights grow within ten seconds, so many times."""
        for _ in range(times):
            before = self.heights()
            grown = self.run(
                lambda before=before: all(  # type: ignore[misc]
                    now > then + 5 for now, then in zip(self.heights(), before, strict=True)
                ),
                10 * SECOND,
            )
            assert grown, f"it stands: {before}, then {self.heights()}"

    def flood(self, kinds: tuple[type, ...], heights: range, size_bytes: int, count: int) -> None:
        for index in self.flooders:
            for kind in kinds:
                for height in heights:
                    for i in range(count):
                        made = forged(self, self.nodes[index], kind, height, i, size_bytes)
                        self.network.broadcast(index, made)

    def tip(self) -> int:
        return max(n.driver.chain.notarized_height for n in self.honest if n.driver)


def forged(world: World, node: Node, kind: type, height: int, i: int, size_bytes: int) -> Artifact:
    """Return one of many artifacts of a kind and height: in the node's own name, on nothing."""
    noise = sha256(repr((kind.__name__, node.index, height, i)).encode())
    bulk = noise + bytes(size_bytes)
    return MAKERS[kind](world, node, Height(height), noise, bulk)


def _block(world: World, node: Node, height: Height, noise: bytes, bulk: bytes) -> BlockProposal:
    """An orphan, well signed."""
    package, data = node.package, Data((bulk,))
    block = replace(
        package.block,
        height=height,
        rank=Rank(0),
        parent=noise,
        version="v1",
        payload_hash=artifacts.payload_hash(data),
    )
    hash_ = artifacts.block_hash(block)
    message = artifacts.block_message(block.subnet, block.epoch, height, hash_)
    return BlockProposal(block, data, node.keys.node, node.keys.signing.sign(message))


def _certification_share(
    world: World, node: Node, height: Height, noise: bytes, bulk: bytes
) -> CertificationShare:
    """On a root of its own, well signed where the node knows with what."""
    tree = hash_tree.build({b"metadata": {b"height": leb128(height), b"x": bulk}})
    witness = hash_tree.encode(tree if len(bulk) > 32 else hash_tree.witness(tree, [PATH]))
    signature = bulk[:24]
    driver = node.driver
    if driver is not None and height <= driver.reader(world.now).known_until:
        share = driver.reader(world.now).share_of(driver.chain.interval_at(height).high)
        message = artifacts.certification_message(tree.digest)
        signature = world.scheme.sign_threshold(share, message) if share else signature
    epoch = node.package.epoch
    return CertificationShare(epoch, height, tree.digest, witness, node.keys.node, signature)


PATH = (b"metadata", b"height")
Maker = Callable[[World, Node, Height, bytes, bytes], Artifact]


def _signed(make: Callable[[Epoch, Height, bytes, NodeId, bytes], Artifact]) -> Maker:
    def made(world: World, node: Node, height: Height, noise: bytes, bulk: bytes) -> Artifact:
        return make(node.package.epoch, height, noise, node.keys.node, bulk)

    return made


def _summary(node: Node) -> Height:
    assert node.driver is not None
    return node.driver.chain.summary_at(node.driver.chain.finalized_height).height


MAKERS: dict[type, Maker] = {
    BlockProposal: _block,
    CertificationShare: _certification_share,
    EquivocationProof: _signed(lambda e, h, x, n, s: EquivocationProof(e, h, n, x, s, x[::-1], s)),
    NotarizationShare: _signed(NotarizationShare),
    Notarization: _signed(lambda e, h, x, n, s: Notarization(e, h, x, (n,), s)),
    FinalizationShare: _signed(FinalizationShare),
    Finalization: _signed(lambda e, h, x, n, s: Finalization(e, h, x, (n,), s)),
    BeaconShare: _signed(BeaconShare),
    Beacon: _signed(lambda e, h, x, n, s: Beacon(e, h, x, s)),
    TapeShare: _signed(lambda e, h, x, n, s: TapeShare(e, h, n, x + s)),
    Tape: _signed(lambda e, h, x, n, s: Tape(e, h, x + s)),
    CupShare: _signed(CupShare),
    Cup: _signed(lambda e, h, x, n, s: Cup(e, h, x + s)),
    Certification: _signed(lambda e, h, x, n, s: Certification(e, h, x, x, s)),
    DkgDealing: lambda w, node, h, x, s: DkgDealing(
        node.package.epoch,
        _summary(node),
        1 + x[0] % 9,
        node.keys.node if x[1] % 2 else NodeId(type(node.keys.node)(x[:20])),
        Dealing((x,), x, (s,), x),
        s,
    ),
    DkgComplaint: lambda w, node, h, x, s: DkgComplaint(
        node.package.epoch,
        _summary(node),
        1 + x[0] % 6,
        w.nodes[x[1] % 3].keys.node,
        x,
        node.keys.node,
        Complaint(x, x, s),
    ),
}


def flooded(nodes: int = 4, interval: int = 99) -> FloodedWorld:
    world = FloodedWorld(1, Plan(nodes=nodes, interval=interval))
    world.run(lambda: False, SECOND)
    return world


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

    def again() -> None:
        for node in world.honest:
            assert node.driver is not None
            last = node.driver.reader(world.now).known_until
            for height in range(last + 1, last + 80):
                made = forged(world, world.nodes[3], CertificationShare, height, 0, 0)
                node.driver.receive(made, world.nodes[3].keys.node, world.now)
        world.at(world.now + 20 * MS, again)

    again()
    world.goes_on(4)


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
    assert 1 <= len(kept) <= 2
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
