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


class Killer:
    """Strikes once a phase; `kills` tells whom."""

    def __init__(self, offset: int) -> None:
        self.turn = offset
        self.drill: Drill | None = None
        self.kills: list[str] = []

    def strike(self, phase: str) -> None:
        """Kill the next victim half a second into a phase."""
        if self.drill is not None and phase not in ("swarm up", "verify"):
            threading.Timer(0.5, self._kill, [phase]).start()

    def _kill(self, phase: str) -> None:
        drill = self.drill
        assert drill is not None
        nodes = drill.swarm.nodes
        node = nodes[self.turn % len(nodes)]
        orchestrator = (self.turn // len(nodes)) % 2 == 1
        self.turn += 1
        try:
            if orchestrator:
                pid, what = drill.supervisor.pid(node.folder), "orchestrator"
            else:
                status = drill.probe._get(node.orchestrator_url, "/status").json()
                pid, what = status["replica_pid"], "replica"
            if pid:
                os.kill(pid, signal.SIGKILL)
                self.kills.append(f"{phase}: {what} of {node.name}")
        except (ReprisError, ProcessLookupError):
            self.kills.append(f"{phase}: {node.name} was down already")

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
