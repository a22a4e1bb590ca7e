"""Byzantine nodes by script: what they do beyond running the real code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from replica.client.key_receiver import complaint_of
from replica.consensus.delivery import Batch
from replica.consensus.dkg import config_of
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    Block,
    BlockProposal,
    Certification,
    Cup,
    DkgDealing,
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Payload,
    Run,
)
from replica.protocol.crypto import dkg
from replica.protocol.ids import Height, NodeId, TimeNs
from simulation.doubles import HashChain, tree_of
from simulation.scheduler import draw

if TYPE_CHECKING:
    from replica.consensus.driver import Driver
    from replica.consensus.reader import SecretKeys
    from simulation.subnet import World
    from simulation.system.swarm import System


class Actor(Protocol):
    """A node that is played: where it is, its keys, and the real consensus that it runs."""

    @property
    def index(self) -> int: ...
    @property
    def keys(self) -> SecretKeys: ...
    @property
    def driver(self) -> Driver | None: ...


@dataclass(frozen=True)
class Played:
    """A replica of a whole swarm as an actor."""

    index: int
    keys: SecretKeys
    driver: Driver


class LyingChain(HashChain):
    """Computes another state at some heights, and so signs wrong certifications and CUPs."""

    def __init__(self, seed: int, index: int, outsiders: tuple[NodeId, ...]) -> None:
        super().__init__(outsiders)
        self.seed, self.index = seed, index

    def altered(self, batch: Batch, state: bytes) -> bytes:
        if draw(self.seed, "lie", self.index, batch.height) < 0.03:
            return sha256(b"a lie" + state).digest()
        return state


class BadDealer:
    """Seals wrong shares for some receivers, or deals nothing."""

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self, node: Actor, artifact: DkgDealing) -> None:
        key = (self.world.seed, "dealing", artifact.height, artifact.tag)
        if artifact.dealer != node.keys.node:
            self.world.network.broadcast(node.index, artifact)
        elif draw(*key) < 0.6:
            self.world.counts["bad dealings"] += 1
            self.world.network.broadcast(node.index, self._spoil(node, artifact))
        else:
            self.world.counts["dealings withheld"] += 1

    def slander(self, node: Actor, package: cup.CatchUpPackage) -> None:
        """Complain, without reason, of every dealing that is known."""
        driver = node.driver
        assert driver is not None
        height = package.summary.height
        for dealing in driver.pool.validated.at(DkgDealing, height):
            config = config_of(driver.reader(self.world.now), package.summary, dealing.tag)
            complaint = complaint_of(
                driver.context.dkg, config, dealing, node.keys.node, node.keys.dealing
            )
            self.world.counts["slander"] += 1
            self.world.network.broadcast(node.index, complaint)

    def _spoil(self, node: Actor, artifact: DkgDealing) -> DkgDealing:
        driver = node.driver
        assert driver is not None
        sealed = list(artifact.dealing.sealed)
        victim = int(draw(self.world.seed, "victim", artifact.height) * len(sealed))
        sealed[victim] = bytes([sealed[victim][0] ^ 1]) + sealed[victim][1:]
        dealing = replace(artifact.dealing, sealed=tuple(sealed))
        reader = driver.reader(self.world.now)
        config = config_of(reader, driver.chain.summary_at(artifact.height), artifact.tag)
        signature = node.keys.signing.sign(dkg.message(config, dealing))
        return replace(artifact, dealing=dealing, signature=signature)


class Forger:
    """Sends what nobody signed: notarizations, finalizations, certifications, packages, shares."""

    def __init__(self, world: World | System) -> None:
        self.world = world

    def send(self, node: Actor, artifact: Artifact) -> None:
        network = self.world.network
        if isinstance(artifact, SHARES) and draw(self.world.seed, "bad share", artifact) < 0.5:
            self.world.counts["bad shares"] += 1
            bad = bytes([artifact.signature[0] ^ 1]) + artifact.signature[1:]
            network.broadcast(node.index, replace(artifact, signature=bad))
            return
        network.broadcast(node.index, artifact)
        if isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node:
            self.world.counts["forgeries"] += 1
            for forged in self._forge(node, artifact):
                network.broadcast(node.index, forged)

    def _forge(self, node: Actor, proposal: BlockProposal) -> list[Artifact]:
        driver = node.driver
        assert driver is not None
        twin = twin_of(node, proposal)
        hash_ = artifacts.block_hash(twin.block)
        epoch, height = twin.epoch, twin.height
        signers = driver.chain.cup.summary.receivers[:3]
        root, witness = tree_of(epoch, height, b"forged")
        package = driver.chain.cup
        beacon = replace(package.beacon, height=Height(package.summary.next_start))
        forged_block = replace(package.block, height=beacon.height)
        summary = replace(package.summary, height=beacon.height)
        forged_block = replace(forged_block, payload_hash=artifacts.payload_hash(summary))
        content = cup.content(forged_block, summary, beacon, b"f" * 32)
        forged_cup = cup.CatchUpPackage(content, bytes(24)).encode()
        out: list[Artifact] = [
            twin,
            Notarization(epoch, height, hash_, signers, bytes(24)),
            Finalization(epoch, height, hash_, signers, bytes(24)),
            Certification(epoch, height, root, witness, bytes(24)),
            Cup(epoch, beacon.height, forged_cup),
        ]
        if package.is_signed:
            out.append(Cup(epoch, package.height, package.encode()))
        return out


def twin_of(node: Actor, proposal: BlockProposal) -> BlockProposal:
    """Return another block of the same maker, height and rank, signed as well as the first."""
    context = proposal.block.context
    later = replace(context, time_ns=TimeNs(context.time_ns + 1))
    payload = proposal.payload
    if isinstance(payload, artifacts.Data):
        payload = node.driver.context.payloads.build((), later, 0)  # type: ignore[union-attr]
    block = replace(proposal.block, context=later, payload_hash=artifacts.payload_hash(payload))
    return signed_block(node, block, payload)


def signed_block(node: Actor, block: Block, payload: Payload) -> BlockProposal:
    """Sign a block as its maker: the one place where an adversary does."""
    hash_ = artifacts.block_hash(block)
    message = artifacts.block_message(block.subnet, block.epoch, block.run, block.height, hash_)
    return BlockProposal(block, payload, node.keys.node, node.keys.signing.sign(message))


def proof_of(one: BlockProposal, two: BlockProposal, run: Run) -> EquivocationProof:
    """Make a proof of equivocation of two blocks, whether it proves anything or not.

    `run`: in which it says that both were made.
    """
    return EquivocationProof(
        one.epoch,
        one.height,
        run,
        one.maker,
        artifacts.block_hash(one.block),
        one.signature,
        artifacts.block_hash(two.block),
        two.signature,
    )


class Equivocator:
    """Sends different blocks to different peers, and signs for every block that is about."""

    def __init__(self, world: World | System) -> None:
        self.world = world

    def send(self, node: Actor, artifact: Artifact) -> None:
        network = self.world.network
        if not isinstance(artifact, BlockProposal):
            network.broadcast(node.index, artifact)
            return
        if artifact.maker != node.keys.node:
            network.broadcast(node.index, artifact)
            self.sign(node, artifact)
            return
        twin = twin_of(node, artifact)
        self.world.counts["equivocations"] += 1
        for peer in network.targets(node.index):
            both = draw(self.world.seed, "both", artifact.height, peer) < 0.3
            first = draw(self.world.seed, "side", artifact.height, peer) < 0.5
            if both or first:
                network.send(node.index, peer, artifact)
            if both or not first:
                network.send(node.index, peer, twin)
        self.sign(node, twin)

    def sign(self, node: Actor, proposal: BlockProposal) -> None:
        hash_ = artifacts.block_hash(proposal.block)
        driver = node.driver
        assert driver is not None
        for kind, message in (
            (NotarizationShare, artifacts.notarization_message),
            (FinalizationShare, artifacts.finalization_message),
        ):
            block = proposal.block
            signed = message(block.subnet, block.epoch, block.run, block.height, hash_)
            signature = driver.context.scheme.sign_multi(node.keys.committee, signed)
            share = kind(proposal.epoch, proposal.height, hash_, node.keys.node, signature)
            self.world.network.broadcast(node.index, share)
