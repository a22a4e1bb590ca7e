"""A recovery in one process: replicas, orchestrators, a registry, an operator, and one kill.

Consensus, the orchestrator's decision, the rebuilding of CUPs from the registry and the judgement
over the evidence are the real code. Doubles: execution (a hash chain), signatures (keyed hashes),
and the NNS, which is a list of registry versions that can be down; votes take their time.
The workflow of the operator starts anew after a kill and goes by what the registry says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.decide import Facts, StartReplica, StopReplica, StoreCup, decide
from replica.client import local_registry as keys
from replica.client.evidence import members_of
from replica.client.local_registry import VersionedRecords
from replica.consensus import driver as d
from replica.consensus.delivery import next_batch
from replica.consensus.reader import Status
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import Certification, Cup, Finalization
from replica.protocol.attestation import (
    Attestation,
    Evidence,
    judge,
    recovery_height,
    recovery_time,
)
from replica.protocol.errors import NotVerified
from replica.protocol.ids import Height
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.registry_transport import Mutation
from simulation.checker import Violation, check_same
from simulation.doubles import DivergingChain, HashChain, manifest_root
from simulation.genesis import publish
from simulation.plan import Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

POLL_NS = 300 * MS
RESTART_NS = 300 * MS
STALL_NS = 2 * SECOND
PHASES = ("fault", "detect", "halt", "attest", "plan", "vote", "adopt", "resume")
VICTIMS = (
    *(f"replica {i}" for i in range(4)),
    *(f"orchestrator {i}" for i in range(4)),
    "nns",
    "operator",
)


class RecoveryWorld(World):
    def __init__(
        self,
        seed: int,
        phase: str,
        victim: str,
        diverge_at: int = 14,
        plan: Plan = Plan(interval=9, delay_ms_max=15),  # noqa: B008 - frozen
    ) -> None:
        """`phase`, `victim`: who is killed shortly after which phase begins."""
        self.phase, self.victim, self.diverge_at = phase, victim, diverge_at
        self.kills = 0
        self.reached: list[str] = []
        self.reached_at: dict[str, int] = {}
        self.nns_up = True
        self.operator_life = 0
        self.orchestrator_up = [True] * 4
        self.promised: list[tuple[int, int] | None] = [None] * 4
        self.attested: dict[int, tuple[int, int]] = {}
        self.recovery: cup.CatchUpPackage | None = None
        self.truth: dict[int, bytes] = {}
        self.records: list[VersionedRecords] = []
        super().__init__(seed, plan)
        self.schedule_faults()
        self.at(self.now, self._operator_begins)
        for node in self.nodes:
            self.at(self.now + node.index * 20 * MS, self._poll, node)

    def new_state(self, index: int) -> HashChain:
        return DivergingChain(self.diverge_at if index >= 2 else None, bytes([index]))

    def open_state(self, node: Node) -> None:
        assert isinstance(node.state, DivergingChain)
        node.state.open(node.package)

    def registry_of(self, node: Node) -> VersionedRecords:
        while len(self.records) <= node.index:
            copy = VersionedRecords()
            copy.apply(self.nns.deltas[0])
            self.records.append(copy)
        return self.records[node.index]

    def may_sign(self, node: Node, epoch: int) -> bool:
        promise = self.promised[node.index]
        if promise is None or promise[0] != epoch:
            return True
        latest = self.registry_of(node).version
        view = self.registry_of(node).view(self.subnet, latest)
        return latest > promise[1] and not view.is_halted

    def _publish(self, mutations: list[Mutation]) -> None:
        publish(self.nns, mutations)

    # -- the kill

    def enter(self, phase: str) -> None:
        """Note that a phase begins; strike its victim shortly after, once."""
        if phase not in self.reached:
            self.reached.append(phase)
            self.reached_at[phase] = self.now
            self.note(f"phase {phase}")
            if phase == self.phase:
                self.at(self.now + 50 * MS, self._kill)

    def _kill(self) -> None:
        self.kills += 1
        what, _, index = self.victim.partition(" ")
        if what == "nns":
            self.nns_up = False
            self.at(self.now + 2 * RESTART_NS, self._nns_returns)
        elif what == "operator":
            self.operator_life += 1
            self.at(self.now + RESTART_NS, self._operator_begins)
        else:
            node = self.nodes[int(index)]
            self.stop(node)
            if what == "orchestrator":
                self.orchestrator_up[node.index] = False
                self.at(self.now + RESTART_NS, self._orchestrator_returns, node)

    def _nns_returns(self) -> None:
        self.nns_up = True

    def _orchestrator_returns(self, node: Node) -> None:
        self.orchestrator_up[node.index] = True

    # -- orchestrators

    def _poll(self, node: Node) -> None:
        self.at(self.now + POLL_NS, self._poll, node)
        if not self.orchestrator_up[node.index]:
            return
        records = self.records[node.index]
        if self.nns_up:
            for delta in self.nns.deltas[records.version :]:
                records.apply(delta)
        facts = Facts(
            is_member=True,
            local_cup=node.package,
            registry_cup=records.registry_cup(self.subnet),
            peer_cup=None,
            replica_running=node.driver is not None,
            running_version="v1" if node.driver else None,
            running_cup_epoch=node.driver.chain.cup.epoch if node.driver else None,
            running_run_start=node.driver.run.start if node.driver else None,
            wanted_version="v1",
            wanted_is_here=True,
            recalled_versions=(),
            restart_not_before_ns=0,
            now_ns=self.now,
        )
        for action in decide(facts):
            if isinstance(action, StoreCup):
                node.package = action.package
            elif isinstance(action, StopReplica):
                self.stop(node)
            elif isinstance(action, StartReplica):
                self.start(node)
        if node.driver is not None:
            self.wake(node, self.now)

    # -- the operator

    def _operator_begins(self) -> None:
        self.operator_life += 1
        life = self.operator_life
        self._moved_at, self._seen = self.now, -1
        self._operate(life, self._step_detect)

    def _operate(self, life: int, step: Callable[[], Callable[[], object] | None]) -> None:
        """Run a step of the workflow every 100 ms; it returns the step to go on with."""
        if life != self.operator_life:
            return
        following = step()
        if following is not None:
            self.at(self.now + 100 * MS, self._operate, life, following)

    def top_certified(self) -> int:
        return max(n.state.certified_height for n in self.nodes)

    def _subnet_record(self) -> pb.SubnetRecord:
        return parse(pb.SubnetRecord, self.nns.need(keys.subnet_record(self.subnet)))

    def _step_detect(self):  # type: ignore[no-untyped-def]
        if self.top_certified() >= self.diverge_at - 1:
            self.enter("fault")
        if self.recovery is not None:
            return self._step_watch
        if self._subnet_record().is_halted:
            return self._step_plan
        if self.top_certified() != self._seen:
            self._moved_at, self._seen = self.now, self.top_certified()
        if self.now - self._moved_at < STALL_NS:
            return self._step_detect
        self.enter("detect")
        return self._step_halt if self._diverged() else self._step_detect

    def _diverged(self) -> bool:
        for node in self.nodes:
            if node.driver is not None:
                if node.driver.divergence():
                    return True
        return False

    def _step_halt(self):  # type: ignore[no-untyped-def]
        self.enter("halt")
        if not self.nns_up:
            return self._step_halt
        if not self._subnet_record().is_halted:
            record = self._subnet_record()
            record.is_halted = True
            self._publish([Mutation(keys.subnet_record(self.subnet), serialize(record))])
        return self._step_plan

    def _step_plan(self):  # type: ignore[no-untyped-def]
        """Gather, attest, judge; again until n - f attest."""
        self.enter("attest")
        try:
            evidence = self._gather()
            judged = self._judge(evidence)
        except NotVerified:
            return self._step_plan
        self.enter("plan")
        return lambda: self._step_vote(evidence, judged.state_hash)

    def _gather(self) -> Evidence:
        up = [n for n in self.nodes if n.driver is not None and self.orchestrator_up[n.index]]
        built = self.nns.registry_cup(self.subnet)
        assert built is not None
        package, final, block, certification = built, None, None, None
        for node in up:
            assert node.driver is not None
            if node.package.epoch == built.epoch and node.package.height > package.height:
                package = node.package
            pool = node.driver.pool.validated
            top = pool.height_max(Finalization)
            if top is not None and (final is None or top > final.height):
                final = pool.at(Finalization, top)[0]
                block = node.driver.chain.blocks[final.block].block
            found = node.driver.certifications.validated
            top = found.height_max(Certification)
            if top is not None and (certification is None or top > certification.height):
                certification = found.at(Certification, top)[0]
        height = max(package.height, certification.height if certification else 0)
        made = [a for n in up if (a := self._attest(n, height)) is not None]
        ordered = tuple(sorted(made, key=lambda a: a.node))
        return Evidence(package.encode(), block, final, certification, ordered)

    def _attest(self, node: Node, height: int) -> Attestation | None:
        """Replay beside the idle replica, keep the checkpoint, promise, sign."""
        assert node.driver is not None
        if node.driver.reader(self.now).status is not Status.HALTED:
            return None
        state = DivergingChain(None, b"")
        state.checkpoints = {h: s for h, s in node.state.checkpoints.items() if h <= height}
        state.open(node.package)
        replay = d.Driver(self.context(node, state), node.package, self.now)
        replay.restore(list(node.durable), self.now)
        while state.latest_height < height:
            batch = next_batch(replay.reader(self.now))
            if batch is None:
                return None
            state.execute(batch)
        root = state.trees[height][0] if height in state.trees else b""
        node.state.checkpoints[height] = state.states[height]
        version = self.records[node.index].version
        epoch = node.package.epoch
        self.promised[node.index] = (epoch, version)
        self.attested[node.index] = (epoch, version)
        unsigned = Attestation(
            subnet=self.subnet,
            epoch=epoch,
            node=node.keys.node,
            registry_version=version,
            cup_height=node.package.height,
            finalized_height=node.driver.chain.finalized_height,
            certified_height=node.state.certified_height,
            certified_root=root,
            height=Height(height),
            state_hash=manifest_root(state.states[height]),
        )
        return replace(unsigned, signature=node.keys.signing.sign(unsigned.message))

    def _judge(self, evidence: Evidence) -> Any:
        built = self.nns.registry_cup(self.subnet)
        assert built is not None
        return judge(
            evidence,
            self.subnet,
            self.nns.subnet_public_key(self.subnet),
            members_of(self.nns, self.subnet, self.nns.version),
            built,
            self.scheme,
        )

    def _step_vote(self, evidence: Evidence, state_hash: bytes):  # type: ignore[no-untyped-def]
        """The vote takes half a second; then the registry checks all again and stores the CUP."""
        self.enter("vote")
        self.at(self.now + SECOND // 2, self._execute_proposal, evidence, state_hash)
        return self._step_watch

    def _execute_proposal(self, evidence: Evidence, state_hash: bytes) -> None:
        if not self.nns_up:
            self.at(self.now + POLL_NS, self._execute_proposal, evidence, state_hash)
            return
        record = self._subnet_record()
        if not record.is_halted:
            return  # proposed twice, by two lives of the operator: the first one did it
        judged = self._judge(evidence)
        assert judged.state_hash == state_hash
        contents = parse(pb.CatchUpPackageContents, self.nns.need(keys.cup_contents(self.subnet)))
        contents.height = recovery_height(judged.proven_height, self.plan.interval + 1)
        contents.time = max(
            recovery_time(judged.proven_time_ns, judged.proven_height, 200 * MS), self.now
        )
        contents.state_hash = state_hash
        record.is_halted = False
        self.truth[judged.state_height] = state_hash
        self._publish(
            [
                Mutation(keys.cup_contents(self.subnet), serialize(contents)),
                Mutation(keys.subnet_record(self.subnet), serialize(record)),
            ]
        )
        self.recovery = self.nns.registry_cup(self.subnet)
        self.enter("adopt")

    def _step_watch(self):  # type: ignore[no-untyped-def]
        if self.recovery is not None and self.top_certified() > self.recovery.height:
            self.enter("resume")
            return None
        return self._step_watch

    # -- what must hold

    def send(self, node: Node, artifact: artifacts.Artifact) -> None:
        self._check_promise(node, artifact)
        self.network.broadcast(node.index, artifact)

    def certified(self, node: Node, certification: Certification) -> None:
        node.state.certified_height = certification.height
        check_same(self.checker.roots, certification.height, certification.root, "certified states")

    def is_honest(self, node: Node) -> bool:
        return False  # nodes diverge here: what must hold is checked by this world itself

    def adopt(self, node: Node, package: cup.CatchUpPackage) -> None:
        if node.package.height < package.height:
            node.package = package

    def diverged(self, node: Node, height: int) -> None:
        raise Violation(f"node {node.index} diverged from what was certified")

    def _check_promise(self, node: Node, artifact: artifacts.Artifact) -> None:
        promise = self.attested.get(node.index)
        signer = getattr(artifact, "signer", getattr(artifact, "maker", None))
        if promise is None or signer != node.keys.node or isinstance(artifact, Cup):
            return
        if artifact.epoch == promise[0]:
            raise Violation(f"node {node.index} signs in an epoch it promised not to")

    def healed(self) -> bool:
        """All nodes run in the new epoch, certify, and made a CUP of their own."""
        if self.recovery is None:
            return False
        return all(
            n.driver is not None
            and n.package.epoch == self.recovery.epoch
            and n.package.is_signed
            and n.state.certified_height > self.recovery.height
            for n in self.nodes
        )
