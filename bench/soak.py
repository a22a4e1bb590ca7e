"""Thirteen nodes on one machine for ten minutes: they go on, and their memory does not grow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from bench.calibration import Meter
from bench.swarm import heights, running
from bench.table import Row
from cli.lab import swarm as lab
from replica.client.agent import Agent

NODES = 13
MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))


def run(say: Callable[[str], None]) -> list[Row]:
    options = lab.Options(
        app_nodes=NODES,
        nns_notary_delay_ms=1000,
        notary_delay_ms=400,
        unit_delay_ms=3000,
        poll_ms=1500,
        stall_limit_ms=60_000,
    )
    meter = Meter()
    meter.calibrate()
    with running(options) as swarm, meter.counting():
        probe = Agent([], swarm.root_key, timeout_s=8.0)
        began, first = time.monotonic(), max(heights(swarm, probe))
        memory: dict[int, int] = {}
        for minute in range(1, int(MINUTES) + 1):
            time.sleep(max(0.0, began + 60 * minute - time.monotonic()))
            memory[minute] = sum(heights(swarm, probe, "resident_bytes"))
            height = max(heights(swarm, probe, "certified_height"))
            say(f"minute {minute}: certified {height}, {memory[minute] >> 20} MiB in all")
        rate = (max(heights(swarm, probe)) - first) / (time.monotonic() - began)
    meter.calibrate()
    slow = meter.slowness
    early, late = memory[min(2, len(memory))], memory[len(memory)]
    return [
        Row(
            "soak_rounds",
            round(rate, 2),
            "rounds/s",
            target=f"0.3 / {slow:.2f}",
            met=rate * slow >= 0.3,
            note=f"{NODES} nodes, {MINUTES:.0f} minutes; {meter.note}",
        ),
        Row(
            "soak_memory",
            round(late / NODES / (1 << 20), 1),
            "MiB a node",
            "minute 2",
            round(early / NODES / (1 << 20), 1),
            round(late / early, 3),
            "ratio <= 1.1",
            late <= 1.1 * early,
        ),
    ]
