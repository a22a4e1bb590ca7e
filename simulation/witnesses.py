"""A member that shows more of its state than where it stands, or another epoch.

Its roots and signatures are as good as its keys make them. Whoever took such a witness would keep,
pass on and answer clients with whatever lies in a state, or with what was certified elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

from replica.protocol import artifacts, hash_tree
from replica.protocol.artifacts import Artifact, Certification, CertificationShare
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.hashing import leb128
from replica.protocol.ids import Height
from simulation.door_floods import Flooded
from simulation.subnet import Node


class Shower(Flooded):
    def send(self, node: Node, artifact: Artifact) -> None:
        if node.index not in self.flooders:
            super().send(node, artifact)
        elif isinstance(artifact, CertificationShare):
            made = self._of_another_epoch if artifact.height % 2 else self._whole
            self.network.broadcast(node.index, made(node, artifact))
        elif isinstance(artifact, Certification):
            whole = hash_tree.encode(self._tree(node, artifact.height, artifact.epoch))
            self.network.broadcast(node.index, replace(artifact, witness=whole))
        else:
            super().send(node, artifact)

    def _whole(self, node: Node, share: CertificationShare) -> CertificationShare:
        """Its own share, with the whole tree beside it."""
        self.counts["whole trees"] += 1
        tree = self._tree(node, share.height, share.epoch)
        return replace(share, witness=hash_tree.encode(tree))

    def _of_another_epoch(self, node: Node, share: CertificationShare) -> CertificationShare:
        """A share on the state that another epoch would have come to, signed well."""
        self.counts["other epochs"] += 1
        assert node.driver is not None
        tree = self._tree(node, share.height, share.epoch + 1)
        reader = node.driver.reader(self.now)
        secret = reader.share_of(reader.high(share.height))
        message = artifacts.certification_message(tree.digest)
        signature = self.scheme.sign_threshold(secret, message) if secret else b""
        shown = hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS))
        return replace(share, root=tree.digest, witness=shown, signature=signature)

    def _tree(self, node: Node, height: Height, epoch: int) -> hash_tree.Tree:
        state = node.state.states.get(height, b"")
        position = {b"epoch": leb128(epoch), b"height": leb128(height)}
        return hash_tree.build({b"metadata": {**position, b"x": state}})
