"""Crash drills: one kill -9 in every phase, the victim rotating over all processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from replica.protocol.errors import ReprisError

if TYPE_CHECKING:
    from cli.lab.drill import Drill


STRIKE_S = 0.15


class Killer:
    """Strikes once a phase; `kills` tells whom."""

    def __init__(self, offset: int) -> None:
        self.turn = offset
        self.drill: Drill | None = None
        self.kills: list[str] = []

    def strike(self, phase: str) -> None:
        """Kill the next victim shortly into a phase; some phases are over in no time."""
        if self.drill is not None and phase not in ("swarm up", "verify"):
            threading.Timer(STRIKE_S, self._kill, [phase]).start()

    def _kill(self, phase: str) -> None:
        """Kill the next process that is up; one that is down (a wiped node) is passed over."""
        drill = self.drill
        assert drill is not None
        for _ in range(2 * len(drill.swarm.nodes)):
            if self._kill_next(phase):
                return

    def _kill_next(self, phase: str) -> bool:
        assert self.drill is not None
        nodes = self.drill.swarm.nodes
        node = nodes[self.turn % len(nodes)]
        is_orchestrator = (self.turn // len(nodes)) % 2 == 1
        self.turn += 1
        what = "orchestrator" if is_orchestrator else "replica"
        try:
            if is_orchestrator:
                pid = self.drill.supervisor.pid(node.folder)
            else:
                pid = self.drill.probe.orchestrator_status(node.orchestrator_url)["replica_pid"]
            if not pid:
                return False
            os.kill(pid, signal.SIGKILL)
        except (ReprisError, ProcessLookupError):
            return False
        self.kills.append(f"{phase}: {what} of {node.name}")
        return True

    def operator(self, *arguments: str) -> None:
        """Start a command as the operator would, and kill -9 it halfway; it is simply run again."""
        drill = self.drill
        assert drill is not None
        command = [sys.executable, "-m", "cli.main", *arguments, "--swarm", str(drill.folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(0.9)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.kills.append(f"the operator's `reprise {' '.join(arguments[:3])}`")
