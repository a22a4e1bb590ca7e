"""One simulated machine: its folder, which outlasts its processes, its disk, clock and power."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from replica.protocol.errors import MachineFault, Unavailable
from replica.runtime import settings as node_settings
from replica.runtime.space import Space
from simulation.checker import Violation
from simulation.scheduler import draw
from simulation.system.database import Database
from simulation.system.disk import Disk, PowerLost, Tree
from simulation.system.processes import OrchestratorProcess, Process, ReplicaProcess
from simulation.system.sockets import OPERATOR

if TYPE_CHECKING:
    from simulation.system.swarm import System

SPACE_BYTES = 1 << 40
SEEN_FULL = 0.5
"""How many replicas see that their disk is full before they write to it."""


class Machine:
    def __init__(self, system: System, index: int, folder: Path) -> None:
        self.system, self.index, self.folder = system, index, folder
        self.settings = node_settings.load(folder)
        self.node = self.settings.node
        self.name = folder.name
        self.held = True
        self.paused = False
        self.torn = False
        """The replica's next step is cut short by a crash."""
        self.full_disk = False
        self.skew_ns = 0
        self.disk = Disk(folder, lambda *key: draw(system.seed, "disk", index, system.now, *key))
        self.syncs_left: int | None = None
        """So many more syncs, and the power is cut; None: it isn't."""
        self.sync_ns = 0
        """How long the replica has to wait for a sync, on a slow disk."""
        self.syncs = 0
        self._remains: Tree | None = None
        self._diverges = False
        self.has_lost_power = False
        """Since somebody was at the machine."""
        self.database = Database(lambda *key: draw(system.seed, "database", index, *key))
        system.disks.add(self.disk, self._before_sync)
        system.databases.add(folder, self.database)
        self.orchestrator: OrchestratorProcess | None = None
        self.replica: ReplicaProcess | None = None

    def now_ns(self) -> int:
        """What this machine's clock shows."""
        return self.system.now + self.skew_ns

    def entropy(self, count: int) -> bytes:
        return self.system.entropy(self.name, count)

    def start(self) -> None:
        self.held = False
        self.disk.goes_astray = False
        if self.orchestrator is None:
            self.orchestrator = OrchestratorProcess(self)

    def kill_orchestrator(self) -> None:
        """Its replica ends with it, as with a real one."""
        if self.orchestrator is not None:
            self.orchestrator.kill()
            self.orchestrator = None
        if self.replica is not None:
            self.replica.end("its orchestrator is gone")

    def diverge(self) -> None:
        """Have the replica compute another state, once, a few heights from now."""
        real = self.replica.real if self.replica is not None else None
        if real is None:
            return
        height, epoch = real.state.latest_height + 4, real.driver.chain.cup.epoch
        fault = {"diverge_at_height": height, "epoch": epoch, "salt": self.name}
        self.settings.fault_path.write_text(json.dumps(fault))
        self._diverges = True

    def diverged(self) -> None:
        """The replica found that others certified another state."""
        self.system.counts["diverged nodes"] += 1
        if self._diverges:
            self.settings.fault_path.unlink()
            self._diverges = False

    def settle(self) -> None:
        """Somebody is at the machine: what lies on its disk now is there to stay."""
        self.disk.settle()
        self.has_lost_power = False

    def space(self) -> Space:
        """What the replica sees when it looks at its disk: some fill up before it does."""
        is_seen = self.full_disk and draw(self.system.seed, "seen full", self.index) < SEEN_FULL
        return Space(0 if is_seen else SPACE_BYTES // 2, SPACE_BYTES)

    def check_disk_error(self, error: BaseException) -> None:
        """Raises: Violation for an error of the disk that is no fault of the disk's."""
        if isinstance(error, MachineFault):
            error = error.__cause__ or error
            if not isinstance(error, OSError) and not self.database.failures:
                raise Violation(f"{self.name}: its database fails without a fault: {error}")
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise Violation(f"{self.name}: two of its processes or threads collide: {error}")

    def _before_sync(self) -> None:
        """Cut the power, if it is time.

        Raises: PowerLost; OSError while the disk is full; Unavailable instead of either for a
        person who works at the machine, and will try again.
        """
        actor = self.system.fibers.actor
        if isinstance(actor, Process):
            actor.before_sync()
        if self.full_disk:
            if actor == OPERATOR:
                raise Unavailable(f"the disk of {self.name} is full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.syncs += 1
        if self.syncs_left is not None:
            self.syncs_left -= 1
            if self.syncs_left < 0:
                self.syncs_left = None
                self._remains = self.disk.remains()
                self.system.at(self.system.now, self._come_back)
        if self._remains is not None:
            if actor == OPERATOR:
                raise Unavailable(f"{self.name} lost its power")
            raise PowerLost

    def _come_back(self) -> None:
        remains, self._remains = self._remains, None
        assert remains is not None
        was_held = self.held
        self.system.log(self, "machine", f"lost power, and {dict(self.disk.lost)}")
        self.hold()
        self.disk.become(remains)
        self.has_lost_power = True
        if not was_held:
            self.start()

    def hold(self) -> None:
        self.held = True
        self.kill_orchestrator()
