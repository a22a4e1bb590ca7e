"""Random bytes over the databases of running replicas: of one node, of another, of both at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial

from cli.lab import workload
from cli.lab.disks.cases import Case, Step, Work, series
from cli.lab.disks.image import Image
from cli.lab.disks.stand import Stand
from cli.lab.layout import NodeEntry
from replica.protocol.errors import NotVerified

VICTIMS: tuple[tuple[int, ...], ...] = ((2,), (1,), (1, 2))
PAGE_BYTES = 4096
SPARED_PAGES = 5
"""The schema is there: what rots is rows."""
CLIENTS, PAD = 30, 3_840
FILLED_ENTRIES = 900
"""3.5 MB: more than a database keeps in memory (2 MB), so that reading meets the disk."""
READ_AT_ONCE = 50


def rotten(work: Work, count: int) -> Iterator[Case]:
    """Let so many of the cases happen, one after the other, with one swarm."""
    todo: list[Step] = []
    for number in range(count):
        victims = VICTIMS[number % len(VICTIMS)]
        names = ", ".join(f"app-{v}" for v in victims)
        todo.append((f"random bytes over {names}", partial(_rot, victims)))
    return series("rot", work, todo)


def _rot(victims: Sequence[int], stand: Stand, _: Image | None, case: Case) -> None:
    nodes = [stand.swarm.app.nodes[v] for v in victims]
    _fill(stand)
    stand.look_for(2.0)
    before = [stand.replica(node) for node in nodes]
    sizes = [_spoil(node) for node in nodes]
    stand.load()
    calls = _read_all(stand)
    stand.look()
    case.healthy_after_s = round(stand.wait_healthy(), 1)
    noticed = sum(stand.replica(n) != pid for n, pid in zip(nodes, before))
    case.note = f"{sum(sizes) >> 20} MiB; {noticed} of {len(nodes)} started anew; {calls} reads"
    if not noticed:
        raise NotVerified("no node read what was spoilt: nothing is shown")
    stand.wait_for_entries()
    stand.verify()


def _fill(stand: Stand) -> None:
    if stand.entries < FILLED_ENTRIES:
        stand.load(CLIENTS, PAD)
        stand.wait_for_entries(FILLED_ENTRIES, 120)
        stand.stop_load()


def _spoil(node: NodeEntry) -> int:
    """Write random bytes over a database and its log; return how many."""
    spoilt = 0
    for name in ("state.db", "state.db-wal"):
        path = node.folder / "data" / name
        size, start = path.stat().st_size, SPARED_PAGES * PAGE_BYTES
        with open(path, "r+b") as file:
            file.seek(start)
            spoilt += file.write(os.urandom(max(0, size - start)))
    return spoilt


def _read_all(stand: Stand) -> int:
    """Have all rows read by update calls, which each node executes; return how many calls."""
    agent = stand.swarm.agent(stand.swarm.app, stand.writers[0].key)
    agent.timeout_s = 4.0
    starts = range(0, FILLED_ENTRIES, READ_AT_ONCE)
    for start in starts:
        arg = workload.encode("page", {"start": start, "limit": READ_AT_ONCE})
        agent.call(stand.swarm.journal, "page", arg, wait_s=60.0 * stand.patience)
    agent.close()
    return len(starts)
