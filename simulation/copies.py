"""Old copies: a node's disk is put back to what it was a while ago, as by an operator's backup.

It has forgotten what it signed since, so it counts among the f faulty. What it signs against its
own word is counted; once nodes find out by themselves (`Plan.old_copies_find_out`), it is a
violation, and so is whatever one signs that knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    FinalizationShare,
    NotarizationShare,
    Run,
)
from replica.protocol.cup import CatchUpPackage
from simulation.byzantine import own
from simulation.checker import SignatureLedger, Violation

if TYPE_CHECKING:
    from simulation.subnet import Node, World

_ABOUT_BLOCKS = (BlockProposal, NotarizationShare, FinalizationShare)


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
        self._signed: dict[int, set[Artifact]] = {}
        """What each of them signed, in all its lives."""
        self._tops: dict[tuple[int, Run], int] = {}
        """The highest height that it signed for in a run before it was put back."""
        self._found_out: set[int] = set()
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
        self.world.cast.past.forgot.add(node.index)
        signed = [a for a in self._signed.get(node.index, ()) if isinstance(a, _ABOUT_BLOCKS)]
        self._tops[node.index, node.run] = max([a.height for a in signed], default=0)
        node.durable, node.package, node.run = dict(old.durable), old.package, old.run
        node.state = self.world.new_state(node.index)
        node.state.states, node.state.checkpoints = dict(old.states), dict(old.checkpoints)
        self.world.counts["old copies started"] += 1
        self.world.start(node)

    def signed(self, node: Node, artifact: Artifact) -> None:
        """An old copy, before or after it became one, signs, or passes on what it signed before."""
        signed = self._signed.setdefault(node.index, set())
        if not own(node, artifact) or artifact in signed:
            return
        signed.add(artifact)
        finds_out = self.world.plan.old_copies_find_out
        if finds_out:
            self._check_silence(node, artifact)
        try:
            self._note(node, artifact)
        except Violation:
            self.world.counts["old copies contradict themselves"] += 1
            if finds_out:
                raise

    def _check_silence(self, node: Node, artifact: Artifact) -> None:
        """Who found out signs nothing until a package is above all that it ever signed."""
        assert node.driver is not None
        if node.index not in self._found_out:
            return
        if node.driver.is_old_copy:
            raise Violation(f"node {node.index} knows that it is an old copy, and signs")
        if node.driver.chain.cup.height <= self._tops.get((node.index, node.run), 0):
            raise Violation(f"node {node.index} is an old copy, and signs below what it signed")

    def found_out(self, node: Node) -> None:
        self._found_out.add(node.index)

    def _note(self, node: Node, artifact: Artifact) -> None:
        me, name = (node.keys.node, node.run), f"the old copy at node {node.index}"
        if getattr(artifact, "signer", None) == node.keys.node:
            self._ledger.note(me, name, artifact)
        if isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node:
            hash_ = artifacts.block_hash(artifact.block)
            if self._blocks.setdefault((me, artifact.height), hash_) != hash_:
                raise Violation(f"{name} makes two blocks at {artifact.height}")
