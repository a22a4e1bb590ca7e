"""What no f members can take from the others: S19 to S22 of docs/properties.md.

Each method is one observation of an honest replica, as in `simulation.checker`. What is looked at
is what the replica does, not how it comes to do it: only a peer's share of the pool is asked of the
driver where it can tell, and counted here as well.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replica.consensus import validator
from replica.consensus.driver import Driver, Misbehaved
from replica.consensus.pool import MoveToValidated, Pool
from replica.consensus.reader import Reader
from replica.protocol import artifacts, hash_tree
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    Beacon,
    BeaconShare,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
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
from replica.protocol.crypto.scheme import faults_max
from replica.protocol.hashing import leb128
from replica.protocol.ids import NodeId
from simulation.adversary import proof_of
from simulation.checker import Violation
from simulation.doubles import tree_of
from simulation.scheduler import GENESIS_NS, MS, SECOND

if TYPE_CHECKING:
    from simulation.subnet import Node, World

PEER_BYTES_MAX = 64 << 20
"""What one peer's artifacts may take in a pool."""
PATIENCE_NS = 2 * SECOND
"""How long an honest artifact of the current height may be missing: a node asks once a second."""
TICK_NS = 500 * MS
LEAD_NS_MAX = SECOND
"""How far block time may be ahead of the fastest honest clock."""


Life = tuple[int, Run]
"""A node, and the run that it is in: another one begins with an empty pool."""


@dataclass
class _Missing:
    """An honest artifact that was refused."""

    source: Node
    incarnation: int
    """Of who refused it."""
    since_ns: int | None = None
    """Since when its height is the current one."""


class RightsChecker:
    def __init__(self, world: World) -> None:
        self.world = world
        self._bytes: Counter[tuple[int, int]] = Counter()
        """No less than what (replica, peer) takes of the first one's pools."""
        self._taken: dict[tuple[int, int], set[Artifact]] = {}
        """What was taken from Byzantine peers."""
        self._missing: dict[int, dict[Artifact, _Missing]] = {}
        self._blocks: dict[tuple[NodeId, int, int], list[BlockProposal]] = {}
        """Blocks of honest makers by maker, epoch and height, of all releases."""
        self._kept: Counter[tuple[Life, type, int, NodeId]] = Counter()
        """Shares that a replica made durable, by kind, height and signer."""
        self._complaints: dict[tuple[Life, int, int, NodeId, NodeId], DkgComplaint] = {}
        """The complaint that a replica kept, by height, tag, dealer and accuser."""
        self._dated = 0
        """The highest final height whose time was looked at."""
        self.fastest_ns = 0
        """By how much an honest clock was ever ahead of true time."""
        if world.plan.is_adversarial:
            world.at(world.now + TICK_NS, self._tick)

    # -- S19: room

    def delivered(self, source: Node, target: Node, artifact: Artifact, *, taken: bool) -> None:
        """An honest replica was sent an artifact, and took it or not."""
        if self.world.is_honest(source):
            if not taken and source.run == target.run and not isinstance(artifact, Cup):
                missing = self._missing.setdefault(target.index, {})
                missing.setdefault(artifact, _Missing(source, target.incarnation))
        elif taken:
            self._weigh(source, target, artifact)

    def _weigh(self, source: Node, target: Node, artifact: Artifact) -> None:
        """S19: a replica holds no more of a peer than is its due, whoever counts it."""
        pair, driver = (target.index, source.index), target.driver
        assert driver is not None
        self._bytes[pair] += len(artifacts.encode(artifact))
        self._taken.setdefault(pair, set()).add(artifact)
        ask = getattr(driver, "held_bytes", None)
        said = 0 if ask is None else ask(source.keys.node)
        if self._bytes[pair] > PEER_BYTES_MAX:
            said = max(said, self.bytes_of(target, source))
        if said > PEER_BYTES_MAX:
            raise Violation(
                f"node {target.index} holds {said >> 20} MiB of node {source.index} (S19)"
            )

    def bytes_of(self, target: Node, source: Node) -> int:
        """Return what a replica's pools hold now of what it took from a Byzantine peer."""
        pair, driver = (target.index, source.index), target.driver
        assert driver is not None
        held = {a for a in self._taken.get(pair, ()) if is_held(driver, a)}
        self._taken[pair] = held
        self._bytes[pair] = sum(len(artifacts.encode(a)) for a in held)
        return self._bytes[pair]

    def kept(self, node: Node, artifact: Artifact) -> None:
        """An honest replica made an artifact durable. S19 and S21."""
        if isinstance(artifact, SHARES):
            life = (node.index, node.run)
            key = (life, type(artifact), artifact.height, artifact.signer)
            self._kept[key] += 1
            several = isinstance(artifact, NotarizationShare | FinalizationShare)
            most = 2 * (faults_max(self.world.plan.nodes) + 1) if several else 2
            if self._kept[key] > most and artifact.signer != node.keys.node:
                name = type(artifact).__name__
                raise Violation(
                    f"node {node.index} keeps {most + 1} of one signer's {name}s of a height (S19)"
                )
        if isinstance(artifact, CertificationShare | Certification):
            self._kept_witness(node, artifact)
        elif isinstance(artifact, DkgComplaint):
            self._kept_complaint(node, artifact)
        elif isinstance(artifact, EquivocationProof):
            if artifact.maker in {n.keys.node for n in self.world.nodes if self.world.is_honest(n)}:
                raise Violation(f"node {node.index} takes an honest maker for an equivocator (S21)")

    def _kept_complaint(self, node: Node, complaint: DkgComplaint) -> None:
        """S19: one complaint of a dealing by an accuser is enough, however it can be put."""
        subject = (complaint.height, complaint.tag, complaint.dealer, complaint.accuser)
        if self._complaints.setdefault(((node.index, node.run), *subject), complaint) != complaint:
            raise Violation(f"node {node.index} keeps two complaints of one dealing (S19)")

    def _kept_witness(self, node: Node, artifact: CertificationShare | Certification) -> None:
        """S7: what is kept of a certified state shows its epoch and height, and no more."""
        shown = hash_tree.decode(artifact.witness)
        epoch = hash_tree.lookup_leaf(shown, (b"metadata", b"epoch"))
        _, leaves = tree_of(artifact.epoch, artifact.height, b"")
        is_long = len(artifact.witness) > len(leaves)
        if epoch != leb128(artifact.epoch) or is_long:
            kind = type(artifact).__name__
            raise Violation(f"node {node.index} keeps a {kind} with a wrong witness (S7)")

    def _tick(self) -> None:
        self.world.at(self.world.now + TICK_NS, self._tick)
        for index, missing in self._missing.items():
            node = self.world.nodes[index]
            for artifact in list(missing):
                if self._is_settled(node, artifact, missing[artifact]):
                    del missing[artifact]

    def _is_settled(self, node: Node, artifact: Artifact, missing: _Missing) -> bool:
        """Whether what was refused need not be looked at again. Raises: Violation."""
        driver, source = node.driver, missing.source
        if driver is None or node.incarnation != missing.incarnation:
            return True
        if is_held(driver, artifact) or is_superseded(driver, artifact):
            return True
        here = source.driver is not None and not (source.paused or node.paused)
        here = here and self.world.network.reachable(source.index, node.index)
        if not here or artifact.height > current_height(driver, type(artifact)):
            missing.since_ns = None
        elif missing.since_ns is None:
            missing.since_ns = self.world.now
        elif self.world.now - missing.since_ns > PATIENCE_NS:
            raise Violation(
                f"node {node.index} refuses the {type(artifact).__name__} of height "
                f"{artifact.height} of an honest peer (S19)"
            )
        return False

    # -- S20: time

    def shows(self, node: Node, wall_ns: int) -> None:
        """A replica's clock is read."""
        self.fastest_ns = max(self.fastest_ns, wall_ns - self.world.now)

    def look(self, node: Node) -> None:
        """S20: block time is no further ahead than an honest clock ever was, and a second."""
        chain = node.driver.chain  # type: ignore[union-attr]
        if chain.finalized_height <= self._dated:
            return
        self._dated = chain.finalized_height
        block = chain.finalized_tip.block
        genesis_lead = self.world.genesis.package.block.context.time_ns - GENESIS_NS
        lead = block.context.time_ns - self.world.now - max(self.fastest_ns, genesis_lead)
        if lead > LEAD_NS_MAX and block.epoch == self.world.genesis.package.epoch:
            raise Violation(
                f"the time of block {block.height} is {lead // MS} ms ahead of all honest clocks"
                " (S20)"
            )

    # -- S21: signatures

    def signed(self, node: Node, artifact: Artifact) -> None:
        """S21: no two signatures of an honest maker prove anything, in whatever terms they are."""
        if not isinstance(artifact, BlockProposal) or artifact.maker != node.keys.node:
            return
        key = (artifact.maker, int(artifact.epoch), int(artifact.height))
        others = self._blocks.setdefault(key, [])
        if artifact in others:
            return
        for other in others:
            self.world.counts["two blocks of a height by one honest maker"] += 1
            if proves(node.driver, other, artifact):  # type: ignore[arg-type]
                raise Violation(
                    f"blocks of node {node.index} at height {artifact.height} prove that it"
                    " equivocates (S21)"
                )
        others.append(artifact)

    # -- S22: blame

    def misbehaved(self, node: Node, effect: Misbehaved) -> None:
        """S22: honest nodes are not blamed by honest ones; what the network garbled is nobody's."""
        artifact = effect.artifact
        if artifacts.encode(artifact) in self.world.network.garbled:
            return
        blamed = [n.index for n in self.world.nodes if n.keys.node in effect.senders]
        for index in blamed:
            if self.world.is_honest(self.world.nodes[index]):
                raise Violation(
                    f"node {node.index} blames node {index} for a {type(artifact).__name__}: "
                    f"{effect.reason} (S22)"
                )


def is_held(driver: Driver, artifact: Artifact) -> bool:
    pools = (driver.pool, driver.certifications)
    return any(artifact in p.validated or artifact in p.unvalidated for p in pools)


def is_superseded(driver: Driver, artifact: Artifact) -> bool:
    """Whether a replica knows at least as much as an artifact would tell it."""
    chain, height = driver.chain, artifact.height
    if artifact.epoch != chain.cup.epoch or driver.is_late(type(artifact), height):
        return True
    if isinstance(artifact, BlockProposal):
        hash_ = artifacts.block_hash(artifact.block)
        over = height <= chain.notarized_height and not chain.is_notarized(height, hash_)
        proofs = driver.pool.validated.owned(EquivocationProof, height, artifact.maker)
        return hash_ in chain.blocks or over or bool(proofs)  # an equivocator's is nobody's due
    if isinstance(artifact, NotarizationShare):
        return height <= chain.notarized_height
    if isinstance(artifact, Notarization):
        return chain.is_notarized(height, artifact.block)
    if isinstance(artifact, Certification | CertificationShare):
        return driver.certifications.validated.has(Certification, height)
    if isinstance(artifact, DkgDealing):
        known = driver.pool.validated.at(DkgDealing, height)
        return any((a.tag, a.dealer) == (artifact.tag, artifact.dealer) for a in known)
    return isinstance(artifact, EquivocationProof)


def current_height(driver: Driver, kind: type) -> int:
    """Return up to which height a replica can use artifacts of a kind now."""
    chain = driver.chain
    if kind in (Beacon, BeaconShare):
        return chain.beacon_height + 1
    if kind in (Tape, TapeShare):
        return chain.finalized_height + 1
    if kind in (Certification, CertificationShare):
        return driver.context.state.latest_height
    if kind in (Finalization, FinalizationShare):
        return chain.notarized_height
    if kind in (CupShare, DkgDealing, DkgComplaint):
        return chain.finalized_height
    return chain.notarized_height + 1


def proves(driver: Driver, one: BlockProposal, two: BlockProposal) -> bool:
    """Whether a proof made of two blocks passes the product's own rule, in the run of either."""
    for run in (one.block.run, two.block.run):
        pool = Pool()
        pool.unvalidated.insert(proof_of(one, two, run), 0)
        reader = Reader(driver.context, pool, driver.chain, 0, 0)
        reader.run = run
        verdicts = validator.equivocation_proofs(reader)
        if any(isinstance(v, MoveToValidated) for v in verdicts):
            return True
    return False
