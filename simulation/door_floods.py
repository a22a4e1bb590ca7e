"""Members that send all they can within their rights, in every kind; and what must hold then.

What waits of a peer stays within its quota, what is kept for good is bounded, no honest artifact of
a height that can be judged is turned away, no honest peer is blamed, and heights are final and
certified again within ten seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from replica.consensus import driver as d
from replica.consensus.door import Admission
from replica.consensus.quota import PEER_BYTES_MAX
from replica.consensus.reader import Context
from replica.protocol import artifacts, cup, hash_tree
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
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Run,
    Tape,
    TapeShare,
)
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.crypto.dkg import Complaint, Dealing
from replica.protocol.hashing import leb128, sha256
from replica.protocol.ids import Epoch, Height, NodeId, Principal, Rank
from simulation.adversary import twin_of
from simulation.checker import Violation
from simulation.doubles import HashChain
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

PER_HEIGHT = 160
"""More than any kind ever had places at a height."""
GROWTH, PATIENCE_NS = 5, 10 * SECOND
EVIDENCE_MAX = 2


class Flooded(World):
    """A subnet whose last f members send what they like beside what they should."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.flooders = range(plan.nodes - (plan.nodes - 1) // 3, plan.nodes)
        self.muted = False
        """Whether the flooders say nothing of what they should."""
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
        chain = node.driver.chain
        is_now = artifact.height <= chain.notarized_height + 1
        became = node.driver.take_in(artifact, peer, self.now)
        if node.driver.held_bytes(peer) > PEER_BYTES_MAX:
            raise Violation(f"node {target} holds {node.driver.held_bytes(peer)} bytes of {source}")
        if became.is_in or became is Admission.WRONG:
            self.wake(node, self.now + self.plan.step_us * 1000)
        is_refused = became in (Admission.REFUSED, Admission.WRONG)
        if is_refused and is_now and self._is_innocent(source, artifact):
            raise Violation(f"a {type(artifact).__name__} of node {source} is turned away")

    def _is_innocent(self, source: int, artifact: Artifact) -> bool:
        """Whether all is honest about it: a flooder's third block of a height is not."""
        makers = [self.nodes[i].keys.node for i in self.flooders]
        is_theirs = isinstance(artifact, BlockProposal) and artifact.maker in makers
        return self.is_honest(self.nodes[source]) and not is_theirs

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        if isinstance(effect, d.Misbehaved):
            honest = {n.keys.node for n in self.honest}
            if self.is_honest(node) and honest & set(effect.senders):
                raise Violation(f"node {node.index} blames an honest one: {effect.reason}")
        super()._carry_out(node, effect)

    def heights(self) -> list[int]:
        """Return how far each honest node is: final, certified."""
        found: list[int] = []
        for node in self.honest:
            assert node.driver is not None
            found += [node.driver.chain.finalized_height, node.state.certified_height]
        return found

    def goes_on(self, times: int = 1) -> None:
        """Let all heights grow within ten seconds, so many times. Raises: Violation."""
        for _ in range(times):
            wanted = [h + GROWTH for h in self.heights()]
            if not self.run(lambda w=wanted: self._has(w), PATIENCE_NS):  # type: ignore[misc]
                raise Violation(f"it stands: {wanted} were wanted, there are {self.heights()}")
        self._look_at_evidence()

    def _has(self, wanted: list[int]) -> bool:
        return all(now >= want for now, want in zip(self.heights(), wanted, strict=True))

    def _look_at_evidence(self) -> None:
        """What flooders signed is kept in a bounded number."""
        for node in self.honest:
            assert node.driver is not None
            valid = node.driver.certifications.validated
            for height in valid.heights(CertificationShare):
                for index in self.flooders:
                    kept = valid.owned(CertificationShare, height, self.nodes[index].keys.node)
                    if len(kept) > EVIDENCE_MAX:
                        raise Violation(f"{len(kept)} roots of one signer are kept at {height}")

    def flood(self, kinds: tuple[type, ...], heights: range, size_bytes: int, count: int) -> None:
        """Have each flooder send so many artifacts of each kind and height to everybody."""
        for index in self.flooders:
            for kind in kinds:
                for height in heights:
                    for i in range(count):
                        made = forged(self, self.nodes[index], kind, height, i, size_bytes)
                        self.network.broadcast(index, made)
                self.counts[f"floods of {kind.__name__}"] += 1

    def crowd(self, kind: type, heights: range) -> None:
        """Have a flooder's artifacts arrive at everybody between two steps."""
        flooder = self.nodes[-1]
        for node in self.honest:
            assert node.driver is not None
            for height in heights:
                for i in range(PER_HEIGHT):
                    made = forged(self, flooder, kind, height, i, 0)
                    node.driver.receive(made, flooder.keys.node, self.now)

    def flood_unknown_heights(self) -> None:
        """Keep a share at each height of which no summary tells, from now on."""
        for node in self.honest:
            assert node.driver is not None
            last = node.driver.chain.summary_at(node.driver.chain.finalized_height).known_until
            for height in range(last + 1, last + 80):
                made = forged(self, self.nodes[-1], CertificationShare, height, 0, 0)
                node.driver.receive(made, self.nodes[-1].keys.node, self.now)
        self.at(self.now + 100 * MS, self.flood_unknown_heights)

    def tip(self) -> int:
        return max(n.driver.chain.notarized_height for n in self.honest if n.driver)


class TwoFaced(Flooded):
    """A maker shows node 0 two blocks of its own that nobody else sees, and another to the rest."""

    def send(self, node: Node, artifact: Artifact) -> None:
        is_own = isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node
        if node.index not in self.flooders or not is_own:
            super().send(node, artifact)
            return
        assert isinstance(artifact, BlockProposal)
        self.counts["shown two faces"] += 1
        first = twin_of(node, artifact)
        for face in (first, twin_of(node, first)):
            self.network.send(node.index, 0, face)
        for target in range(1, len(self.nodes)):
            self.network.send(node.index, target, artifact)


class Splitter(Flooded):
    """A maker fills its places at f + 1 nodes with orphans, in advance; then it is as it should be.

    So its good block is taken by too few to be notarized, and the others go for the next rank's.
    """

    AHEAD = range(2, 12)
    """Heights of the orphans, above the maker's own block."""

    def send(self, node: Node, artifact: Artifact) -> None:
        super().send(node, artifact)
        is_own = isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node
        if node.index not in self.flooders or not is_own:
            return
        self.counts["places filled"] += 1
        for height in (artifact.height + above for above in self.AHEAD):
            for i in range(2):
                orphan = forged(self, node, BlockProposal, height, i, 0)
                for target in range(len(self.flooders) + 1):
                    self.network.send(node.index, target, orphan)


class Hoarder(Flooded):
    """A member keeps all catch-up packages, and sends them all again whenever it adopts one."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.hoard: list[Cup] = []
        super().__init__(seed, plan)

    def adopt(self, node: Node, package: cup.CatchUpPackage) -> None:
        super().adopt(node, package)
        if node.index in self.flooders:
            self.hoard.append(Cup(package.epoch, package.height, package.encode()))
            for target in range(len(self.nodes)):
                for artifact in self.hoard if target != node.index else ():
                    self.network.answer(node.index, target, artifact)


class HalfUpgraded(Flooded):
    """Node 0 still runs the release before, and hears the others' blocks."""

    def context(self, node: Node, state: HashChain | None = None) -> Context:
        found = super().context(node, state)
        return replace(found, replica_version="v0") if node.index == 0 else found

    def heights(self) -> list[int]:
        return super().heights()[2:]


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
    message = artifacts.block_message(block.subnet, block.epoch, block.run, height, hash_)
    return BlockProposal(block, data, node.keys.node, node.keys.signing.sign(message))


def _certification_share(
    world: World, node: Node, height: Height, noise: bytes, bulk: bytes
) -> CertificationShare:
    """On a root of its own, well signed where the node knows with what."""
    position = {b"epoch": leb128(node.package.epoch), b"height": leb128(height)}
    tree = hash_tree.build({b"metadata": {**position, b"x": bulk}})
    shown = tree if len(bulk) > 32 else hash_tree.witness(tree, POSITION_PATHS)
    witness = hash_tree.encode(shown)
    signature = bulk[:24]
    driver = node.driver
    if driver is not None and height <= driver.reader(world.now).known_until:
        share = driver.reader(world.now).share_of(driver.chain.interval_at(height).high)
        message = artifacts.certification_message(tree.digest)
        signature = world.scheme.sign_threshold(share, message) if share else signature
    epoch = node.package.epoch
    return CertificationShare(epoch, height, tree.digest, witness, node.keys.node, signature)


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
    EquivocationProof: lambda w, node, h, x, s: EquivocationProof(
        node.package.epoch, h, Run("v1", node.package.run_start), node.keys.node, x, s, x[::-1], s
    ),
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
        node.keys.node if x[1] % 2 else NodeId(Principal(x[:20])),
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


def flooded(nodes: int = 4, interval: int = 99, seed: int = 1) -> Flooded:
    """Return a subnet that has run for a second."""
    world = Flooded(seed, Plan(nodes=nodes, interval=interval))
    world.run(lambda: False, SECOND)
    return world
