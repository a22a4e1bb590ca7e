"""The replica as a child process: started from a release's folder, stopped gently then firmly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from replica.protocol.cup import CatchUpPackage

STOP_S_MAX = 5.0
BACKOFF_NS_MIN, BACKOFF_NS_MAX = 500_000_000, 30_000_000_000
FAULT_EXIT = 87
"""Exit status of a replica whose disk, database or memory failed (`replica.node`)."""
FAULT_BACKOFF_NS_MAX = 5_000_000_000
"""It heals by starting anew, once the disk does: that must not have to wait."""
HEALTHY_NS = 20_000_000_000
"""A replica that ran this long is not in a crash loop."""
LAST_WORDS_BYTES_MAX = 1024


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_WORDS_BYTES_MAX))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class CrashLoop:
    """How often a replica crashed in a row, and when it may be started again."""

    crashes = 0
    not_before_ns = 0
    last_words = ""
    """The last line that the replica which crashed last had logged."""

    def note(self, lived_ns: int, now_ns: int, *, is_fault: bool = False) -> None:
        """It ended by itself after it had run so long. `is_fault`: its machine's, not its own."""
        self.crashes = 1 if lived_ns > HEALTHY_NS else self.crashes + 1
        longest = FAULT_BACKOFF_NS_MAX if is_fault else BACKOFF_NS_MAX
        pause = min(BACKOFF_NS_MIN << min(self.crashes - 1, 10), longest)
        self.not_before_ns = now_ns if self.crashes == 1 else now_ns + pause


class ReplicaProcess(CrashLoop):
    def __init__(self, node_folder: Path, log_path: Path) -> None:
        self.node_folder, self.log_path = node_folder, log_path
        self._process: subprocess.Popen[bytes] | None = None
        self.version: str | None = None
        self.cup_epoch: int | None = None
        self.run_start: int | None = None
        self._started_ns = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def is_running(self) -> bool:
        """Look at the child; note a crash and when it may be started again."""
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None:
            return True
        now = time.monotonic_ns()
        self.note(now - self._started_ns, now, is_fault=status == FAULT_EXIT)
        self.last_words = _last_line(self.log_path)
        self._process = self.version = self.cup_epoch = self.run_start = None
        return False

    def start(self, release_folder: Path, version: str, package: CatchUpPackage) -> None:
        """Start a release from its folder; `package` is the catch-up package that it reads."""
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(release_folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with open(self.log_path, "ab") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "replica",
                    "run",
                    "--node",
                    str(self.node_folder),
                    "--replica-version",
                    version,
                ],
                cwd=release_folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )
        self.version, self.cup_epoch = version, package.epoch
        self.run_start = package.run_start
        self._started_ns = time.monotonic_ns()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        process, self._process = self._process, None
        self.version = self.cup_epoch = self.run_start = None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
