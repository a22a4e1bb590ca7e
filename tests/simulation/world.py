"""A subnet in one process under a virtual clock: real consensus, simulated network, disks, crashes.

Everything that happens is a function of (seed, plan): delays are drawn by hashing what they delay,
never from a shared stream, so removing one fault from a plan leaves all other draws as they were.
Execution is a hash chain here; the whole replica is simulated elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256

from replica.client.subnet_view import MS, NodeKeys, SubnetView
from replica.consensus import driver as d
from replica.consensus.reader import Context, SecretKeys
from replica.protocol import artifacts, cup, hash_tree
from replica.protocol.artifacts import (
    Artifact,
    Block,
    BlockProposal,
    Cup,
    Data,
    Finalization,
    FinalizationShare,
    NotarizationShare,
    Summary,
    ValidationContext,
)
from replica.protocol.crypto import bls
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.crypto.scheme import (
    KeyedHash,
    Scheme,
    deal_bls,
    deal_double,
    threshold_high,
    threshold_low,
)
from replica.protocol.hashing import leb128
from replica.protocol.ids import (
    Epoch,
    Height,
    NodeId,
    Principal,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
)

SECOND = 1_000_000_000
GENESIS_NS = 1_600_000_000 * SECOND


def draw(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    raw = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") / 2**64


@dataclass(frozen=True)
class Fault:
    """One entry of a plan."""

    at_ns: int
    kind: str
    """crash, restart, partition, heal"""
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    nodes: int = 4
    interval: int = 15
    """Length of an interval, less one: CUPs are this + 1 heights apart."""
    delay_ms_min: int = 1
    delay_ms_max: int = 40
    loss: float = 0.0
    faults: tuple[Fault, ...] = ()
    equivocators: tuple[int, ...] = ()
    real_bls: bool = False
    slow_execution: bool = False


def random_plan(seed: int, rounds: int, nodes: int = 4) -> Plan:
    """Draw a plan: an equivocating node, crashes and partitions, at least one of each."""
    faults: list[Fault] = []
    time = int(SECOND * 0.3)
    equivocator = seed % nodes
    honest = [n for n in range(nodes) if n != equivocator]
    span_ns = rounds * 130 * MS
    for i in itertools.count():
        time += int((0.1 + (0.4 if i < 2 else 1.5) * draw(seed, "gap", i)) * SECOND)
        if time > span_ns:
            break
        length = int((0.1 + (0.5 if i < 2 else 1.2) * draw(seed, "length", i)) * SECOND)
        target = honest[int(draw(seed, "target", i) * len(honest))]
        crash = (seed + i) % 2 == 0 if i < 2 else draw(seed, "kind", i) < 0.55
        if crash:
            faults += [Fault(time, "crash", (target,)), Fault(time + length, "restart", (target,))]
        else:
            other = int(draw(seed, "other", i) * nodes)
            side = tuple(sorted({target, other} if draw(seed, "two", i) < 0.4 else {target}))
            faults += [Fault(time, "partition", side), Fault(time + length, "heal")]
        time += length
    return Plan(
        nodes=nodes,
        delay_ms_max=int(5 + 75 * draw(seed, "delay")),
        loss=0.2 * draw(seed, "loss"),
        faults=tuple(faults),
        equivocators=(equivocator,),
        slow_execution=draw(seed, "slow") < 0.3,
    )


class HashChain:
    """Execution's double: the state is one hash; checkpoints are kept by height."""

    def __init__(self) -> None:
        self.states: dict[int, bytes] = {0: sha256(b"genesis").digest()}
        self.checkpoints: dict[int, bytes] = {}
        self.latest_height = Height(0)
        self.certified_height = Height(0)
        self.trees: dict[int, tuple[bytes, bytes]] = {}

    def execute(self, batch: d.Batch) -> None:
        assert batch.height == self.latest_height + 1, "batches come in order"
        parts = repr((batch.height, batch.time_ns, batch.randomness, batch.ingress, batch.epoch))
        self.states[batch.height] = sha256(
            self.states[self.latest_height] + parts.encode()
        ).digest()
        self.latest_height = batch.height
        self.trees[batch.height] = self.tree_of(batch.height, self.states[batch.height])
        if batch.is_checkpoint:
            self.checkpoints[batch.height] = self.states[batch.height]

    @staticmethod
    def tree_of(height: int, state: bytes) -> tuple[bytes, bytes]:
        """Return (root, witness of the height)."""
        tree = hash_tree.build({b"metadata": {b"height": leb128(height), b"x": state}})
        return tree.digest, hash_tree.encode(hash_tree.witness(tree, [(b"metadata", b"height")]))

    def restart(self) -> None:
        """Fall back to the newest checkpoint, as a process does that stopped."""
        height = max(self.checkpoints, default=0)
        self.load(height, self.checkpoints.get(height, self.states[0]))

    def load(self, height: int, state: bytes) -> None:
        self.states = {0: self.states[0], height: state}
        if height:
            self.checkpoints[height] = state
        self.latest_height = self.certified_height = Height(height)
        self.trees = {}

    # the view of consensus

    def certified_root_at(self, height: int) -> tuple[bytes, bytes] | None:
        return self.trees.get(height)

    def uncertified_heights(self) -> list[int]:
        return list(range(self.certified_height + 1, self.latest_height + 1))

    def checkpoint_root_at(self, height: int) -> bytes | None:
        state = self.checkpoints.get(height)
        return sha256(b"manifest" + state).digest() if state else None


class NoRequests:
    def build(self, past: object, context: object, count_max: int) -> Data:
        return Data()

    def check(self, payload: object, past: object, context: object) -> None:
        return None


class FixedRegistry:
    def __init__(self, view: SubnetView) -> None:
        self.view = view

    @property
    def latest_version(self) -> RegistryVersion:
        return self.view.version

    def subnet(self, version: RegistryVersion) -> SubnetView:
        return self.view

    def stable_version(self, now_ns: int) -> RegistryVersion:
        return self.view.version


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


class Violation(AssertionError):
    """A property of the protocol does not hold."""


class World:
    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed, self.plan = seed, plan
        self.now = GENESIS_NS
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.sequence = 0
        self.events = 0
        self.trace = blake2b(digest_size=16)
        self.cut: frozenset[int] = frozenset()
        self.held: list[tuple[int, int, Artifact]] = []
        self.counts: dict[str, int] = {}
        self.checker = Checker(plan)
        self._genesis()

    # -- set-up

    def _genesis(self) -> None:
        n = self.plan.nodes
        signing = [Ed25519Key(sha256(f"node {i}".encode()).digest()) for i in range(n)]
        ids = [NodeId(k.principal) for k in signing]
        order = sorted(range(n), key=lambda i: ids[i])
        self.scheme: Scheme = bls.Bls() if self.plan.real_bls else KeyedHash()
        deals = [self._deal(ids, t(n), tag) for t, tag in ((threshold_low, 1), (threshold_high, 2))]
        secrets = [
            (int.from_bytes(sha256(b"c" + bytes(i)).digest(), "big") % bls.ORDER).to_bytes(
                32, "big"
            )
            for i in ids
        ]
        keys = {
            ids[i]: NodeKeys(
                signing[i].public_key,
                bls.public_key(int.from_bytes(secrets[i], "big"))
                if self.plan.real_bls
                else secrets[i],
            )
            for i in order
        }
        view = SubnetView(
            version=RegistryVersion(1),
            members=tuple(sorted(ids)),
            keys=keys,
            replica_version="v1",
            interval_length=self.plan.interval,
            unit_delay_ns=200 * MS,
            notary_delay_ns=20 * MS,
            backoff_ns=10 * MS,
            ingress_per_block_max=100,
            is_halted=False,
            halt_at_cup_height=False,
            stall_limit_ns=5 * SECOND,
        )
        self.subnet = SubnetId(Principal(b"simulated subnet"))
        summary = Summary(
            RegistryVersion(1),
            Height(0),
            self.plan.interval,
            self.plan.interval,
            deals[0].transcript,
            deals[1].transcript,
        )
        block = Block(
            "v1",
            self.subnet,
            Epoch(1),
            Height(0),
            Rank(0),
            b"",
            artifacts.payload_hash(summary),
            ValidationContext(RegistryVersion(1), Height(0), TimeNs(GENESIS_NS)),
        )
        beacon = artifacts.Beacon(Epoch(1), Height(0), b"", b"")
        package = cup.CatchUpPackage(cup.content(block, summary, beacon, b""), b"")
        self.registry = FixedRegistry(view)
        self.nodes: list[Node] = []
        for i in range(n):
            shares = {
                deal.transcript.public_key: deal.shares[deal.transcript.index_of(ids[i]) or 0]
                for deal in deals
            }
            secret = SecretKeys(ids[i], signing[i], secrets[i], shares)
            self.nodes.append(Node(i, secret, HashChain(), package))
        for node in self.nodes:
            self._start(node)

    def _deal(self, ids: list[NodeId], threshold: int, tag: int):  # type: ignore[no-untyped-def]
        if not self.plan.real_bls:
            return deal_double(ids, threshold, bytes([tag]))
        coefficients = [
            int.from_bytes(sha256(f"{tag} {k}".encode()).digest(), "big") % bls.ORDER
            for k in range(threshold)
        ]
        return deal_bls(ids, threshold, coefficients)

    # -- scheduling

    def at(self, time: int, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.queue, (time, self.sequence, action))

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Run events until a condition holds; False when virtual time runs out first."""
        end = self.now + limit_ns
        while self.queue:
            time, _, action = heapq.heappop(self.queue)
            if time > end:
                return False
            self.now = max(self.now, time)
            self.events += 1
            action()
            if self.events % 64 == 0 and until():
                return True
        return until()

    def schedule_faults(self) -> None:
        for fault in self.plan.faults:
            self.at(GENESIS_NS + fault.at_ns, lambda f=fault: self._inject(f))  # type: ignore[misc]

    def _inject(self, fault: Fault) -> None:
        self.note(f"fault {fault.kind} {fault.nodes}")
        self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
        if fault.kind == "crash":
            for i in fault.nodes:
                self.nodes[i].driver = None
                self.nodes[i].incarnation += 1
        elif fault.kind == "restart":
            for i in fault.nodes:
                if self.nodes[i].driver is None:
                    self._start(self.nodes[i])
        elif fault.kind == "partition":
            self.cut = frozenset(fault.nodes)
        else:
            self.heal()

    def heal(self) -> None:
        self.cut = frozenset()
        held, self.held = self.held, []
        for source, target, artifact in held:
            self._transmit(source, target, artifact)

    def revive(self) -> None:
        """End the safety phase: heal all links and start all nodes."""
        self.heal()
        for node in self.nodes:
            if node.driver is None:
                self._start(node)

    def note(self, text: str) -> None:
        self.trace.update(f"{self.now} {text}\n".encode())

    # -- nodes

    def _start(self, node: Node) -> None:
        node.incarnation += 1
        node.state.restart()
        context = Context(
            subnet=self.subnet,
            replica_version="v1",
            keys=node.keys,
            scheme=self.scheme,
            registry=self.registry,
            state=node.state,
            payloads=NoRequests(),
        )
        node.driver = d.Driver(context, node.package, self.now)
        node.driver.restore(list(node.durable), self.now)
        node.wake_at = -1
        self._offer_each_other(node)
        self._wake(node, self.now)

    def _offer_each_other(self, node: Node) -> None:
        """A node that (re)connects is offered all that its peers hold, and they all it holds."""
        assert node.driver is not None
        for peer in self.nodes:
            if peer is not node and peer.driver is not None:
                for artifact in peer.driver.offered():
                    self._transmit(peer.index, node.index, artifact)
        for artifact in node.driver.offered():
            self._broadcast(node, artifact)

    def _wake(self, node: Node, time: int) -> None:
        if node.wake_at >= self.now and node.wake_at <= time:
            return
        node.wake_at = time
        incarnation = node.incarnation
        self.at(time, lambda: self._step(node, incarnation))

    def _step(self, node: Node, incarnation: int) -> None:
        if node.incarnation != incarnation or node.driver is None:
            return
        if node.wake_at == self.now:
            node.wake_at = -1
        for _ in range(1000):
            effects = node.driver.step(self.now)
            if not effects:
                break
            for effect in effects:
                self._carry_out(node, effect)
                if node.driver is None:
                    return
        self.checker.look(node)
        self._wake(node, node.driver.wake_ns(self.now))

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        assert node.driver is not None
        if isinstance(effect, d.Persist):
            for artifact in effect.artifacts:
                node.durable[artifact] = None
        elif isinstance(effect, d.Send):
            assert effect.artifact in node.durable, "sent before it was durable"
            self.checker.signed(node, effect.artifact)
            self._send(node, effect.artifact)
        elif isinstance(effect, d.Execute):
            if self.plan.slow_execution:
                delay = int(30 * MS * draw(self.seed, "execute", node.index, effect.batch.height))
                incarnation = node.incarnation
                self.at(self.now + delay, lambda: self._execute(node, incarnation, effect.batch))
            else:
                self._execute(node, node.incarnation, effect.batch)
        elif isinstance(effect, d.DeliverCertification):
            self.checker.certified(node, effect.certification)
            node.state.certified_height = effect.certification.height
        elif isinstance(effect, d.AdoptCup):
            self.checker.adopted(node, effect.package)
            node.package = effect.package
            floor = effect.package.height - max(50, self.plan.interval + 1)
            node.durable = {a: None for a in node.durable if a.height >= floor}
        elif isinstance(effect, d.FetchState):
            self._fetch(node, effect)
        elif isinstance(effect, d.Refresh):
            for peer in self.nodes:
                if peer is not node and peer.driver is not None:
                    for artifact in peer.driver.offered():
                        self._transmit(peer.index, node.index, artifact)
        elif isinstance(effect, d.Diverged):
            raise Violation(f"node {node.index} diverged at {effect.height}")
        elif isinstance(effect, d.Misbehaved):
            self.counts["invalid artifacts"] = self.counts.get("invalid artifacts", 0) + 1

    def _execute(self, node: Node, incarnation: int, batch: d.Batch) -> None:
        if node.incarnation != incarnation or node.driver is None:
            return
        if batch.height != node.state.latest_height + 1:
            return  # a state was synced meanwhile
        node.state.execute(batch)
        self.checker.executed(node, batch.height)
        node.driver.executed(batch.height)
        self._wake(node, self.now)

    def _fetch(self, node: Node, effect: d.FetchState) -> None:
        """State sync's double: succeeds when a reachable peer holds a checkpoint of this root."""
        incarnation = node.incarnation
        self.counts["state sync"] = self.counts.get("state sync", 0) + 1

        def finish() -> None:
            if node.incarnation != incarnation or node.driver is None:
                return
            for peer in self.nodes:
                reachable = (peer.index in self.cut) == (node.index in self.cut)
                if peer is node or peer.driver is None or not reachable:
                    continue
                if peer.state.checkpoint_root_at(effect.height) == effect.root:
                    node.state.load(effect.height, peer.state.checkpoints[effect.height])
                    break
            node.driver.synced()
            self._wake(node, self.now)

        self.at(self.now + 60 * MS, finish)

    # -- network

    def _send(self, node: Node, artifact: Artifact) -> None:
        if node.index in self.plan.equivocators:
            self._equivocate(node, artifact)
        else:
            self._broadcast(node, artifact)

    def _broadcast(self, node: Node, artifact: Artifact) -> None:
        for peer in self.nodes:
            if peer is not node:
                self._transmit(node.index, peer.index, artifact)

    def _equivocate(self, node: Node, artifact: Artifact) -> None:
        """Send different blocks to different peers, and sign for every block that is about."""
        if isinstance(artifact, BlockProposal) and artifact.maker == node.keys.node:
            twin = self._twin(node, artifact)
            self.counts["equivocations"] = self.counts.get("equivocations", 0) + 1
            for peer in self.nodes:
                if peer is not node:
                    both = draw(self.seed, "both", artifact.height, peer.index) < 0.3
                    first = draw(self.seed, "side", artifact.height, peer.index) < 0.5
                    if both or first:
                        self._transmit(node.index, peer.index, artifact)
                    if both or not first:
                        self._transmit(node.index, peer.index, twin)
            for extra in self._signatures(node, twin):
                self._broadcast(node, extra)
            return
        self._broadcast(node, artifact)
        if isinstance(artifact, BlockProposal):
            for extra in self._signatures(node, artifact):
                self._broadcast(node, extra)

    def _twin(self, node: Node, proposal: BlockProposal) -> BlockProposal:
        context = proposal.block.context
        block = replace(
            proposal.block, context=replace(context, time_ns=TimeNs(context.time_ns + 1))
        )
        message = artifacts.block_message(
            self.subnet, block.epoch, block.height, artifacts.block_hash(block)
        )
        return replace(proposal, block=block, signature=node.keys.signing.sign(message))

    def _signatures(self, node: Node, proposal: BlockProposal) -> list[Artifact]:
        hash_ = artifacts.block_hash(proposal.block)
        out: list[Artifact] = []
        for kind, message in (
            (NotarizationShare, artifacts.notarization_message),
            (FinalizationShare, artifacts.finalization_message),
        ):
            signed = message(self.subnet, proposal.epoch, proposal.height, hash_)
            signature = self.scheme.sign_multi(node.keys.committee, signed)
            out.append(kind(proposal.epoch, proposal.height, hash_, node.keys.node, signature))
        return out

    def _transmit(self, source: int, target: int, artifact: Artifact) -> None:
        self.sequence += 1
        key = (self.seed, "net", source, target, self.sequence)
        plan = self.plan
        span = plan.delay_ms_max - plan.delay_ms_min
        delay = int((plan.delay_ms_min + span * draw(*key)) * MS)
        attempt = 0
        while plan.loss and draw(*key, "loss", attempt) < plan.loss and attempt < 6:
            delay += (250 * MS) << attempt
            attempt += 1
            self.counts["lost"] = self.counts.get("lost", 0) + 1
        incarnation = self.nodes[target].incarnation
        self.at(self.now + delay, lambda: self._arrive(source, target, incarnation, artifact))

    def _arrive(self, source: int, target: int, incarnation: int, artifact: Artifact) -> None:
        node = self.nodes[target]
        if node.driver is None or node.incarnation != incarnation:
            return
        if (source in self.cut) != (target in self.cut):
            self.held.append((source, target, artifact))
            return
        if node.driver.receive(artifact, self.now):
            self._wake(node, self.now)

    # -- summary

    @property
    def honest(self) -> list[Node]:
        return [n for n in self.nodes if n.index not in self.plan.equivocators]

    def finalized_height(self) -> int:
        return min(n.driver.chain.finalized_height if n.driver else 0 for n in self.honest)

    def cup_height(self) -> int:
        return min(n.package.height for n in self.honest)

    def digest(self) -> str:
        """Return a hash of all that was decided: the trace that determinism is judged by."""
        for height in sorted(self.checker.finalized):
            self.note(f"finalized {height} {self.checker.finalized[height].hex()}")
        for height in sorted(self.checker.roots):
            self.note(f"root {height} {self.checker.roots[height].hex()}")
        self.note(f"events {self.events} {sorted(self.counts.items())}")
        return self.trace.hexdigest()


class Checker:
    """The properties S1-S8 and S13, kept apart from the world; each method is one observation."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.finalized: dict[int, bytes] = {}
        self.roots: dict[int, bytes] = {}
        self.cups: dict[int, bytes] = {}
        self.beacons: dict[int, bytes] = {}
        self.notarization_signed: dict[tuple[int, int], set[bytes]] = {}
        self.finalization_signed: dict[tuple[int, int], bytes] = {}
        self._seen: dict[int, int] = {}

    def _same(self, table: dict[int, bytes], height: int, value: bytes, what: str) -> None:
        if table.setdefault(height, value) != value:
            raise Violation(f"two different {what} at height {height}")

    def look(self, node: Node) -> None:
        """S1: one finalized block a height. S4: one beacon. S13: the 70-height bound."""
        if node.index in self.plan.equivocators or node.driver is None:
            return
        chain = node.driver.chain
        for height in range(self._seen.get(node.index, 0) + 1, chain.finalized_height + 1):
            hash_ = chain.finalized.get(height)
            if hash_ is not None:
                self._same(self.finalized, height, hash_, "finalized blocks")
                directly = node.driver.pool.validated.has(Finalization, height)
                if directly and len(chain.notarized.get(height, [hash_])) > 1:
                    raise Violation(f"the finalized height {height} has two notarized blocks")
            beacon = chain.beacons.get(height)
            if beacon is not None:
                self._same(self.beacons, height, artifacts.beacon_hash(beacon), "beacons")
        self._seen[node.index] = chain.finalized_height
        lag = chain.notarized_height - max(node.state.certified_height, chain.cup.height)
        if lag > 71 and node.state.latest_height >= chain.cup.height:
            executing = node.state.latest_height < chain.finalized_height
            if not executing and chain.notarized_height - self._others_certified > 71:
                raise Violation(f"certification lags {lag} heights behind notarization")

    _others_certified = 0

    def signed(self, node: Node, artifact: Artifact) -> None:
        """S3: what an honest node signs, across all its lives."""
        if node.index in self.plan.equivocators:
            return
        key = (node.index, artifact.height)
        if isinstance(artifact, NotarizationShare) and artifact.signer == node.keys.node:
            self.notarization_signed.setdefault(key, set()).add(artifact.block)
            final = self.finalization_signed.get(key)
            if final is not None and final != artifact.block:
                raise Violation(f"node {node.index} notarizes another block after finalizing {key}")
        elif isinstance(artifact, FinalizationShare) and artifact.signer == node.keys.node:
            if self.finalization_signed.setdefault(key, artifact.block) != artifact.block:
                raise Violation(f"node {node.index} finalizes two blocks at {artifact.height}")
            if self.notarization_signed.get(key, set()) - {artifact.block}:
                raise Violation(f"node {node.index} finalizes after notarizing another block")

    def executed(self, node: Node, height: int) -> None:
        """S6: equal states."""
        self._same(self.roots, height, node.state.trees[height][0], "states")

    def certified(self, node: Node, certification: artifacts.Certification) -> None:
        """S7: what is certified is what honest nodes computed."""
        self._others_certified = max(self._others_certified, certification.height)
        self._same(self.roots, certification.height, certification.root, "certified states")

    def adopted(self, node: Node, package: cup.CatchUpPackage) -> None:
        """S8: one CUP a height, on the grid of intervals. S9: never backwards."""
        self._same(self.cups, package.height, package.content, "CUPs")
        if package.height % (self.plan.interval + 1):
            raise Violation(f"a CUP at height {package.height}, off the interval grid")
        if package.height <= node.package.height:
            raise Violation(f"node {node.index} went back from CUP {node.package.height}")


__all__ = ["Cup", "Fault", "Plan", "Violation", "World", "draw", "random_plan"]
