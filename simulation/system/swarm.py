"""A whole swarm under virtual time: every node's orchestrator and replica, the NNS, people.

Real: consensus, execution, rows in SQLite, checkpoints in folders, state sync, HTTP applications,
registry, governance and the other NNS canisters, orchestrators, key generation, and the drills' own
scenarios, which play operators, voters and clients. Simulated: time, the network, processes,
threads, and (unless the plan says otherwise) the groups of threshold signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import shake_256
from pathlib import Path

from cli.lab.ground import Ground
from replica.abi.bundle import pack
from replica.client import release
from replica.client.agent import World
from replica.consensus import driver as consensus
from replica.p2p import wire
from replica.protocol.artifacts import Artifact
from replica.protocol.ids import NodeId
from replica.runtime import journal, journal_format
from simulation.adversary import Equivocator, Forger
from simulation.network import Network
from simulation.plan import Fault, Plan
from simulation.scheduler import GENESIS_NS, MS, Scheduler, draw
from simulation.system.checker import SystemChecker
from simulation.system.database import Databases
from simulation.system.disk import Disks
from simulation.system.fibers import Fibers
from simulation.system.machine import Machine
from simulation.system.processes import ReplicaProcess
from simulation.system.sockets import OPERATOR, Reply, Surroundings, Wires

MACHINES_MAX = 16
LINGER_MS = 100
"""How long an orchestrator waits for a sync at the most, when it has to."""
STOP_NS = 600 * MS
"""How long a node takes to stop when it is asked to."""
RELEASE = pack([("replica/__main__.py", b"# what runs in a simulation is what simulates\n")])
"""The first release: nothing is started from it."""


class System(Scheduler):
    def __init__(self, seed: int, plan: Plan, listen: Callable[[str], None] | None = None) -> None:
        """`listen`: is told what the nodes log."""
        super().__init__(seed)
        self.plan, self.listen = plan, listen
        self.fibers = Fibers(self)
        self.network = _SwarmNetwork(self)
        self.wires = Wires(self.fibers, seed, self._reachable, 4)
        self.disks, self.databases = Disks(), Databases()
        self.machines: list[Machine] = []
        self.checker = SystemChecker(self)
        self._equivocator, self._forger = Equivocator(self), Forger(self)
        self._by_node: dict[NodeId, Machine] = {}
        self._drawn: dict[str, int] = {}
        self._processes = 0
        self.linger_ms = LINGER_MS

    # -- what runs here

    def entropy(self, who: str, count: int) -> bytes:
        number = self._drawn[who] = self._drawn.get(who, 0) + 1
        return shake_256(f"{self.seed} {who} {number}".encode()).digest(count)

    def next_process(self) -> int:
        self._processes += 1
        return self._processes

    def log(self, machine: Machine, what: str, text: str) -> None:
        self.note(f"{machine.name} {what} {text}")
        if self.listen is not None:
            self.listen(f"{(self.now - GENESIS_NS) / 1e9:8.3f} {machine.name:<8} {what} {text}")

    def add(self, folder: Path) -> Machine:
        machine = Machine(self, len(self.machines), folder)
        self.machines.append(machine)
        self._by_node[machine.node] = machine
        return machine

    def replica_of(self, node: NodeId) -> ReplicaProcess | None:
        machine = self._by_node.get(node)
        process = machine.replica if machine is not None else None
        return process if process is not None and process.is_up() else None

    def machine_of(self, node: NodeId) -> int:
        return self._by_node[node].index

    # -- between replicas

    def _reachable(self, source: int, target: int) -> bool:
        if OPERATOR in (source, target):
            return True
        return self.network.reachable(source, target)

    def delay_ns(self, *key: object) -> int:
        plan = self.plan
        span = (plan.delay_ms_max - plan.delay_ms_min) * MS
        return plan.delay_ms_min * MS + int(span * draw(self.seed, "delay", self.now, *key))

    def after_delay(
        self, source: ReplicaProcess, target: ReplicaProcess, act: Callable[..., None]
    ) -> None:
        """Have something done to a peer when a message would have arrived there."""

        def arrive() -> None:
            if target.is_up() and self.network.reachable(source.machine, target.machine):
                act(target.real)

        self.at(self.now + self.delay_ns(source.machine, target.machine), arrive)

    def script_of(self, machine: int) -> Equivocator | Forger | None:
        """Return what a Byzantine replica does with what it sends; None: it is honest."""
        if machine in self.plan.equivocators:
            return self._equivocator
        return self._forger if machine in self.plan.forgers else None

    def advertise(self, source: ReplicaProcess, advert: wire.Advert) -> None:
        for peer in source.linked():
            self.after_delay(source, peer, lambda r: r._on_advert(source.it.node, advert))

    def connected(self, process: ReplicaProcess) -> None:
        """A replica came up or has new peers: it and they offer each other all they hold."""
        self.network.reconnected(process.machine)
        for peer in list(process.linked()):
            self.offer(peer, process)
            self.offer(process, peer)
            for one, other in ((peer, process), (process, peer)):
                assert one.real is not None
                one.real._on_connected(other.it.node)

    def disconnected(self, process: ReplicaProcess) -> None:
        self.network.reconnected(process.machine)
        for port in [p for p, s in self.wires.servers.items() if s is process]:
            del self.wires.servers[port]

    def offer(self, source: ReplicaProcess, target: ReplicaProcess) -> None:
        assert source.real is not None
        for artifact in source.real.driver.offered():
            self.network.send(source.machine, target.machine, artifact)

    def arrive(self, source: int, target: int, artifact: Artifact) -> None:
        process = self.machines[target].replica
        if process is not None and process.is_up():
            assert process.real is not None
            process.real._on_artifact(self.machines[source].node, artifact)

    def tag_of(self, machine: int) -> bytes:
        process = self.machines[machine].replica
        up = process is not None and process.is_up()
        return process.real.driver.tag if up else b""  # type: ignore[union-attr]

    def is_late(self, target: int, kind: type, height: int) -> bool:
        process = self.machines[target].replica
        if process is None or process.real is None:
            return True
        return process.real.driver.is_late(kind, height)

    def chunk(
        self, peer: ReplicaProcess, request: wire.StateRequest, data: bytes | None
    ) -> bytes | None:
        """Return a part of a checkpoint as it arrives: some peers send wrong bytes."""
        if data and peer.machine in self.plan.liars and request.kind == "chunk":
            self.counts["bad chunks"] += 1
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    # -- what is seen

    def seen(self, process: ReplicaProcess, effect: consensus.Effect) -> None:
        self.checker.seen(process, effect)

    def look(self, process: ReplicaProcess) -> None:
        self.checker.look(process)

    # -- faults

    def schedule_faults(self) -> None:
        for fault in self.plan.faults:
            self.at(GENESIS_NS + fault.at_ns, self._inject, fault)

    def _inject(self, fault: Fault) -> None:
        self.note(f"fault {fault.kind} {fault.nodes}")
        self.counts[fault.kind] += 1
        machines = [self.machines[i] for i in fault.nodes if i < len(self.machines)]
        match fault.kind:
            case "crash":
                for machine in machines:
                    if machine.replica is not None:
                        machine.replica.end("killed")
            case "torn crash":
                for machine in machines:
                    machine.torn = True
            case "orchestrator crash":
                for machine in machines:
                    if not machine.held:
                        machine.kill_orchestrator()
                        machine.start()
            case "power cut":
                for machine in machines:
                    machine.syncs_left = fault.amount
            case "pause" | "resume":
                for machine in machines:
                    machine.paused = fault.kind == "pause"
                    if machine.replica is not None:
                        machine.replica.wake()
            case "full disk" | "space again":
                for machine in machines:
                    machine.full_disk = fault.kind == "full disk"
            case "slow disk":
                for machine in machines:
                    machine.sync_ns = fault.amount
            case "diverge":
                for machine in machines:
                    machine.diverge()
            case "old registry":
                for machine in machines:
                    self._roll_back_registry(machine)
            case "misdirected write":
                for machine in machines:
                    machine.disk.goes_astray = True
            case "bit rot":
                for machine in machines:
                    self._rot(machine)
            case "bad database":
                for machine in machines:
                    machine.database.fail(fault.amount)
            case "database rot":
                for machine in machines:
                    if machine.replica is not None:
                        machine.database.rot(machine.replica.real)
            case "skew":
                for machine in machines:
                    machine.skew_ns += fault.amount
            case "partition":
                self.network.cut = frozenset(fault.nodes)
            case "deafen":
                self.network.deaf = frozenset(fault.nodes)
            case "clog":
                self.network.clogged = frozenset(fault.nodes)
            case "heal":
                self.network.heal()
            case other:
                raise ValueError(f"no such fault: {other}")

    def _roll_back_registry(self, machine: Machine) -> None:
        """The machine comes back from a backup of its registry, as of the first version."""
        was_held = machine.held
        machine.hold()
        path = machine.settings.registry_path
        if path.exists():
            with open(path, "rb") as file:
                header = journal_format.read_header(file)
            assert header is not None, "the store is not of a release before"
            first = journal.read(path).records[:1]
            parts = journal_format.encode(header[0], header[1].salt, [first] if first else [])
            path.write_bytes(b"".join(parts))
        if not was_held:
            machine.start()

    def _rot(self, machine: Machine) -> None:
        """Flip a bit in a file of the newest checkpoint, and of those that link to it."""
        folders = sorted((machine.settings.data / "checkpoints").glob("[0-9a-f]" * 16))
        if not folders:
            return
        files = sorted(p for p in folders[-1].rglob("*") if p.is_file() and p.stat().st_size)
        path = files[int(draw(self.seed, "rot", self.now) * len(files))]
        data = bytearray(path.read_bytes())
        where = int(draw(self.seed, "where", self.now) * len(data))
        data[where] ^= 1 << int(8 * draw(self.seed, "bit", self.now))
        path.write_bytes(bytes(data))  # also of the older checkpoints that share the file


class _SwarmNetwork(Network):
    """Replicas send to their peers by the registry, not to everybody."""

    def __init__(self, system: System) -> None:
        super().__init__(
            system, system.plan, MACHINES_MAX, system.arrive, system.is_late, system.tag_of
        )
        self._system = system

    def targets(self, source: int) -> Iterable[int]:
        process = self._system.machines[source].replica
        return [] if process is None else [p.machine for p in process.linked_or_cut()]


class SimulatedGround(Ground):
    """What the drills' swarms stand on in a simulation."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.world: World = Surroundings(
            system.wires, OPERATOR, lambda count: system.entropy("operator", count)
        )
        self._port = 20_000

    def free_ports(self, count: int) -> list[int]:
        self._port += count
        return list(range(self._port - count, self._port))

    def first_release(self, published: Path) -> Path:
        return release.unpack(RELEASE, published, release.digest(RELEASE))

    def processes(self, folders: Sequence[Path]) -> _Processes:
        return _Processes(self.system, folders)

    def mirror(self, folder: Path, port: int) -> _Mirror:
        return _Mirror(self.system, folder, port)


class _Processes:
    def __init__(self, system: System, folders: Sequence[Path]) -> None:
        self.system = system
        self._machines = {folder: system.add(folder) for folder in folders}

    def start(self) -> None:
        for machine in self._machines.values():
            machine.settle()
            machine.start()

    def stop(self) -> None:
        for machine in self._machines.values():
            machine.hold()

    def pid(self, folder: Path) -> int:
        return self._machines[folder].index + 1

    def hold(self, folder: Path) -> None:
        self._machines[folder].hold()
        self.system.fibers.sleep(STOP_NS)

    def kill(self, folder: Path) -> None:
        self._machines[folder].hold()

    def release(self, folder: Path) -> None:
        self._machines[folder].settle()
        self._machines[folder].start()


class _Mirror:
    """Hands out published release packages."""

    def __init__(self, system: System, folder: Path, port: int) -> None:
        self.system, self.folder, self.port = system, folder, port
        self.machine = OPERATOR
        self._up = False

    def start(self) -> None:
        self._up = True
        self.system.wires.servers[self.port] = self

    def stop(self) -> None:
        self._up = False

    def is_up(self) -> bool:
        return self._up

    def is_stuck(self) -> bool:
        return False

    def answer(self, method: str, path: str, query: str, body: bytes) -> Reply:
        found = self.folder / path.lstrip("/")
        if not found.is_file():
            return Reply(404, b"not found", "text/plain")
        return Reply(200, found.read_bytes(), "application/zip")
