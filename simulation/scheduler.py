"""Virtual time: events in a heap, ordered by time and then by when they were planned.

Nothing here or above reads a clock or a shared stream of random numbers: what looks random is
drawn by hashing a seed together with the name of what is decided, so that removing one fault from
a plan leaves every other draw as it was.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

MS = 1_000_000
SECOND = 1_000_000_000
GENESIS_NS = 1_600_000_000 * SECOND


def draw(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    raw = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") / 2**64


class Scheduler:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = GENESIS_NS
        self.events = 0
        self.counts: Counter[str] = Counter()
        """What happened how often: faults, and rare situations."""
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._trace = blake2b(digest_size=16)

    def at(self, time_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        self._planned += 1
        heapq.heappush(self._queue, (time_ns, self._planned, action, arguments))

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Run events until a condition holds; False when virtual time runs out first."""
        end, queue, pop = self.now + limit_ns, self._queue, heapq.heappop
        while queue and queue[0][0] <= end:
            time, _, action, arguments = pop(queue)
            if time > self.now:
                self.now = time
            self.events += 1
            action(*arguments)
            if not self.events % 32 and until():
                return True
        self.now = max(self.now, end) if not until() else self.now
        return until()

    def note(self, text: str) -> None:
        """Add to the trace that determinism is judged by."""
        self._trace.update(f"{self.now} {text}\n".encode())

    def trace(self) -> str:
        return self._trace.hexdigest()
