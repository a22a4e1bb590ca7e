"""Consensus on real processes over loopback: 4 nodes, real signatures, this machine's cores."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import pysyncobj_peer
from bench.calibration import Meter
from bench.swarm import heights, running
from bench.table import Row
from cli.lab import swarm as lab
from cli.lab import workload
from cli.lab.ground import Ground
from cli.lab.layout import Swarm
from replica.client.agent import Agent
from replica.protocol import certificate
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import ReprisError
from replica.protocol.hashing import leb128_decode

EMPTY_S, LATENCY_COUNT = 15.0, 40
WARM_UP_S, LOAD_S, REST_S = 4.0, 30.0, 5.0
"""Load of `WARM_UP_S` fills the pipeline; what is certified in the `LOAD_S` after it counts; the
load goes on until that was read."""
REQUESTS = 100_000


def run(say: Callable[[str], None]) -> list[Row]:
    options = lab.Options(nns_notary_delay_ms=1000)
    machine, empty, single, load, raft = Meter(), Meter(), Meter(), Meter(), Meter()
    machine.calibrate()
    say(f"4 application nodes, notary delay {options.notary_delay_ms} ms")
    with running(options) as swarm:
        probe = Agent([], swarm.root_key, timeout_s=2.0)
        with empty.counting():
            rate = _empty_rounds(swarm, probe)
        say("latency of single updates")
        with single.counting():
            latencies = _latencies(swarm)
        say(f"signed updates over HTTP for {LOAD_S:.0f} s")
        updates, shares = _signed_updates(swarm, load, say)
    machine.calibrate()
    say("PySyncObj, 3 processes")
    with raft.counting():
        peer = pysyncobj_peer.measure(10.0, Ground().free_ports(3))
    machine.calibrate()
    # Loops run beside a swarm, which keeps all cores busy, would say too much for it.
    for meter in (empty, single, load, raft):
        meter.loops = machine.loops
    return [
        _row(
            "empty_rounds",
            rate,
            "rounds/s",
            8,
            empty.slowness,
            f"notary delay {options.notary_delay_ms} ms; {empty.note}",
        ),
        Row(
            "signed_updates",
            round(updates, 1),
            "updates/s",
            "PySyncObj commands/s",
            round(peer, 1),
            round(updates / peer, 3),
            f"1500 / {load.slowness:.2f}",
            updates * load.slowness >= 1500,
            f"{load.note}; {shares}; peer: {raft.note}",
        ),
        Row("latency_p50", round(latencies[len(latencies) // 2], 3), "s", note=single.note),
        Row("latency_p99", round(latencies[int(len(latencies) * 0.99)], 3), "s", note=single.note),
    ]


def _row(name: str, value: float, unit: str, target: float, slow: float, note: str) -> Row:
    return Row(
        name,
        round(value, 2),
        unit,
        target=f"{target:g} / {slow:.2f}",
        met=value * slow >= target,
        note=note,
    )


def _empty_rounds(swarm: Swarm, probe: Agent) -> float:
    time.sleep(3)
    before, began = max(heights(swarm, probe)), time.monotonic()
    time.sleep(EMPTY_S)
    return (max(heights(swarm, probe)) - before) / (time.monotonic() - began)


def _latencies(swarm: Swarm) -> list[float]:
    """Return how long single updates took from being sent to being certified, ascending."""
    writer = workload.Writer(swarm, Ed25519Key(secrets.token_bytes(32)))
    writer.start()
    taken: list[float] = []
    seen, last = 0, time.monotonic()
    end = last + 60
    while len(taken) < LATENCY_COUNT and time.monotonic() < end:
        if writer.count > seen:
            now = time.monotonic()
            taken.append((now - last) / (writer.count - seen))
            seen, last = writer.count, now
        time.sleep(0.002)
    writer.stop()
    return sorted(taken)


def _signed_updates(swarm: Swarm, meter: Meter, say: Callable[[str], None]) -> tuple[float, str]:
    """Return certified updates a second over the whole time, and where the time went."""
    plan = swarm.folder / "load.json"
    plain = {
        "urls": swarm.app.urls,
        "canister": str(swarm.journal),
        "seed": secrets.token_bytes(32).hex(),
        "count": REQUESTS,
        "seconds": WARM_UP_S + LOAD_S + REST_S,
        "connections": 8,
    }
    plan.write_text(json.dumps(plain))
    client = subprocess.Popen(
        [sys.executable, "-m", "bench.load", str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdout.readline()
        client.stdin.write("\n")
        client.stdin.flush()
        time.sleep(WARM_UP_S)
        clock = _CpuClock(swarm)
        before, began = _certified_entries(swarm)
        answer: list[str] = []
        reading = threading.Thread(target=lambda: answer.append(client.stdout.readline()))  # type: ignore[union-attr]
        reading.start()
        with meter.counting():
            time.sleep(LOAD_S)
        after, ended = _certified_entries(swarm)
        seconds = (ended - began) / 1e9
        shares = clock.shares(seconds, after - before)
        reading.join(30)
        say(f"HTTP answers: {answer[0].strip() if answer else 'none'}")
        return (after - before) / seconds, shares
    finally:
        client.kill()
        client.wait()


def _certified_entries(swarm: Swarm) -> tuple[int, int]:
    """Return how many entries a certified state has (queries run on it), and its time in ns.

    Rates go by that time: an answer may be late when the nodes are busy.
    """
    agent = swarm.agent(swarm.app)
    while True:
        try:
            raw = agent.query(swarm.journal, "status", workload.encode("status"))
        except ReprisError:
            time.sleep(0.1)
            continue
        status = workload.decode("status", raw)
        verified = certificate.verify(status["certificate"], swarm.root_key, swarm.journal)
        return int(status["length"]), leb128_decode(verified.leaf(b"time") or b"\0")


class _CpuClock:
    """CPU seconds of the application's replicas, from the kernel."""

    def __init__(self, swarm: Swarm) -> None:
        self._pids = [p for n in swarm.app.nodes for p in _replica_pids(str(n.folder))]
        self._start = self._total()

    def _total(self) -> float:
        total = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / 100

    def shares(self, seconds: float, updates: int) -> str:
        used = self._total() - self._start
        each = used / max(1, updates) / len(self._pids) * 1e3
        return f"replicas used {used / seconds:.2f} cores, {each:.2f} ms CPU an update and replica"


def _replica_pids(folder: str) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                command = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"replica" in command and folder.encode() in command:
                found.append(int(path.name))
    return found
