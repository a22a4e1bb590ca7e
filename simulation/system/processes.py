"""The processes of a simulated machine: its orchestrator and its replica, both the real ones.

Threads are fibers here, sockets are `sockets.Wires`, and a process is an object that is dropped:
what it had in memory is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import httpx2

from orchestrator import agent as orchestrators
from orchestrator.interface import Interface
from orchestrator.replica_process import CrashLoop
from replica import node as replicas
from replica.client.folders import is_disk_error
from replica.client.local_registry import LocalRegistry
from replica.consensus import driver as consensus
from replica.delegation import keep_delegation
from replica.http import app as http
from replica.p2p import wire
from replica.p2p.transport import Peer
from replica.protocol import canonical
from replica.protocol.artifacts import Artifact, Run
from replica.protocol.attestation import Attestation
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import MachineFault, ReprisError
from replica.protocol.ids import Height, NodeId
from replica.protocol.signed import Question
from replica.runtime import settings as node_settings
from replica.runtime import stored_cup
from replica.runtime.pool_journal import pool_journal_path
from simulation.adversary import Played
from simulation.checker import Violation
from simulation.past import Heedless, lie
from simulation.scheduler import MS, draw
from simulation.system.disk import PowerLost
from simulation.system.fibers import Fiber
from simulation.system.sockets import AsyncTransport, Reply, Surroundings

if TYPE_CHECKING:
    from simulation.system.machine import Machine
    from simulation.system.swarm import System

START_MS, START_SPREAD_MS = 150, 300
"""How long a process takes to come up."""
REGISTRY_POLL_NS = 200 * MS
SPACE_POLL_NS = 500 * MS
LINGERS = 0.5
"""How many of an orchestrator's syncs take so long that others act meanwhile."""


class Process:
    """Fibers that die together."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.alive = True
        self._fibers: list[Fiber] = []

    def spawn(self, work: Callable[[], None]) -> Fiber:
        def until_dark() -> None:
            with suppress(PowerLost), self.system.fibers.acting(self):
                try:
                    work()
                except MachineFault as fault:
                    self.failed(fault)

        fiber = self.system.fibers.spawn(until_dark)
        self._fibers = [f for f in self._fibers if not f.ended]
        self._fibers.append(fiber)
        return fiber

    def sleep(self, ns: int) -> None:
        self.system.fibers.sleep(ns)

    def is_up(self) -> bool:
        return self.alive

    def is_stuck(self) -> bool:
        return False

    def before_sync(self) -> None:
        """One of its fibers syncs a file. Raises: PowerLost, once the process is gone."""
        if not self.alive:
            raise PowerLost

    def failed(self, fault: MachineFault) -> None:
        """Its machine failed below it."""
        raise Violation(f"a machine's fault met what is no replica: {fault}")

    def kill(self) -> None:
        self.alive = False
        for fiber in self._fibers:
            fiber.kill()


class OrchestratorProcess(Process):
    """The real orchestrator, checking all the time."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.system)
        self.it, self.machine = machine, machine.index
        self.real: orchestrators.Orchestrator | None = None
        self.spawn(self._run)

    def is_up(self) -> bool:
        return self.alive and self.real is not None

    def before_sync(self) -> None:
        """Its other threads and the replica go on while it waits for the disk."""
        super().before_sync()
        system = self.system
        key = (system.seed, "orchestrator sync", self.machine, self.it.syncs, system.now)
        if draw(*key, "whether") < LINGERS:
            system.counts["overtaken syncs"] += 1
            self.sleep(int(system.linger_ms * draw(*key) * MS))
            super().before_sync()

    def _run(self) -> None:
        machine, system = self.it, self.system
        share = draw(system.seed, "orchestrator start", machine.index, system.now)
        self.sleep(int((START_MS + START_SPREAD_MS * share) * MS))
        system.wires.servers[machine.settings.orchestrator_port] = self
        world = Surroundings(system.wires, machine.index, machine.entropy, self.spawn)
        surroundings = orchestrators.Surroundings(
            process=ReplicaHandle(machine),
            world=world,
            monotonic_ns=lambda: system.now,
            log=lambda text: system.log(machine, "orchestrator", text),
            reserve_bytes=0,  # this disk is full or it is not
        )
        settings = node_settings.load(machine.folder)
        self.real = orchestrators.Orchestrator(settings, surroundings)
        while True:
            try:
                self.real.check()
            except (ReprisError, OSError, httpx2.HTTPError) as error:
                machine.check_disk_error(error)
                system.log(machine, "orchestrator", f"a check failed: {error}")
            self.sleep(machine.settings.poll_ns)

    def answer(self, method: str, path: str, query: str, body: bytes) -> Reply:
        assert self.real is not None
        asked = dict(parse_qsl(query))
        try:
            with self.system.fibers.acting(self):
                found = Interface(self.real).answer(method, path, asked, body)
        except OSError as error:  # a server says so, and goes on
            self.it.check_disk_error(error)
            return Reply(500, str(error).encode(), "text/plain")
        if path == "/attestation" and self.machine in self.system.plan.perjurers:
            return self._perjure(int(asked["height"]))
        if path == "/attestation" and found.status == 200:
            word = canonical.decode(Attestation, found.body)
            self.system.checker.attested(self.machine, word)
        return Reply(found.status, found.body, found.media)

    def _perjure(self, height: int) -> Reply:
        """Attest, signed, a state that nobody has, and blocks that there are not."""
        assert self.real is not None
        package = self.real.cups.local()
        if package is None:
            return Reply(503, b"this node has no CUP yet", "text/plain")
        self.system.counts["false attestations"] += 1
        word = Attestation(
            subnet=package.subnet,
            epoch=package.epoch,
            node=self.it.node,
            registry_version=self.real.records.version,
            cup_height=package.height,
            finalized_height=Height(height + self.system.counts["false attestations"] % 3),
            certified_height=Height(height),
            certified_root=self.it.entropy(32),
            height=Height(height),
            state_hash=self.it.entropy(32),
        )
        key = self.it.settings.secrets().signing
        signed = replace(word, signature=key.sign(word.message))
        return Reply(200, canonical.encode(signed), "application/octet-stream")


class ReplicaHandle(CrashLoop):
    """The replica as its orchestrator has it: started, stopped, found to have crashed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.version: str | None = None
        self.cup_epoch: int | None = None
        self.run_start: int | None = None
        self._process: ReplicaProcess | None = None
        self._started_ns = 0

    @property
    def pid(self) -> int | None:
        return self._process.number if self._process is not None else None

    def is_running(self) -> bool:
        process = self._process
        if process is None:
            return False
        if process.alive:
            return True
        now = self._machine.system.now
        self.note(now - self._started_ns, now, is_fault=process.ended_by_fault)
        self.last_words = process.last_words
        self._process = self.version = self.cup_epoch = self.run_start = None
        return False

    def start(self, release_folder: Path, version: str, package: CatchUpPackage) -> None:
        machine = self._machine
        if machine.replica is not None:
            raise Violation(f"{machine.name} starts a second replica (S17)")
        assert release_folder.is_dir(), "an orchestrator starts releases that it holds"
        machine.system.checker.starting(machine, version)
        self._process = machine.replica = ReplicaProcess(machine, version)
        self.version, self.cup_epoch = version, package.epoch
        self.run_start = package.run_start
        self._started_ns = machine.system.now

    def stop(self) -> None:
        process, self._process = self._process, None
        self.version = self.cup_epoch = self.run_start = None
        if process is not None:
            process.end("stopped")


class ReplicaProcess(Process):
    """The real replica, whose effects are carried out by itself and whose peers are simulated."""

    def __init__(self, machine: Machine, version: str) -> None:
        super().__init__(machine.system)
        self.it, self.machine, self.version = machine, machine.index, version
        self.number = self.system.next_process()
        self.real: replicas.Replica | None = None
        self.peers: tuple[NodeId, ...] = ()
        self.ended_by_fault, self.last_words = False, ""
        self._wake_at = -1
        self._busy_until = 0
        """It waits for its disk till then."""
        self.spawn(self._run)

    def is_up(self) -> bool:
        return self.alive and self.real is not None

    def is_stuck(self) -> bool:
        return self.it.paused

    def _run(self) -> None:
        machine, system = self.it, self.system
        share = draw(system.seed, "replica start", machine.index, system.now)
        self.sleep(int((START_MS + START_SPREAD_MS * share) * MS))
        settings = node_settings.load(machine.folder)
        try:
            records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
            package = stored_cup.read(settings.cup_path)
            real = replicas.Replica(
                settings,
                self.version,
                records,
                package.subnet,
                package,
                clock=machine.now_ns,
                monotonic=lambda: system.now,
                log=lambda text: system.log(machine, "replica", text),
            )
            run = Run(self.version, package.run_start)
            journal = pool_journal_path(settings, package.epoch, run)
            term = (machine.index, package.subnet, package.epoch, run)
            has_memory = journal.exists() and journal.stat().st_size > 0
            system.checker.opens(machine, package, package.subnet == records.nns())
            system.checker.started(machine, term, has_memory)
            real.wake, real.begin_sync = self.wake, self._begin_sync
            real.space = machine.space
            real.link = self
            real.start_consensus()
            if system.script_of(machine.index) is not None:
                real.driver.past = Heedless(real.driver.reader(system.now))
            system.checker.remembers(machine, term, real.driver)
        except (ReprisError, OSError, MachineFault) as error:
            machine.check_disk_error(error)
            is_fault = isinstance(error, MachineFault) or is_disk_error(error)
            self.end(f"did not start: {error}", is_fault=is_fault)
            return
        self.real = real
        self.app = http.build(real, self._wait_certified)
        self.update(real.peers())
        system.wires.servers[settings.http_port] = self
        system.connected(self)
        self.spawn(lambda: system.fibers.run(keep_delegation(real, self._http_client)))
        self.wake()
        while True:
            try:
                real.refresh_registry()
            except ReprisError as error:
                self.end(f"crashes: {error}")
                return
            system.advertise(self, real.advert())
            self.sleep(REGISTRY_POLL_NS)

    def _http_client(self) -> httpx2.AsyncClient:
        transport = AsyncTransport(self.system.wires, self.it.index)
        return httpx2.AsyncClient(transport=transport, timeout=5.0)

    async def _wait_certified(self) -> None:
        real = self.real
        before = real.state.certified_height if real is not None else 0
        while self.real is not None and self.real.state.certified_height == before:
            await asyncio.sleep(0.05)
        if self.real is None:
            raise ConnectionResetError("the process is gone")

    # -- running

    def wake(self) -> None:
        self._wake_in(self.system.plan.step_us * 1000)

    def _wake_in(self, ns: int) -> None:
        at = self.system.now + max(ns, 1)
        if self.system.now <= self._wake_at <= at:
            return
        self._wake_at = at
        self.system.at(at, self._step)

    def _step(self) -> None:
        real, machine = self.real, self.it
        if not self.alive or real is None:
            return
        if self._wake_at <= self.system.now:
            self._wake_at = -1
        if machine.paused:
            return
        if self.system.now < self._busy_until:
            self._wake_in(self._busy_until - self.system.now)
            return
        size, syncs = real.journal.bytes_used, machine.syncs
        try:
            for effect in real.step():
                self.system.seen(self, effect)
                if machine.torn and self._is_cut(effect, real, size):
                    return
        except SystemExit as error:
            if error.code == replicas.DIVERGED_EXIT:
                machine.diverged()
            self.end(f"exits with {error.code}")
            return
        except OSError as error:
            machine.check_disk_error(error)
            self.end(f"crashes: {error}", is_fault=is_disk_error(error))
            return
        except MachineFault as fault:
            self.failed(fault)
            return
        except PowerLost:
            return
        if real.waits_for_space:
            self.system.counts["waits for space"] += 1
            self._wake_in(SPACE_POLL_NS)
            return
        self._busy_until = self.system.now + (machine.syncs - syncs) * machine.sync_ns
        self.system.look(self)
        self._wake_in(real.driver.wake_ns(self.system.now) - self.system.now)

    def _is_cut(self, effect: consensus.Effect, real: replicas.Replica, size: int) -> bool:
        """Crash at one of the step's effects; of what was being written, a part is on the disk."""
        kind = type(effect).__name__
        if draw(self.system.seed, "cut", self.machine, self.system.now, kind) < 0.5:
            return False
        self.it.torn = False
        path = real.journal.path
        if isinstance(effect, consensus.Persist):
            self.system.counts["torn writes"] += 1
            whole = path.stat().st_size
            share = draw(self.system.seed, "written", self.machine, self.system.now)
            self.end("is cut off while it writes")
            os.truncate(path, size + int(share * (whole - size)))
        else:
            self.end("is cut off")
        return True

    def failed(self, fault: MachineFault) -> None:
        self.it.check_disk_error(fault)
        self.system.counts["machines' faults"] += 1
        self.end(f"ends unsigned: {fault}", is_fault=True)

    def end(self, why: str, *, is_fault: bool = False) -> None:
        """The process is gone, and all that it held in memory."""
        if not self.alive:
            return
        self.ended_by_fault, self.last_words = is_fault, why
        self.system.log(self.it, "replica", why)
        if self.it.replica is self:
            self.it.replica = None
        self.system.disconnected(self)
        real, self.real = self.real, None
        if real is not None:
            real.journal.close()
            real.store.close()
        self.kill()

    def answer(self, method: str, path: str, query: str, body: bytes) -> Reply:
        with self.system.fibers.acting(self):
            reply = self.system.fibers.run(_ask(self.app, method, path, query, body))
        read = path.endswith(("/query", "/read_state"))
        if read and reply.status == 200 and self.real is not None:
            self.system.checker.answered(self)
        return reply

    # -- the way to the peers (`replicas.Link`)

    @property
    def connected(self) -> Sequence[NodeId]:
        return [p.it.node for p in self.linked()]

    def linked(self) -> Iterator[ReplicaProcess]:
        """Yield the peers' replicas that are up and can be reached."""
        for peer in self.linked_or_cut():
            if self.system.network.reachable(self.machine, peer.machine):
                yield peer

    def linked_or_cut(self) -> Iterator[ReplicaProcess]:
        """Yield the peers' replicas that are up and have this one as a peer; what is sent to one
        that can't be reached now is held up."""
        for node in self.peers:
            peer = self.system.replica_of(node)
            if peer is not None and self.it.node in peer.peers:
                yield peer

    def send(self, artifact: Artifact) -> None:
        script = self.system.script_of(self.machine)
        if script is None or self.real is None:
            self.system.network.pass_on(self.machine, self.it.node, artifact)
            return
        keys = replicas.secret_keys(self.it.settings)
        script.send(Played(self.machine, keys, self.real.driver), artifact)

    def send_ingress(self, raw: bytes) -> None:
        for peer in self.linked():
            self.system.after_delay(self, peer, lambda r, raw=raw: r._on_ingress(self.it.node, raw))

    def ask(self, node: NodeId, question: wire.Ask) -> None:
        peer = next((p for p in self.linked() if p.it.node == node), None)
        if peer is not None:
            self.system.after_delay(self, peer, lambda _: self._answered(peer, question))

    def _answered(self, peer: ReplicaProcess, question: wire.Ask) -> None:
        assert peer.real is not None
        for artifact in peer.real.handlers().answer(question):
            self.system.network.answer(peer.machine, self.machine, artifact)

    def ask_signed(self, node: NodeId, question: Question) -> None:
        peer = next((p for p in self.linked() if p.it.node == node), None)
        if peer is not None:
            self.system.after_delay(self, peer, lambda _: self._asked_signed(peer, question))

    def _asked_signed(self, peer: ReplicaProcess, question: Question) -> None:
        """A peer tells what this node signed, unless its machine stands; some lie."""
        assert peer.real is not None
        system, driver = self.system, peer.real.driver
        if peer.it.paused:
            return
        if system.script_of(peer.machine) is None:
            answer = driver.signed_by(self.it.node, question)
        else:
            answer = lie(system.seed, driver, self.it.node, question, system.now)
        if answer is not None:
            node = peer.it.node
            system.after_delay(peer, self, lambda r: r._on_signed_answer(node, answer))

    def blame(self, node: NodeId, subject: str, reason: str, size_bytes: int) -> None:
        self.system.counts["invalid artifacts"] += 1
        machine = self.system.machine_of(node)
        if subject == "answer" and self.system.script_of(machine) is None:
            raise Violation(f"{self.it.name} blames an honest node for its answer: {reason} (S22)")

    def standings(self) -> dict[NodeId, dict[str, float | int]]:
        return {}

    def update(self, peers: list[Peer]) -> None:
        before = self.peers
        self.peers = tuple(p.node for p in peers if p.node != self.it.node)
        if self.real is not None and set(self.peers) - set(before):
            self.system.connected(self)

    async def request_state(
        self, node: NodeId, height: int, root: bytes, kind: str, index: int
    ) -> bytes | None:
        self.sleep(self.system.delay_ns(self.machine, index, kind))
        peer = self.system.replica_of(node)
        if peer is None or peer not in list(self.linked()):
            return None
        assert peer.real is not None
        request = wire.StateRequest(0, height, root, kind, index)
        return self.system.chunk(peer, request, peer.real._serve_state(request))

    def _begin_sync(self, height: Height, root: bytes) -> None:
        real = self.real
        assert real is not None
        self.system.counts["state syncs"] += 1
        self.spawn(lambda: self.system.fibers.run(real.sync(height, root)))


async def _ask(app: Any, method: str, path: str, query: str, body: bytes) -> Reply:
    """Hand one request to an ASGI application."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    start = sent[0]
    media = dict(start["headers"]).get(b"content-type", b"").decode()
    return Reply(start["status"], b"".join(m.get("body", b"") for m in sent[1:]), media)
