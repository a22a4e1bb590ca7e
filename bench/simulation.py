"""How many rounds a second of CPU time the simulator makes: pools, codecs and 1 KiB blocks on."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from bench.calibration import Meter
from bench.table import Row
from simulation.plan import Plan
from simulation.scheduler import GENESIS_NS, SECOND
from simulation.subnet import World

SLICES = 5
CASES = (
    # name, nodes, real BLS, rounds a slice, target in rounds/s on the reference kind of machine
    ("sim_rounds_4", 4, False, 60, 200),
    ("sim_rounds_13", 13, False, 12, 40),
    ("sim_rounds_4_bls", 4, True, 20, 25),
    ("sim_rounds_13_bls", 13, True, 5, 10),
)


def run(say: Callable[[str], None]) -> list[Row]:
    rows = []
    for name, nodes, real_bls, rounds, target in CASES:
        say(f"{name}: {SLICES} x {rounds} rounds")
        rows.append(_measure(name, nodes, real_bls, rounds, target))
    return rows


def _measure(name: str, nodes: int, real_bls: bool, rounds: int, target: int) -> Row:
    world = World(
        1, Plan(nodes=nodes, interval=49, payload_bytes=1024, step_us=2000, real_bls=real_bls)
    )
    gc.collect()
    gc.freeze()
    gc.disable()  # as in campaigns, which collect between seeds
    meter, seconds, height = Meter(), 0.0, 0
    meter.calibrate(1)
    try:
        for i in range(1, SLICES + 1):
            goal = i * rounds
            began = time.thread_time()
            world.run(lambda goal=goal: world.finalized_height() >= goal, 3600 * SECOND)  # type: ignore[misc]
            seconds += time.thread_time() - began
            height = world.finalized_height()
            meter.calibrate(2)
    finally:
        gc.enable()
        gc.unfreeze()
    rate, slow = height / seconds, meter.slowness
    virtual = (world.now - GENESIS_NS) / 1e9
    return Row(
        name=name,
        value=round(rate, 1),
        unit="rounds/s",
        peer="real time",
        peer_value=round(height / virtual, 1),
        ratio=round(rate / (height / virtual), 2),
        target=f"{target} / {slow:.2f}",
        met=rate * slow >= target,
        note=f"a CPU second; {meter.note}; scaled {rate * slow:.1f}",
    )
