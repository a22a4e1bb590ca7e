"""The peer: PySyncObj (Raft: crash faults only, nothing signed) over three processes.

`python -m bench.pysyncobj_peer INDEX SECONDS PORT...`: one node; the first one is the client, and
prints how many commands a second were committed, of the size of ours.
"""

from __future__ import annotations

import subprocess
import sys
import time

from pysyncobj import SyncObj, SyncObjConf, replicated

COMMAND_BYTES = 300
"""About what one of our signed updates takes in a block."""
IN_FLIGHT_MAX = 400


class Journal(SyncObj):  # type: ignore[misc]
    def __init__(self, own: str, others: list[str]) -> None:
        conf = SyncObjConf(
            appendEntriesUseBatch=True, commandsQueueSize=100_000, dynamicMembershipChange=False
        )
        super().__init__(own, others, conf)
        self.entries: list[bytes] = []

    @replicated  # type: ignore[untyped-decorator]
    def append(self, entry: bytes) -> int:
        self.entries.append(entry)
        return len(self.entries)


def node(index: int, seconds: float, ports: list[int]) -> None:
    names = [f"127.0.0.1:{p}" for p in ports]
    journal = Journal(names[index], [n for n in names if n != names[index]])
    started = time.monotonic()
    while journal._getLeader() is None and time.monotonic() - started < 30:
        time.sleep(0.05)
    if index != 0:
        time.sleep(seconds + 20)
        return
    time.sleep(1)
    done = [0, 0]

    def committed(_result: object, error: object) -> None:
        done[0] += error == 0
        done[1] += 1

    sent, entry = 0, bytes(COMMAND_BYTES)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if sent - done[1] < IN_FLIGHT_MAX:
            journal.append(entry, callback=committed)
            sent += 1
        else:
            time.sleep(0.0005)
    print(done[0] / (time.monotonic() - began), flush=True)


def measure(seconds: float, ports: list[int]) -> float:
    """Return commands committed a second."""
    command = [sys.executable, "-m", "bench.pysyncobj_peer"]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(seconds), *map(str, ports)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i in range(3)
    ]
    try:
        out, _ = processes[0].communicate(timeout=seconds + 60)
        return float(out.strip())
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    node(int(sys.argv[1]), float(sys.argv[2]), [int(p) for p in sys.argv[3:]])
