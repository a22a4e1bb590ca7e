"""Keeps a swarm's orchestrators running, as an init system would, and serves its releases.

Runs inside a drill, or on its own: `python -m cli.lab.supervisor FOLDER`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from cli.lab.layout import Swarm
from cli.lab.mirror import Mirror

RESTART_S = 0.3
STOP_S_MAX = 8.0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Supervisor:
    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._held: set[Path] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        for folder in self.folders:
            self._spawn(folder)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _spawn(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with open(folder / "orchestrator.log", "ab") as output:
            self._processes[folder] = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "--node", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                preexec_fn=_die_with_parent if threading.main_thread() else None,
            )

    def _watch(self) -> None:
        while not self._stopping.wait(RESTART_S):
            with self._lock:
                for folder, process in list(self._processes.items()):
                    if process.poll() is not None and folder not in self._held:
                        self._spawn(folder)

    def pid(self, folder: Path) -> int:
        return self._processes[folder].pid

    def hold(self, folder: Path) -> None:
        """Stop one node's orchestrator (and its replica) and leave it down."""
        with self._lock:
            self._held.add(folder)
            self._end(self._processes[folder])

    def kill(self, folder: Path) -> None:
        """Kill one node's orchestrator, as when its machine goes, and leave it down."""
        with self._lock:
            self._held.add(folder)
            self._processes[folder].kill()
            self._processes[folder].wait()

    def release(self, folder: Path) -> None:
        with self._lock:
            self._held.discard(folder)
            self._spawn(folder)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            for process in self._processes.values():
                if process.poll() is None:
                    process.terminate()
            for process in self._processes.values():
                self._end(process)


def main() -> None:
    folder = Path(sys.argv[1])
    supervisor = Supervisor(sorted(p for p in (folder / "nodes").iterdir() if p.is_dir()))
    swarm = Swarm.load(folder)
    mirror = Mirror(swarm.published, swarm.mirror_port)
    mirror.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    supervisor.start()
    (folder / "supervisor.pid").write_text(str(os.getpid()))
    while not stop.wait(0.5):
        pass
    supervisor.stop()
    mirror.stop()
    (folder / "supervisor.pid").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
