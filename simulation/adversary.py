"""Byzantine nodes by script: what they do beyond running the real code."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from replica.consensus.delivery import Batch
from replica.consensus.dkg import config_of
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    DkgDealing,
    FinalizationShare,
    NotarizationShare,
)
from replica.protocol.crypto import dkg
from replica.protocol.ids import TimeNs
from simulation.doubles import HashChain
from simulation.scheduler import draw

if TYPE_CHECKING:
    from simulation.subnet import Node, World


class LyingChain(HashChain):
    """Computes another state at some heights, and so signs wrong certifications and CUPs."""

    def __init__(self, seed: int, index: int) -> None:
        super().__init__()
        self.seed, self.index = seed, index

    def altered(self, batch: Batch, state: bytes) -> bytes:
        if draw(self.seed, "lie", self.index, batch.height) < 0.03:
            return sha256(b"a lie" + state).digest()
        return state


class BadDealer:
    """Seals wrong shares for some receivers, or deals nothing."""

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self, node: Node, artifact: DkgDealing) -> None:
        key = (self.world.seed, "dealing", artifact.height, artifact.tag)
        if artifact.dealer != node.keys.node:
            self.world.network.broadcast(node.index, artifact)
        elif draw(*key) < 0.6:
            self.world.counts["bad dealings"] += 1
            self.world.network.broadcast(node.index, self._spoil(node, artifact))
        else:
            self.world.counts["dealings withheld"] += 1

    def _spoil(self, node: Node, artifact: DkgDealing) -> DkgDealing:
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


class Equivocator:
    """Sends different blocks to different peers, and signs for every block that is about."""

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self, node: Node, artifact: Artifact) -> None:
        network = self.world.network
        if not isinstance(artifact, BlockProposal):
            network.broadcast(node.index, artifact)
            return
        if artifact.maker != node.keys.node:
            network.broadcast(node.index, artifact)
            self._sign(node, artifact)
            return
        twin = self._twin(node, artifact)
        self.world.counts["equivocations"] += 1
        for peer in self.world.nodes:
            if peer is not node:
                both = draw(self.world.seed, "both", artifact.height, peer.index) < 0.3
                first = draw(self.world.seed, "side", artifact.height, peer.index) < 0.5
                if both or first:
                    network.send(node.index, peer.index, artifact)
                if both or not first:
                    network.send(node.index, peer.index, twin)
        self._sign(node, twin)

    def _twin(self, node: Node, proposal: BlockProposal) -> BlockProposal:
        context = proposal.block.context
        later = replace(context, time_ns=TimeNs(context.time_ns + 1))
        payload = proposal.payload
        if isinstance(payload, artifacts.Data):
            payload = node.driver.context.payloads.build((), later, 0)  # type: ignore[union-attr]
        block = replace(proposal.block, context=later, payload_hash=artifacts.payload_hash(payload))
        message = artifacts.block_message(
            block.subnet, block.epoch, block.height, artifacts.block_hash(block)
        )
        return replace(
            proposal, block=block, payload=payload, signature=node.keys.signing.sign(message)
        )

    def _sign(self, node: Node, proposal: BlockProposal) -> None:
        hash_ = artifacts.block_hash(proposal.block)
        for kind, message in (
            (NotarizationShare, artifacts.notarization_message),
            (FinalizationShare, artifacts.finalization_message),
        ):
            signed = message(proposal.block.subnet, proposal.epoch, proposal.height, hash_)
            signature = self.world.scheme.sign_multi(node.keys.committee, signed)
            share = kind(proposal.epoch, proposal.height, hash_, node.keys.node, signature)
            self.world.network.broadcast(node.index, share)
