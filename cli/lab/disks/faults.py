"""System calls of one process that fail: the n-th of a kind, with an error of the disk.

strace takes hold of a running process, or of one that has just been started, lets one call fail and
lets go. A node that ends because of it is started again by its caretaker, unharmed by strace.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cli.lab.disks.cases import Case, Step, Work, series
from cli.lab.disks.image import Image
from cli.lab.disks.stand import Stand
from cli.lab.layout import NodeEntry
from replica.protocol.errors import Unavailable

MET_S_MAX = 40.0
LOAD_S = 2.0
MARK = "(INJECTED)"
POOL = "data/pool-*.journal"


class Fault(NamedTuple):
    process: str
    """replica or orchestrator."""
    calls: str
    error: str
    nth: int
    """Of these calls of a thread, from 1 on."""
    path: str = ""
    """Only calls on files like this one; empty: on any."""
    when_started: bool = False
    """The process is killed, and the one that follows meets the fault."""

    @property
    def name(self) -> str:
        when = ", starting" if self.when_started else ""
        where = f" of {Path(self.path).name}" if self.path else ""
        call = self.calls.split(",")[0]
        return f"{self.process}{when}: {call}{where} {self.nth}: {self.error}"


RENAME, LINK = "rename,renameat,renameat2", "link,linkat"
FAULTS = (
    Fault("replica", "fdatasync", "EIO", 1),
    Fault("replica", "write", "ENOSPC", 2, POOL),
    Fault("orchestrator", RENAME, "EROFS", 1, when_started=True),
    Fault("replica", "fsync", "EIO", 1),
    Fault("replica", RENAME, "ENOSPC", 2),
    Fault("replica", "pwrite64", "EIO", 2),
    Fault("replica", "fsync", "EIO", 1, when_started=True),
    Fault("replica", LINK, "EIO", 1),
    Fault("replica", "fdatasync", "ENOSPC", 5),
    Fault("orchestrator", "fsync", "EIO", 1, when_started=True),
    Fault("replica", "write", "EIO", 7, POOL),
    Fault("replica", "fsync", "ENOSPC", 4),
    Fault("replica", RENAME, "EIO", 1),
    Fault("replica", "pwrite64", "ENOSPC", 5),
    Fault("replica", LINK, "EROFS", 2),
    Fault("replica", RENAME, "ENOSPC", 1, when_started=True),
    Fault("orchestrator", "fsync", "ENOSPC", 2, when_started=True),
    Fault("replica", "write", "EROFS", 4, POOL),
    Fault("replica", "pwrite64", "EROFS", 1),
    Fault("replica", RENAME, "EROFS", 3),
)
"""So ordered that the first few are of many kinds."""


def injected(work: Work, first: int, count: int) -> Iterator[Case]:
    """Have one node after another meet a fault, while the swarm runs under load."""
    todo: list[Step] = []
    for number in range(first, first + count):
        fault = FAULTS[number % len(FAULTS)]
        todo.append((f"app-{number % 4} {fault.name}", partial(_meet, fault, number % 4)))
    return series("fault", work, todo)


def _meet(fault: Fault, index: int, stand: Stand, _: Image | None, case: Case) -> None:
    node = stand.swarm.app.nodes[index]
    stand.load()
    stand.wait_for_entries()
    stand.look_for(LOAD_S)
    pid, at = _victim(fault, node, stand), stand.folder.parent / "strace.out"
    with open(at, "w") as output:
        tracer = subprocess.Popen(
            _strace(fault, node, pid), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        stand.wait_for(f"{fault.name} to be met", lambda: MARK in at.read_text(), MET_S_MAX)
    finally:
        _let_go(tracer)
    stand.look()
    case.healthy_after_s = round(stand.wait_healthy(), 1)
    times = at.read_text().count(MARK)
    now = stand.replica(node) if fault.process == "replica" else stand.orchestrator(node)
    case.note = f"met {times} times; " + ("ran on" if now == pid else "started anew")
    stand.wait_for_entries()
    stand.verify()


def _strace(fault: Fault, node: NodeEntry, pid: int) -> list[str]:
    fail = f"inject={fault.calls}:error={fault.error}:when={fault.nth}"
    paths = sorted(node.folder.glob(fault.path)) if fault.path else []
    only = [part for path in paths for part in ("-P", str(path))]
    return ["strace", "-f", "-p", str(pid), "-e", f"trace={fault.calls}", "-e", fail, *only]


def _victim(fault: Fault, node: NodeEntry, stand: Stand) -> int:
    """Return the process that shall meet a fault. Raises: Unavailable."""
    find = stand.replica if fault.process == "replica" else stand.orchestrator
    before = find(node)
    if before is None:
        raise Unavailable(f"{node.name} has no {fault.process}")
    if not fault.when_started:
        return before
    os.kill(before, signal.SIGKILL)
    stand.wait_for(f"another {fault.process}", lambda: find(node) not in (None, before), 20)
    return find(node) or before


def _let_go(tracer: subprocess.Popen[bytes]) -> None:
    """End strace: what it holds goes on."""
    tracer.terminate()
    try:
        tracer.wait(5)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()
