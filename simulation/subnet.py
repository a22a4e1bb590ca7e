"""A subnet in one process under virtual time: real consensus, simulated network, disks, crashes.

Everything that happens is a function of (seed, plan). Execution is a hash chain here, and the
registry a list of versions that every node has at once; `simulation.recovery` adds orchestrators.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from replica.client import local_registry as keys
from replica.client.key_receiver import complaints
from replica.client.local_registry import SubnetRegistry, VersionedRecords
from replica.consensus import driver as d
from replica.consensus.delivery import Batch
from replica.consensus.dkg import offers
from replica.consensus.reader import Context, SecretKeys
from replica.protocol import cup
from replica.protocol.artifacts import (
    Artifact,
    Certification,
    DkgComplaint,
    DkgDealing,
    Run,
)
from replica.protocol.crypto import bls
from replica.protocol.crypto.dkg import HIGH, BlsDkg, KeyGeneration
from replica.protocol.crypto.dkg_double import DoubleDkg
from replica.protocol.crypto.scheme import KeyedHash, Scheme
from replica.protocol.ids import NodeId, SubnetId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation import injection
from simulation.adversary import LyingChain
from simulation.byzantine import stretched
from simulation.cast import Cast
from simulation.checker import Checker, Violation
from simulation.doubles import HashChain, Requests
from simulation.genesis import Genesis, publish
from simulation.network import Network
from simulation.past import Heedless
from simulation.plan import Plan
from simulation.releases import FIRST, Releases
from simulation.rights import RightsChecker
from simulation.scheduler import MS, Scheduler, draw

SYNC_NS = 60 * MS
OUTSIDERS_LOOK_NS = 100 * MS
UNREST_MAX = 5
"""Steps at one time that a replica has something left to do after: each takes 1,000 turns."""
_AT_ONCE = (d.Execute, d.DeliverCertification, d.AdoptCup)
"""Effects after which the replica has to look again without anything having come."""


@dataclass
class Node:
    """A replica's durable parts, and its driver while it is up."""

    index: int
    keys: SecretKeys
    state: HashChain
    package: cup.CatchUpPackage
    driver: d.Driver | None = None
    durable: dict[Artifact, None] = field(default_factory=dict)
    incarnation: int = 0
    wake_at: int = -1
    unrest: int = 0
    """Steps in a row after which it had to go on at once."""
    paused: bool = False
    torn: bool = False
    """The next step is cut short by a crash."""
    skew_ns: int = 0
    stalled_at_ns: int | None = None
    run: Run = FIRST
    """The release that it runs, and since which height."""


class World(Scheduler):
    def __init__(self, seed: int, plan: Plan, *, exhaustive: bool = False) -> None:
        super().__init__(seed)
        self.plan, self.exhaustive = plan, exhaustive
        self.scheme: Scheme = bls.Bls() if plan.real_bls else KeyedHash()
        self.dkg: KeyGeneration = BlsDkg() if plan.real_bls else DoubleDkg()
        self.checker = Checker(plan)
        self.genesis = Genesis(plan)
        self.subnet: SubnetId = self.genesis.subnet
        self.nns: VersionedRecords = self.genesis.records
        self._members: dict[int, tuple[NodeId, ...]] = {}
        self.nodes = [
            Node(i, keys, self.new_state(i), self.genesis.package)
            for i, keys in enumerate(self.genesis.secrets)
        ]
        # A twin is a second process with the keys of the first.
        for index in plan.twins:
            twin = len(self.nodes)
            self.nodes.append(
                Node(twin, self.nodes[index].keys, self.new_state(twin), self.genesis.package)
            )
        self.network = Network(
            self, plan, len(self.nodes), self._arrive, self._is_late, self._tag_of
        )
        self.cast = Cast(self)
        self.releases, self.rights = Releases(self), RightsChecker(self)
        for node in self.nodes:
            if node.keys.node in self.genesis.members:
                self.start(node)

    def new_state(self, index: int) -> HashChain:
        state = HashChain(self.genesis.outsiders)
        if index in self.plan.liars:
            state = LyingChain(self.seed, index, self.genesis.outsiders)
        if self.plan.checkpoint_ms:
            state.slow(self.plan.checkpoint_ms * MS, lambda: self.now)
        return state

    def is_honest(self, node: Node) -> bool:
        """Whether the checkers hold this instance to the protocol."""
        count = self.plan.nodes + self.plan.spares
        return node.index < count and node.index not in self.plan.faulty

    def members(self) -> tuple[NodeId, ...]:
        """Return who is in the subnet by the newest registry version."""
        version = self.nns.version
        if version not in self._members:
            self._members[version] = self.nns.view(self.subnet, version).members
        return self._members[version]

    @property
    def honest(self) -> list[Node]:
        """The honest members."""
        members = self.members()
        return [n for n in self.nodes if self.is_honest(n) and n.keys.node in members]

    # -- faults

    def schedule_faults(self) -> None:
        injection.schedule(self)

    def heal(self) -> None:
        for node in self.nodes:
            node.stalled_at_ns = None
        self.network.heal()

    def revive(self) -> None:
        """End the safety phase: heal all links, start all nodes, set all clocks right."""
        for node in self.nodes:
            node.paused = node.torn = False
            node.skew_ns = 0
            if node.driver is None:
                if self.is_needed(node):
                    self.start(node)
            else:
                self.wake(node, self.now)
        self.heal()
        up = [n.driver.chain.notarized_height for n in self.nodes if n.driver is not None]
        self.checker.live_from = max(up)

    def stop(self, node: Node) -> None:
        node.driver = None
        node.incarnation += 1
        node.torn = node.paused = False

    # -- members

    def change_members(self, members: tuple[NodeId, ...]) -> None:
        """Publish a registry version with other members; start who joins, from a peer's CUP."""
        key = keys.subnet_record(self.subnet)
        record = parse(pb.SubnetRecord, self.nns.need(key))
        del record.membership[:]
        record.membership.extend(sorted(bytes(m) for m in members))
        publish(self.nns, [Mutation(key, serialize(record))])
        for node in self.nodes:
            if node.driver is not None:
                self.registry_arrived(node)
            elif (
                node.keys.node in members
                and node.index >= self.plan.nodes
                and node.index not in self.cast.gone
            ):
                best = max((n.package for n in self.nodes), key=lambda p: p.height)
                if best.height > node.package.height:
                    node.package = best
                self.start(node)

    def registry_arrived(self, node: Node) -> None:
        """Tell a running replica that its registry may have grown."""
        assert node.driver is not None
        registry = node.driver.context.registry
        assert isinstance(registry, SubnetRegistry)
        registry.arrived(self.now)
        self.wake(node, self.now)

    def is_needed(self, node: Node) -> bool:
        """Whether a node is a member or still holds shares of the subnet's keys."""
        if node.index in self.cast.gone:
            return False
        newest = max((n.package for n in self.nodes), key=lambda p: p.height)
        return node.keys.node in newest.holders or node.keys.node in self.members()

    # -- nodes

    def start(self, node: Node) -> None:
        node.incarnation += 1
        self.releases.choose(node)
        self.open_state(node)
        node.driver = d.Driver(
            self.context(node), node.package, self.now, exhaustive=self.exhaustive
        )
        if not self.finds_out(node):
            node.driver.past = Heedless(node.driver.reader(self.now))
        node.driver.restore(list(node.durable), self.now)
        self.checker.restored(node)
        node.wake_at = -1
        self.network.reconnected(node.index)
        self._offer_each_other(node)
        self.wake(node, self.now)

    def finds_out(self, node: Node) -> bool:
        """Whether a node minds what it signed before: most Byzantine ones don't."""
        careless = self.plan.faulty - {*self.plan.old_copies, *self.plan.amnesiacs}
        return node.keys.node not in {self.nodes[i].keys.node for i in careless}  # nor its twin

    def open_state(self, node: Node) -> None:
        node.state.restart(node.package.height)

    def registry_of(self, node: Node) -> VersionedRecords:
        return self.nns

    def context(self, node: Node, state: HashChain | None = None) -> Context:
        return Context(
            subnet=self.subnet,
            replica_version=node.run.release,
            keys=node.keys,
            scheme=self.scheme,
            dkg=self.dkg,
            registry=SubnetRegistry(self.registry_of(node), self.subnet, 0),
            state=node.state if state is None else state,
            payloads=Requests(self.plan.payload_bytes),
            may_sign=lambda epoch: self.may_sign(node, epoch),
        )

    def may_sign(self, node: Node, epoch: int) -> bool:
        return True

    def _offer_each_other(self, node: Node) -> None:
        """A node that (re)connects is offered all that its peers hold, and they all it holds."""
        assert node.driver is not None
        for peer in self.nodes:
            if peer is not node and peer.driver is not None:
                self._offer(peer, node)
                self.cast.past.connected(node, peer)
        if not self.cast.offers_nothing(node):
            for artifact in node.driver.offered():
                self.network.broadcast(node.index, artifact)

    def _offer(self, source: Node, target: Node) -> None:
        assert source.driver is not None
        if self.cast.offers_nothing(source):
            return
        for artifact in source.driver.offered():
            self.network.send(source.index, target.index, artifact)

    def _answer(self, peer: Node, node: Node, ask: d.Ask) -> None:
        assert peer.driver is not None
        if self.network.reachable(node.index, peer.index):
            for artifact in peer.driver.answer(ask.kinds, ask.first, ask.last):
                self.network.answer(peer.index, node.index, artifact)

    def wall_of(self, node: Node) -> int:
        """Return what the node's clock shows."""
        wall = (self.now if node.stalled_at_ns is None else node.stalled_at_ns) + node.skew_ns
        if node.index in self.plan.stretchers and node.driver is not None:
            return stretched(node, self.now, wall)
        if self.is_honest(node):
            self.rights.shows(node, wall)
        return wall

    def wake(self, node: Node, time: int) -> None:
        if self.now <= node.wake_at <= time:
            return
        node.wake_at = time
        self.at(time, self._step, node, node.incarnation)

    def _step(self, node: Node, incarnation: int) -> None:
        if node.incarnation != incarnation or node.driver is None or node.paused:
            return
        if node.wake_at <= self.now:
            node.wake_at = -1
        for _ in range(1000):
            effects = node.driver.step(self.now, self.wall_of(node))
            if node.torn and effects:
                self._tear(node, effects)
                return
            for effect in effects:
                self._carry_out(node, effect)
                if node.driver is None:
                    return
            if not any(isinstance(e, _AT_ONCE) for e in effects):
                break
        if self.is_honest(node):
            self.checker.look(node)
            self.rights.look(node)
        wake_ns = node.driver.wake_ns(self.now)
        node.unrest = node.unrest + 1 if wake_ns <= self.now else 0
        if node.unrest > UNREST_MAX:
            raise Violation(f"node {node.index} never comes to rest")
        self.wake(node, wake_ns)

    def _tear(self, node: Node, effects: list[d.Effect]) -> None:
        """Crash at one of the step's effects; of what it was writing, a part is on the disk."""
        count = int(draw(self.seed, "tear", node.index, self.now) * len(effects))
        for effect in effects[:count]:
            self._carry_out(node, effect)
            if node.driver is None:
                return
        cut = effects[count]
        if isinstance(cut, d.Persist):
            self.counts["torn writes"] += 1
            written = int(draw(self.seed, "written", node.index, self.now) * len(cut.artifacts))
            self._carry_out(node, d.Persist(cut.artifacts[:written]))
        self.stop(node)

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        assert node.driver is not None
        match effect:
            case d.Persist(kept):
                for artifact in kept:
                    node.durable[artifact] = None
                    if self.is_honest(node):
                        self.rights.kept(node, artifact)
                        self.cast.tripler.kept(node, artifact)
            case d.Send(artifact):
                assert artifact in node.durable, "sent before it was durable"
                if self.is_honest(node):
                    self.checker.signed(node, artifact)
                    self.rights.signed(node, artifact)
                elif node.index in self.plan.old_copies:
                    self.cast.old_copies.signed(node, artifact)
                self.send(node, artifact)
            case d.Execute(batch):
                if self.plan.slow_execution:
                    delay = int(30 * MS * draw(self.seed, "execute", node.index, batch.height))
                    self.at(self.now + delay, self._execute, node, node.incarnation, batch)
                else:
                    self._execute(node, node.incarnation, batch)
            case d.DeliverCertification(certification):
                self.certified(node, certification)
            case d.AdoptCup(package):
                self.adopt(node, package)
            case d.FetchState():
                self.counts["state syncs"] += 1
                self.at(self.now + SYNC_NS, self._fetched, node, node.incarnation, effect)
            case d.Ask():
                self.counts["questions"] += 1
                for peer in self.nodes:
                    if peer.keys.node == effect.peer and peer.driver is not None:
                        self._answer(peer, node, effect)
            case d.Diverged(height):
                self.diverged(node, height)
            case d.Misbehaved():
                self.counts["invalid artifacts"] += 1
                if self.is_honest(node):
                    self.rights.misbehaved(node, effect)
            case d.AskSigned() | d.BadAnswer() | d.FoundOld():
                self.cast.past.carry_out(node, effect)

    def send(self, node: Node, artifact: Artifact) -> None:
        if isinstance(artifact, DkgComplaint):
            self.counts["complaints"] += 1
        if isinstance(artifact, DkgDealing) and artifact.tag > HIGH:
            self.at(self.now + OUTSIDERS_LOOK_NS, self._outsiders_look, node)
        self.cast.send(node, artifact)

    def _check_keys(self, node: Node, batch: Batch) -> None:
        """L5 for others: each of them holds a good share of the keys that were dealt for it."""
        for result in batch.keys:
            self.counts["keys for others" if result.high else "no keys for others"] += 1
            for transcript in (result.low, result.high):
                for index in range(len(self.nodes)):
                    keys = self.nodes[index].keys
                    if transcript is None or keys.node not in transcript.committee:
                        continue
                    if self.dkg.share_of(transcript, keys.node, keys.dealing) is None:
                        raise Violation(f"node {index} was dealt a share of others that is none")

    def _outsiders_look(self, node: Node) -> None:
        """Those for whom keys are dealt ask a node what it has, and complain to all."""
        if node.driver is None:
            return
        offered = offers(node.driver.reader(self.now))
        first = self.plan.nodes + self.plan.spares
        for index in range(first, first + self.plan.outsiders):
            keys = self.nodes[index].keys
            for complaint in complaints(self.dkg, offered, keys.node, keys.dealing):
                self.counts["complaints from outside"] += 1
                self.network.hand_in(index, complaint, node.driver.tag)

    def certified(self, node: Node, certification: Certification) -> None:
        if self.is_honest(node):
            self.checker.certified(node, certification)
        node.state.certified_height = certification.height

    def adopt(self, node: Node, package: cup.CatchUpPackage) -> None:
        if self.is_honest(node):
            self.checker.adopted(node, package)
        node.package = package
        if package.summary.next_high is None:
            self.counts["keys kept"] += 1
        else:
            self.counts["keys reshared"] += 1
        if not self.is_needed(node):
            self.counts["nodes that left"] += 1
            self.stop(node)
        floor = package.height - max(50, self.plan.interval + 1)
        node.durable = {a: None for a in node.durable if a.height >= floor}
        node.state.forget_below(floor)
        self.releases.adopted(node)

    def diverged(self, node: Node, height: int) -> None:
        if self.is_honest(node):
            raise Violation(f"node {node.index} diverged at {height}")
        self.counts["liars set aside"] += 1
        self.stop(node)
        self.at(self.now + 300 * MS, self._restart, node)

    def _restart(self, node: Node) -> None:
        if node.driver is None:
            self.start(node)

    def _execute(self, node: Node, incarnation: int, batch: Batch) -> None:
        if node.incarnation != incarnation or node.driver is None:
            return
        if batch.height != node.state.latest_height + 1:
            return  # a state was synced meanwhile
        node.state.execute(batch)
        if self.is_honest(node):
            self.checker.executed(node, batch)
            self._check_keys(node, batch)
        node.driver.executed(batch.height)
        self.wake(node, self.now)

    def _fetched(self, node: Node, incarnation: int, wanted: d.FetchState) -> None:
        """State sync's double: succeeds when a reachable peer holds a checkpoint of this root."""
        if node.incarnation != incarnation or node.driver is None:
            return
        for peer in self.nodes:
            if peer is node or peer.driver is None:
                continue
            if not self.network.reachable(peer.index, node.index):
                continue
            if peer.state.checkpoint_root_at(wanted.height) == wanted.root:
                node.state.load(wanted.height, peer.state.checkpoints[wanted.height])
                break
        node.driver.synced()
        self.wake(node, self.now)

    def _tag_of(self, index: int) -> bytes:
        driver = self.nodes[index].driver
        return b"" if driver is None else driver.tag

    def _is_late(self, target: int, kind: type, height: int) -> bool:
        driver = self.nodes[target].driver
        return driver is None or driver.is_late(kind, height)

    def _arrive(self, source: int, target: int, artifact: Artifact) -> None:
        node = self.nodes[target]
        if node.driver is None:
            return
        sender: NodeId = self.nodes[source].keys.node
        became = node.driver.take_in(artifact, sender, self.now)
        if became.is_in or node.driver.door.faults:
            self.wake(node, self.now + self.plan.step_us * 1000)
        if target in self.plan.accusers:
            self.cast.accuser.seen(node, artifact)
        if self.plan.is_adversarial and self.is_honest(node):
            self.cast.flooder.arrived(source, node, artifact, became)
            self.rights.delivered(self.nodes[source], node, artifact, taken=became.is_in)

    # -- summary

    def finalized_height(self) -> int:
        return min(n.driver.chain.finalized_height if n.driver else 0 for n in self.honest)

    def top_heights(self) -> tuple[int, int]:
        """Return the highest heights that an honest member knows to be final, and certified."""
        up = [n for n in self.honest if n.driver is not None]
        final = max([n.driver.chain.finalized_height for n in up if n.driver], default=0)
        return final, max([n.state.certified_height for n in up], default=0)

    def cup_height(self) -> int:
        return min(n.package.height for n in self.honest)

    def digest(self) -> str:
        """Return a hash of all that was decided: the trace that determinism is judged by."""
        for height, hash_ in sorted(self.checker.finalized.items()):
            self.note(f"finalized {height} {hash_.hex()}")
        for height, root in sorted(self.checker.roots.items()):
            self.note(f"root {height} {root.hex()}")
        self.note(f"events {self.events} {sorted(self.counts.items())}")
        return self.trace()
