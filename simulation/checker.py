"""What must always hold, kept apart from the world that is checked.

Each method is one observation of an honest node. S1 to S18 and L1 to L11: docs/properties.md.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from replica.consensus.delivery import Batch
from replica.consensus.driver import Driver
from replica.consensus.reader import GAP_MAX, StateView
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    EquivocationProof,
    Finalization,
    FinalizationShare,
    NotarizationShare,
    Run,
)
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Unavailable
from simulation.plan import Plan

if TYPE_CHECKING:
    from simulation.subnet import Node


class Violation(AssertionError):
    """A property of the protocol does not hold."""


def check_same(table: dict[int, bytes], height: int, value: bytes, what: str) -> None:
    """Note what a height has, the first time; ever after it is that. Raises: Violation."""
    if table.setdefault(height, value) != value:
        raise Violation(f"two different {what} at height {height}")


class ChainChecker:
    """What honest replicas hold of one chain: of a subnet, in an epoch, under one release."""

    def __init__(self) -> None:
        self.finalized: dict[int, bytes] = {}
        self.beacons: dict[int, bytes] = {}
        self.tapes: dict[int, bytes] = {}
        self.notarized: dict[int, set[bytes]] = {}
        self.finalized_directly: dict[int, bytes] = {}
        self.certified_height = 0
        self._looked: dict[int, tuple[int, int, int]] = {}
        self._finalized_seen: dict[int, int] = {}
        self._notarized_seen: dict[int, int] = {}

    def look_at(self, who: int, driver: Driver, state: StateView) -> None:
        """S1, S2, S4, S5, S13, S14 on what a replica holds now. `who`: its number."""
        chain = driver.chain
        heights = (chain.notarized_height, chain.finalized_height, state.certified_height)
        if self._looked.get(who) == heights:
            return
        self._looked[who] = heights
        self._look_at_notarized(who, driver)
        first = self._finalized_seen.get(who, 0) + 1
        for height in range(first, chain.finalized_height + 1):
            entry = chain.finalized_block(height)
            if entry is not None:
                check_same(self.finalized, height, entry.hash, "finalized blocks")
                self._check_context(driver, height)
            beacon, tape = chain.beacons.get(height), chain.tapes.get(height)
            if beacon is not None:
                check_same(self.beacons, height, artifacts.beacon_hash(beacon), "beacons")
            if tape is not None:
                check_same(self.tapes, height, tape.signature, "tapes")
        self._finalized_seen[who] = chain.finalized_height
        self._check_bound(driver, state)
        self._check_epoch(who, driver)

    def _look_at_notarized(self, who: int, driver: Driver) -> None:
        """S2: where a block is finalized itself, no other block of that height is notarized."""
        chain, pool = driver.chain, driver.pool.validated
        lowest = min(self._notarized_seen.get(who, 0), chain.finalized_height)
        for height in range(max(lowest, chain.notarized_height - 8), chain.notarized_height + 1):
            for hash_ in chain.notarized.get(height, ()):
                self.notarized.setdefault(height, set()).add(hash_)
            for final in pool.at(Finalization, height):
                check_same(self.finalized_directly, height, final.block, "finalizations")
            final_hash = self.finalized_directly.get(height)
            if final_hash is not None and self.notarized.get(height, set()) - {final_hash}:
                raise Violation(f"the finalized height {height} has another notarized block")
        self._notarized_seen[who] = chain.notarized_height

    def _check_context(self, driver: Driver, height: int) -> None:
        """S5: ranks 0 to f only, unless all of these are proven equivocators there, and a context
        that grows."""
        entry = driver.chain.finalized_block(height)
        assert entry is not None
        block = entry.block
        summary = driver.chain.summary_of(entry.hash)
        assert summary is not None, "a finalized block lies in an interval"
        try:
            settings = driver.context.registry.subnet(summary.registry_version)
        except Unavailable:
            settings = None  # it follows the others' blocks, and hears of the registry later
        proven = {p.maker for p in driver.pool.validated.at(EquivocationProof, height)}
        if settings is not None and block.rank > max(settings.faults_max, len(proven)):
            raise Violation(f"a block of rank {block.rank} was finalized at height {height}")
        parent = driver.chain.blocks.get(block.parent)
        if parent is not None and parent.block.context.time_ns >= block.context.time_ns:
            raise Violation(f"time stands still at height {height}")

    def _check_bound(self, driver: Driver, state: StateView) -> None:
        """S13: blocks stop 70 heights above what is certified."""
        chain = driver.chain
        certified = max(state.certified_height, chain.cup.height)
        if chain.notarized_height - certified <= GAP_MAX + 1:
            return
        executed = state.latest_height
        behind = executed < chain.finalized_height or executed < chain.cup.height
        if not behind and chain.notarized_height - self.certified_height > GAP_MAX + 1:
            raise Violation(f"certification lags {chain.notarized_height - certified} heights")

    def restored(self, node: Node) -> None:
        """S14: nothing of another epoch is taken back by a replica that starts."""
        assert node.driver is not None
        epoch = node.driver.chain.cup.epoch
        for pool in (node.driver.pool, node.driver.certifications):
            for artifact in pool.validated:
                if artifact.epoch != epoch:
                    raise Violation(f"node {node.index} took back what is of {artifact.epoch}")

    def _check_epoch(self, who: int, driver: Driver) -> None:
        """S14: nothing of another epoch is taken for valid."""
        pool = driver.pool.validated
        top = pool.height_max(NotarizationShare)
        for share in pool.at(NotarizationShare, top or 0):
            if share.epoch != driver.chain.cup.epoch:
                raise Violation(f"node {who} took a share of epoch {share.epoch}")


class SignatureLedger:
    """S3: what honest nodes have signed, across all their lives."""

    def __init__(self) -> None:
        self.notarized: dict[tuple[Hashable, int], set[bytes]] = {}
        self.finalized: dict[tuple[Hashable, int], bytes] = {}
        """By signer and height."""

    def note(self, who: Hashable, name: str, artifact: Artifact) -> None:
        """`who`: within this a signer never contradicts itself. Raises: Violation."""
        key = (who, artifact.height)
        if isinstance(artifact, NotarizationShare):
            self.notarized.setdefault(key, set()).add(artifact.block)
            final = self.finalized.get(key)
            if final is not None and final != artifact.block:
                raise Violation(f"{name} notarizes a second block after finalizing")
        elif isinstance(artifact, FinalizationShare):
            if self.finalized.setdefault(key, artifact.block) != artifact.block:
                raise Violation(f"{name} finalizes two blocks at {artifact.height}")
            if self.notarized.get(key, set()) - {artifact.block}:
                raise Violation(f"{name} finalizes after notarizing another block")


class Checker(ChainChecker):
    """What must hold of a simulated subnet."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.roots: dict[int, bytes] = {}
        self.cups: dict[int, bytes] = {}
        self.public_keys: set[bytes] = set()
        self.signatures = SignatureLedger()
        self.requests: dict[bytes, int] = {}
        """The height at which each was executed."""
        self.live_from: int | None = None
        """Height from which on all faults are over."""
        self._failed: dict[int, bool] = {}
        self._later: dict[Run, ChainChecker] = {}
        """Chains of later runs: blocks above the package that ends a release are made again."""

    def look(self, node: Node) -> None:
        assert node.driver is not None
        chain: ChainChecker = self
        if node.run.start:
            chain = self._later.setdefault(node.run, ChainChecker())
            chain.certified_height = self.certified_height
        chain.look_at(node.index, node.driver, node.state)

    def signed(self, node: Node, artifact: Artifact) -> None:
        """S3: what an honest node signs."""
        signer = getattr(artifact, "signer", None)
        if signer == node.keys.node:
            self.signatures.note((signer, node.run), f"node {node.index}", artifact)

    def executed(self, node: Node, batch: Batch) -> None:
        """S6: equal states. S12: a request is executed once."""
        height = batch.height
        check_same(self.roots, height, node.state.trees[height][0], "states")
        for request in batch.ingress:
            if self.requests.setdefault(request, height) != height:
                raise Violation(f"a request of height {height} was executed before (S12)")

    def certified(self, node: Node, certification: artifacts.Certification) -> None:
        """S7: what is certified is what honest nodes computed."""
        self.certified_height = max(self.certified_height, certification.height)
        check_same(self.roots, certification.height, certification.root, "certified states")
        if certification.height <= node.state.certified_height:
            raise Violation(f"node {node.index} goes back to a certified height")  # S9

    def _check_generation(self, package: CatchUpPackage) -> None:
        """L5: once all faults are over but f faulty nodes, key generation comes to something.

        One interval may fail because messages are late; two in a row may not.
        """
        length, summary = self.plan.interval + 1, package.summary
        if self.live_from is None or package.height - length < self.live_from:
            return
        failed = summary.next_low is None or summary.next_high is None
        self._failed[package.height] = failed
        if failed and self._failed.get(package.height - length):
            raise Violation(f"no keys came of two intervals up to {package.height}")

    def _check_shares(self, node: Node, package: CatchUpPackage) -> None:
        """L5: whoever is dealt a share of a key holds a good one."""
        assert node.driver is not None
        reader = node.driver.reader(0)
        for key in (package.summary.low, package.summary.high):
            if node.keys.node in key.committee and reader.share_of(key) is None:
                raise Violation(f"node {node.index} was dealt a share that is none")

    def adopted(self, node: Node, package: CatchUpPackage) -> None:
        """S8: one CUP a height, on the grid of intervals. S9: never back. S11: one public key."""
        check_same(self.cups, package.height, package.content, "CUPs")
        if package.height % (self.plan.interval + 1):
            raise Violation(f"a CUP at height {package.height}, off the interval grid")
        if package.height <= node.package.height:
            raise Violation(f"node {node.index} went back from CUP {node.package.height}")
        self._check_shares(node, package)
        self._check_generation(package)
        self.public_keys.add(package.summary.high.public_key)
        if len(self.public_keys) > 1:
            raise Violation(f"the subnet's public key changed with the CUP at {package.height}")
