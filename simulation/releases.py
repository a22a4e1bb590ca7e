"""Which release each simulated node runs, and since which height: what orchestrators see to.

A term is a release and the height of the package from which on it runs without a break. A release
that comes back begins a new one. What a node signed in one term is dropped when another begins, as
orchestrators unlink the pool of a release that they have stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replica.client import local_registry as keys
from replica.protocol.cup import CatchUpPackage
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation.genesis import RELEASE, publish
from simulation.scheduler import MS

if TYPE_CHECKING:
    from simulation.subnet import Node, World

Term = tuple[str, int]
"""A release, and the height at which it began."""
FIRST: Term = (RELEASE, 0)
RESTART_NS = 30 * MS
POLL_NS = 500 * MS
"""How often an orchestrator asks its peers for their packages, from the first upgrade on."""


class Releases:
    """Terms by the packages that open them, and the swap of one release for another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._terms: dict[int, Term] = {0: FIRST}
        """By height of a package."""
        self._polling = False

    def term_of(self, package: CatchUpPackage) -> Term:
        """Return the term of the interval that a package opens."""
        height = int(package.height)
        found = self._terms.get(height)
        if found is None:
            nns, subnet = self.world.nns, self.world.subnet
            wanted = nns.view(subnet, package.summary.registry_version).replica_version
            before = self._terms[max(h for h in self._terms if h < height)]
            found = before if before[0] == wanted else (wanted, height)
            self._terms[height] = found
        return found

    def publish(self, version: str) -> None:
        """Name another release in the registry, for when the interval after the next begins."""
        world = self.world
        key = keys.subnet_record(world.subnet)
        record = parse(pb.SubnetRecord, world.nns.need(key))
        record.replica_version_id = version
        publish(world.nns, [Mutation(key, serialize(record))])
        for node in world.nodes:
            if node.driver is not None:
                world.registry_arrived(node)
        if not self._polling:
            self._polling = True
            for node in world.nodes:
                world.at(world.now + POLL_NS + node.index * MS, self._poll, node)

    def choose(self, node: Node) -> None:
        """Take the release of a node's package, and drop what another one left."""
        term = self.term_of(node.package) if self._polling else FIRST
        if term != node.term:
            node.term, node.durable = term, {}
            self.world.counts["upgrades"] += 1

    def adopted(self, node: Node) -> None:
        """Stop a replica whose package asks for another release, and start that one."""
        if node.driver is not None and self._polling and self.term_of(node.package) != node.term:
            self.world.stop(node)
            at = self.world.now + RESTART_NS
            self.world.at(at, self._start, node, node.incarnation)

    def _start(self, node: Node, incarnation: int) -> None:
        if node.incarnation == incarnation and node.driver is None:
            self.world.start(node)

    def _poll(self, node: Node) -> None:
        """Take a peer's newer package when it opens another term than the replica runs in.

        A replica judges by its own release, so it may not get to that package by itself.
        """
        self.world.at(self.world.now + POLL_NS, self._poll, node)
        if node.driver is None or node.paused:
            return
        reachable = self.world.network.reachable
        peers = [
            p for p in self.world.nodes if p.driver is not None and reachable(p.index, node.index)
        ]
        best = max((p.package for p in peers), key=lambda p: p.height, default=node.package)
        if best.height > node.package.height and self.term_of(best) != node.term:
            self.world.counts["packages fetched for their release"] += 1
            self.world.adopt(node, best)
