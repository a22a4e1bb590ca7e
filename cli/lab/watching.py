"""What a drill sees of some nodes over a while: heights, memory, folders, processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.lab.drill import Drill
from cli.lab.layout import NodeEntry, SubnetEntry
from cli.recovery import detect, flooders
from replica.protocol.errors import ReprisError

LOOK_S = 0.5


def folder_bytes(folder: Path) -> int:
    """Return what a folder takes on its disk; what has several names is counted once."""
    sizes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(Path(parent, name))
            except FileNotFoundError:
                continue  # a replica renames and removes files all the time
            sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


@dataclass
class Watch:
    """What was seen of nodes between two times."""

    seconds: float = 0.0
    blocks: int = 0
    """Heights that were certified."""
    standstill_s: float = 0.0
    """The longest time in which none was."""
    resident_bytes: int = 0
    """The most that one replica had."""
    grown_bytes: int = 0
    """Between the smallest and the largest that all their folders were together."""
    restarts: int = 0
    named: dict[str, int] = field(default_factory=dict)
    """Who floods, and how many nodes say so."""

    @property
    def rate(self) -> float:
        return self.blocks / self.seconds if self.seconds else 0.0


class _Seen:
    """Collects what single looks show."""

    def __init__(self, drill: Drill, subnet: SubnetEntry, nodes: Sequence[NodeEntry]) -> None:
        self.drill, self.subnet, self.nodes = drill, subnet, nodes
        self.first = detect.look(subnet, drill.probe)
        self.last = self.first
        self.began_s = self.moved_s = drill.now_s()
        self.start = self.height = detect.certified_height(self.first)
        self.watch = Watch()
        self.sizes: list[int] = []
        self.pids: dict[str, set[int]] = {node.name: set() for node in nodes}

    def look(self) -> None:
        drill, watch = self.drill, self.watch
        now_s = drill.now_s()
        found = detect.look(self.subnet, drill.probe)
        if any(r.status for r in found):
            self.last = found
        height = detect.certified_height(found)
        watch.standstill_s = max(watch.standstill_s, now_s - self.moved_s)
        if height > self.height:
            self.height, self.moved_s = height, now_s
        memory = [r.status["resident_bytes"] for r in found if r.status]
        watch.resident_bytes = max([watch.resident_bytes, *memory])
        self.sizes.append(sum(folder_bytes(n.folder) for n in self.nodes))
        for node in self.nodes:
            self.pids[node.name].update(_pid(drill, node))

    def result(self) -> Watch:
        watch = self.watch
        watch.seconds = self.drill.now_s() - self.began_s
        watch.blocks = self.height - self.start
        watch.grown_bytes = max(self.sizes) - min(self.sizes)
        watch.restarts = sum(max(0, len(pids) - 1) for pids in self.pids.values())
        found = flooders.flooders(self.first, self.last)
        watch.named = {f.name: len(f.told_by) for f in found}
        return watch


def _pid(drill: Drill, node: NodeEntry) -> list[int]:
    try:
        pid = drill.probe.orchestrator_status(node.orchestrator_url)["replica_pid"]
    except ReprisError:
        return []  # it is busy; another look will tell
    return [pid] if pid is not None else []


def watch(
    drill: Drill, subnet: SubnetEntry, nodes: Sequence[NodeEntry], is_over: Callable[[], bool]
) -> Watch:
    """Look at a subnet until it is over. `nodes`: whose folders and processes count."""
    seen = _Seen(drill, subnet, nodes)
    while not is_over():
        seen.look()
        drill.world.pause(LOOK_S)
    seen.look()
    return seen.result()
