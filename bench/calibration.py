"""How fast this machine is, compared with the kind of machine that absolute targets are for.

The loop does what the simulator does most: heap, dictionaries, calls, short hashes. It runs before
and after (and, for long measurements, during) what is measured, because virtual machines share
their cores with others.
"""

from __future__ import annotations

import heapq
import time
from hashlib import blake2b

REFERENCE_S = 0.057
"""What one loop takes on the reference kind of machine (2 cores, x86-64 with SHA extensions):
derived from a program whose speed there is known, run side by side with the loop."""


def loop() -> float:
    """Run the calibration loop once; return the seconds it took."""
    began = time.perf_counter()
    queue: list[tuple[int, int]] = []
    seen: dict[bytes, int] = {}
    for i in range(60_000):
        heapq.heappush(queue, ((i * 7919) % 10007, i))
        raw = blake2b(i.to_bytes(8, "big"), digest_size=16).digest()
        seen[raw] = seen.get(raw, 0) + len(raw)
        if i % 3:
            heapq.heappop(queue)
    return time.perf_counter() - began


def slowness(loops: list[float]) -> float:
    """Return by how much slower than the reference this machine was: the loops' mean."""
    return sum(loops) / len(loops) / REFERENCE_S
