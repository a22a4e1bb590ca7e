"""How fast this machine is, compared with the kind of machine that absolute targets are for.

Two things make a virtual machine slow: its cores do less in a second of CPU time (which the loop
tells; it does what the simulator does most: heap, dictionaries, calls, short hashes), and its host
gives them to others meanwhile (which the kernel counts as stolen time). The loop goes by CPU time,
and runs before and after what is measured, never beside a swarm; stolen time is counted while it
is measured. Work of a single thread is better measured in CPU time itself.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

REFERENCE_S = 0.057
"""What one loop takes on the reference kind of machine (2 cores, x86-64 with SHA extensions):
derived from a program whose speed there is known, run side by side with the loop."""
STAT = Path("/proc/stat")


def loop() -> float:
    """Run the calibration loop once; return the CPU seconds it took."""
    began = time.thread_time()
    queue: list[tuple[int, int]] = []
    seen: dict[bytes, int] = {}
    for i in range(60_000):
        heapq.heappush(queue, ((i * 7919) % 10007, i))
        raw = blake2b(i.to_bytes(8, "big"), digest_size=16).digest()
        seen[raw] = seen.get(raw, 0) + len(raw)
        if i % 3:
            heapq.heappop(queue)
    return time.thread_time() - began


@dataclass(frozen=True)
class Ticks:
    """CPU time of the whole machine since it was started, in hundredths of a second."""

    total: int
    """Of all cores, idle or not."""
    stolen: int
    """Time in which a core was wanted and the host ran something else on it."""


def ticks(stat: Path = STAT) -> Ticks:
    """Read the kernel's counters (proc(5)); none where there is no such file."""
    if not stat.exists():
        return Ticks(0, 0)
    counts = [int(n) for n in stat.read_text().splitlines()[0].split()[1:9]]
    return Ticks(sum(counts), counts[7])


@dataclass
class Meter:
    """What the machine was like while something was measured."""

    loops: list[float] = field(default_factory=list)
    total: int = 0
    stolen: int = 0

    def calibrate(self, count: int = 3) -> None:
        self.loops += [loop() for _ in range(count)]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count stolen time, and nothing else: what is measured may keep all cores busy."""
        before = ticks()
        yield
        after = ticks()
        self.total += after.total - before.total
        self.stolen += after.stolen - before.stolen

    @property
    def stolen_share(self) -> float:
        """How much of the cores' time the host gave to others."""
        return self.stolen / max(self.total, 1)

    @property
    def slowness(self) -> float:
        """By how much slower than the reference the machine was."""
        return sum(self.loops) / len(self.loops) / REFERENCE_S / max(1 - self.stolen_share, 0.01)

    @property
    def note(self) -> str:
        text = f"machine {self.slowness:.2f} times slower than the reference"
        return f"{text}, {self.stolen_share:.0%} of its time stolen" if self.total else text
