"""The orchestrator of one node: replicate the registry, decide, act, and answer questions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.attestation import Attestor
from orchestrator.cup_provider import CupProvider
from orchestrator.decide import (
    Action,
    Facts,
    Report,
    StartReplica,
    StopReplica,
    StoreCup,
    choose_cup,
    decide,
)
from orchestrator.disk import RESERVE_BYTES, NodeDisk
from orchestrator.key_maker import KeyMaker
from orchestrator.key_receiver import KeyReceiver
from orchestrator.nns_recovery import NnsRecovery
from orchestrator.registry_replicator import RegistryReplicator
from orchestrator.releases import Releases
from orchestrator.replays import Promises, Replays
from orchestrator.replica_process import ReplicaProcess
from orchestrator.trust import Trust
from replica.client.agent import Agent, World
from replica.client.local_registry import LocalRegistry
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Conflict, NotFound, ReprisError, Unavailable
from replica.protocol.ids import SubnetId
from replica.runtime import leftovers
from replica.runtime import settings as node_settings
from replica.runtime.settings import NodeSettings

PEER_CUP_EVERY = 3
"""Peers are asked for their CUP on every third check: the replica gossips CUPs itself."""

LOOK_FOR_SUCCESSOR_EVERY = 4

LOOK_AT_STORE_EVERY = 20
"""The registry store is read again: its replica would not see what has rotted at its end."""

LOOK_AT_SHARES_EVERY = 2
"""The NNS deals to other subnets' nodes for an interval: they look often enough to complain."""


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} orchestrator {text}\n")
    sys.stderr.flush()


class Process(Protocol):
    """The replica as an orchestrator has it: see `ReplicaProcess`."""

    version: str | None
    cup_epoch: int | None
    run_start: int | None
    crashes: int
    last_words: str
    not_before_ns: int

    @property
    def pid(self) -> int | None: ...
    def is_running(self) -> bool: ...
    def start(self, release_folder: Path, version: str, package: CatchUpPackage) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Surroundings:
    """What an orchestrator acts on besides its folder."""

    process: Process
    world: World
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    log: Callable[[str], None] = log
    reserve_bytes: int = RESERVE_BYTES
    """Room that is kept on the disk; 0 where it has no end."""


class Orchestrator:
    def __init__(self, settings: NodeSettings, surroundings: Surroundings | None = None) -> None:
        if surroundings is None:
            process = ReplicaProcess(settings.folder, settings.folder / "replica.log")
            surroundings = Surroundings(process, World())
        self.surroundings = surroundings
        self.log = surroundings.log
        settings.claim_data()
        self.records = LocalRegistry(
            settings.registry_path, writable=True, identity=settings.registry_identity
        )
        if self.records.damage:
            self.log(
                f"the registry store is no good ({self.records.damage}): goes on from version "
                f"{self.records.version}, and fetches the later ones again"
            )
        self.process = surroundings.process
        self.frozen = ""
        """Why this orchestrator acts no more; empty: it does."""
        world = surroundings.world
        self.lock = world.lock()
        self.disk = NodeDisk(settings, self.log, surroundings.reserve_bytes)
        self.replays = Replays(settings, world)
        self.promises = Promises(settings, world, self.disk.promise_room.give_back)
        self.checks = 0
        self.last_report = ""
        self._open(settings)
        self.releases.sweep()
        leftovers.sweep_replays(settings.data)

    def _open(self, settings: NodeSettings) -> None:
        """Make all that goes by the settings: also when another root key is trusted."""
        surroundings = self.surroundings
        self.settings = settings
        self._root_key_changed = False
        self.agent = self._agent(3.0, settings.nns_urls)
        self.replicator = RegistryReplicator(
            self.records, self.agent, settings.root_key, self._peer_orchestrators
        )
        self.trust = Trust(
            settings, self._agent(5.0, settings.nns_urls), self.log, self._note_new_root_key
        )
        self.key_maker = KeyMaker(settings, self.records)
        self.cups = CupProvider(settings, self.records, self._agent(1.5))
        self.attestor = Attestor(settings, self._agent(3.0), self.replays, self.promises)
        self.releases = Releases(
            settings, self.records, self._peer_orchestrators, self.log, surroundings.world
        )
        self.receiver = KeyReceiver(settings, self.records, self._agent(1.5), self.log)
        self.recovery = NnsRecovery(
            settings,
            self.records,
            self.cups,
            self.releases,
            self.replays,
            self.promises,
            lambda reason: self._act(StopReplica(reason)),
            self.log,
            self.trust.follow,
        )

    def _note_new_root_key(self) -> None:
        self._root_key_changed = True

    def _follow_root_key(self) -> None:
        """Look for a successor when the NNS shows nothing that the trusted key has signed."""
        if self.replicator.failures and self.checks % LOOK_FOR_SUCCESSOR_EVERY == 0:
            self.trust.look_for_successor(self._nns_orchestrators())
        if self._root_key_changed:
            self._act(StopReplica("another root key is trusted"))
            self._open(node_settings.load(self.settings.folder))

    def _nns_orchestrators(self) -> list[str]:
        try:
            members = self.records.view(self.records.nns(), self.records.version).members
        except ReprisError:
            return []
        return [self.records.orchestrator_url(m) for m in members if m != self.settings.node]

    def _agent(self, timeout_s: float, urls: Sequence[str] = ()) -> Agent:
        return Agent(
            urls, self.settings.root_key, timeout_s=timeout_s, world=self.surroundings.world
        )

    def subnet(self) -> SubnetId | None:
        """Return the subnet this node works for.

        That is the one the registry assigns it to, or the one that it has left but that still
        counts on it: until keys are shared among others, it goes on.
        """
        try:
            assigned = self.records.subnet_of(self.settings.node)
        except NotFound:
            return None
        if assigned is not None:
            return assigned
        local = self.cups.local()
        needed = local is not None and self.settings.node in local.holders
        return local.subnet if needed and local is not None else None

    def check(self) -> None:
        """One turn of the loop. Raises: OSError; what the disk refuses stands in the status."""
        with self.lock:
            if self.frozen:
                return
            with self.disk.noticing():
                self._check()
                self.disk.worked()

    def _check(self) -> None:
        self.checks += 1
        if self.checks % LOOK_AT_STORE_EVERY == 0:
            self._mend_store()
        try:
            self.replicator.poll()
        except Conflict as error:
            self.frozen = str(error)
            self.log(self.frozen)
            return
        self.recovery.step()
        self._follow_root_key()
        if self.checks % LOOK_AT_SHARES_EVERY == 0:
            self.receiver.step()
        for action in decide(self._facts()):
            self._act(action)

    def _mend_store(self) -> None:
        if self.records.mend():
            self.log("the registry store was damaged: written anew")

    def _peer_orchestrators(self) -> list[str]:
        subnet = self.subnet()
        if subnet is None:
            return []
        view = self.records.view(subnet, self.records.version)
        others = [m for m in view.members if m != self.settings.node]
        return [self.records.orchestrator_url(member) for member in others]

    def _facts(self) -> Facts:
        subnet = self.subnet()
        running = self.process.is_running()
        local = self.cups.local()
        if local is not None and subnet is not None and local.subnet != subnet:
            local = None  # of a subnet that this node left
        registry_cup = self.cups.registry(subnet) if subnet is not None else None
        peer_cup = None
        if subnet is not None and (local is None or self.checks % PEER_CUP_EVERY == 0):
            peer_cup = self.cups.peers(subnet, ask_all=local is None)
        facts = Facts(
            is_member=subnet is not None,
            local_cup=local,
            registry_cup=registry_cup,
            peer_cup=peer_cup,
            replica_running=running,
            running_version=self.process.version,
            running_cup_epoch=self.process.cup_epoch,
            running_run_start=self.process.run_start,
            wanted_version=None,
            wanted_is_here=False,
            recalled_versions=(),
            restart_not_before_ns=self.process.not_before_ns,
            now_ns=self.surroundings.monotonic_ns(),
        )
        chosen = choose_cup(facts)
        if subnet is None or chosen is None:
            return facts
        try:
            active = self.records.view(subnet, chosen.registry_version)
            latest = self.records.view(subnet, self.records.version)
        except (Unavailable, NotFound):
            return facts
        wanted = active.replica_version
        coming = latest.replica_version
        ahead = [wanted] if coming in (wanted, *latest.recalled_versions) else [wanted, coming]
        self.releases.prepare(ahead)
        return replace(
            facts,
            wanted_version=wanted,
            wanted_is_here=self.releases.has(wanted),
            recalled_versions=latest.recalled_versions,
        )

    def _act(self, action: Action) -> None:
        if isinstance(action, StoreCup):
            package = action.package
            self.log(
                f"stores CUP {package.height} ({'signed' if package.is_signed else 'registry'})"
            )
            former = self.cups.local()
            if former is not None and former.subnet != package.subnet:
                self._act(StopReplica("the node moves to another subnet"))
                self.replays.clear_state()
            self.cups.store(package)
        elif isinstance(action, StopReplica):
            self.log(f"stops the replica: {action.reason}")
            self.process.stop()
        elif isinstance(action, StartReplica):
            local = self.cups.local()
            if local is None:
                self._act(Report("the catch-up package can't be read back: it is stored again"))
                return
            self._mend_store()
            try:
                folder = self.releases.ready(action.version)
            except ReprisError as error:
                self._act(Report(str(error)))
                return
            self.disk.make_room()
            self.log(f"starts release {action.version[:12]} at CUP {local.height}")
            self.process.start(folder, action.version, local)
        elif action.text != self.last_report:
            self.last_report = action.text
            self.log(action.text)

    def attest(self, height: int) -> bytes:
        subnet = self.subnet()
        package = self.cups.local()
        if subnet is None or package is None:
            raise Unavailable("this node has no subnet or no CUP yet")
        view = self.records.view(subnet, package.registry_version)
        version = self.process.version or view.replica_version
        with self.disk.answering():
            return self.attestor.attest(subnet, height, self.releases.ready(version))

    def halt(self, order: bytes) -> dict[str, Any]:
        """Halt this node of the NNS on its operator's signed order."""
        with self.disk.answering():
            return self.recovery.halt(order, self.subnet(), self.attestor.agent)

    def status(self) -> dict[str, Any]:
        package = self.cups.local()
        return {
            "node_id": str(self.settings.node),
            "subnet_id": str(self.subnet()),
            "registry_version": self.records.version,
            "registry_certified_time_ns": self.replicator.certified_time_ns,
            "registry_failures": self.replicator.failures,
            "registry_error": self.replicator.last_error,
            "frozen": self.frozen,
            "disk_error": self.disk.problem,
            "replica_pid": self.process.pid,
            "replica_version": self.process.version,
            "replica_crashes": self.process.crashes,
            "replica_last_words": self.process.last_words,
            "releases": sorted(p.name for p in self.settings.releases.glob("?" * 64)),
            "release_error": self.releases.last_error,
            "cup_height": package.height if package else None,
            "cup_signed": package.is_signed if package else None,
        }

    def stop(self) -> None:
        with self.lock:
            self.process.stop()


__all__ = ["Orchestrator"]
