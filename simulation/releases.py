"""Which release each simulated node runs, and since which height: what orchestrators see to.

What a node signed in one run is dropped when another begins, as orchestrators unlink the pool of a
release that they have stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replica.client import local_registry as keys
from replica.protocol.artifacts import Run
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import Height
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation.genesis import RELEASE, publish
from simulation.scheduler import MS

if TYPE_CHECKING:
    from simulation.subnet import Node, World

FIRST = Run(RELEASE, Height(0))
RESTART_NS = 30 * MS
POLL_NS = 500 * MS
"""How often an orchestrator asks its peers for their packages, from the first upgrade on."""


class Releases:
    """The runs that packages open, and the swap of one release for another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._polling = False

    def run_of(self, package: CatchUpPackage) -> Run:
        """Return the run of the interval that a package opens."""
        view = self.world.nns.view(self.world.subnet, package.summary.registry_version)
        return Run(view.replica_version, package.run_start)

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
        run = self.run_of(node.package) if self._polling else FIRST
        if run != node.run:
            node.run, node.durable = run, {}
            self.world.counts["upgrades"] += 1

    def adopted(self, node: Node) -> None:
        """Stop a replica whose package asks for another release, and start that one."""
        if node.driver is not None and self._polling and self.run_of(node.package) != node.run:
            self.world.stop(node)
            at = self.world.now + RESTART_NS
            self.world.at(at, self._start, node, node.incarnation)

    def _start(self, node: Node, incarnation: int) -> None:
        if node.incarnation == incarnation and node.driver is None:
            self.world.start(node)

    def _poll(self, node: Node) -> None:
        """Take a peer's newer package when it opens another run than the replica's.

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
        if best.height > node.package.height and self.run_of(best) != node.run:
            self.world.counts["packages fetched for their release"] += 1
            self.world.adopt(node, best)
