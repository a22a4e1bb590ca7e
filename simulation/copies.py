"""Old copies: a node's disk is put back to what it was a while ago, as by an operator's backup.

It has forgotten what it signed since, so it counts among the f faulty. What it signs against its
own word is counted; once nodes find out by themselves (`Plan.old_copies_find_out`), it is a
violation, and so is whatever one signs that knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replica.protocol import artifacts
from replica.protocol.artifacts import Artifact, BlockProposal, Run
from replica.protocol.cup import CatchUpPackage
from simulation.checker import SignatureLedger, Violation

if TYPE_CHECKING:
    from simulation.subnet import Node, World


@dataclass(frozen=True)
class Copy:
    """What a node has on disk: pool, state and package."""

    durable: dict[Artifact, None]
    states: dict[int, bytes]
    checkpoints: dict[int, bytes]
    package: CatchUpPackage
    run: Run


class Copies:
    def __init__(self, world: World) -> None:
        self.world = world
        self._copies: dict[int, Copy] = {}
        self._ledger = SignatureLedger()
        self._blocks: dict[tuple[object, int], bytes] = {}

    def take(self, node: Node) -> None:
        state = node.state
        self._copies[node.index] = Copy(
            dict(node.durable), dict(state.states), dict(state.checkpoints), node.package, node.run
        )

    def put_back(self, node: Node) -> None:
        """Stop a node, exchange its disk for the copy, start it."""
        old = self._copies[node.index]
        self.world.stop(node)
        node.durable, node.package, node.run = dict(old.durable), old.package, old.run
        node.state = self.world.new_state(node.index)
        node.state.states, node.state.checkpoints = dict(old.states), dict(old.checkpoints)
        self.world.counts["old copies started"] += 1
        self.world.start(node)

    def signed(self, node: Node, artifact: Artifact) -> None:
        """An old copy, before or after it became one, signs."""
        finds_out = self.world.plan.old_copies_find_out
        if getattr(node.driver, "is_old_copy", False) and finds_out:
            raise Violation(f"node {node.index} knows that it is an old copy, and signs")
        try:
            self._note(node, artifact)
        except Violation:
            self.world.counts["old copies contradict themselves"] += 1
            if finds_out:
                raise

    def _note(self, node: Node, artifact: Artifact) -> None:
        me, name = (node.keys.node, node.run), f"the old copy at node {node.index}"
        if getattr(artifact, "signer", None) == node.keys.node:
            self._ledger.note(me, name, artifact)
        if isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node:
            hash_ = artifacts.block_hash(artifact.block)
            if self._blocks.setdefault((me, artifact.height), hash_) != hash_:
                raise Violation(f"{name} makes two blocks at {artifact.height}")
