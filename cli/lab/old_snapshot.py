"""The scenario old-snapshot: a node's folder is put back to a copy that was made while it ran.

So do backups and snapshots of machines. The node has signed since what its disk no longer tells;
it must not sign the opposite, and must be of use again soon. Copy and end lie in one interval: what
lies below a catch-up package is never signed again, and would prove nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cli.lab.drill import (
    Drill,
    Outcome,
    describe_settings,
    signed_cup_height,
    signs_above,
)
from cli.lab.layout import NodeEntry
from cli.lab.statements import Collected
from replica.protocol.ids import NodeId

BACK_S_MAX = 30.0
"""So long after its start a restored node signs again."""
WAIT_S_MAX = 90.0
COLLECT_S = 0.1
CLIENTS = 3
EARLY_SHARE = 8
"""A copy is made in the first such part of an interval."""
REST_HEIGHTS = 100
"""So much of the interval is left when the node goes back."""


def old_snapshot(drill: Drill) -> Outcome:
    """Three nodes, one after the other, go back to an old copy of their data, under load."""
    app = drill.swarm.app
    with drill.phases.phase("swarm up") as notes:
        drill.up()
        drill.wait_for("a first signed CUP", lambda: signed_cup_height(drill) > 0, 60)
        notes.append(describe_settings(drill))
    before = drill.certified_height(app)
    collected = Collected(drill.folder / "journals")
    clients = [drill.client(pad=512) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    with _collecting(drill, collected):
        cases = [_case(drill, collected, node) for node in app.nodes[1:]]
        with drill.phases.phase("verify") as notes:
            for client in clients:
                client.stop()
            kept, text = drill.verify_journal()
            notes.append(text)
    with drill.phases.phase("signatures") as notes:
        found = collected.statements()
        names = {NodeId(n.id): n.name for n in app.nodes}
        contradictions = found.contradictions(names)
        notes.append(f"{len(found.by_place)} heights and signers; " + _told(contradictions, names))
    late = [c["node"] for c in cases if c["back_s"] > BACK_S_MAX]
    outcome = drill.outcome(
        "old-snapshot",
        rto_seconds=max(c["back_s"] for c in cases),
        kept=kept,
        before=before,
        after=drill.certified_height(app),
        good=kept and not contradictions and not late,
        cases=[*cases, {"contradictions": len(contradictions)}],
    )
    if contradictions:
        outcome.error = _told(contradictions, names)
    return outcome


def _told(contradictions: list[tuple[NodeId, int, str]], names: dict[NodeId, str]) -> str:
    if not contradictions:
        return "no contradiction"
    signer, height, what = contradictions[0]
    first = f"{names[signer]} at height {height} {what}"
    return f"{len(contradictions)} contradictions, the first: {first}"


def _case(drill: Drill, collected: Collected, node: NodeEntry) -> dict[str, Any]:
    """Copy a node's data while it runs, let the subnet go on, put the copy back."""
    data, copy = node.folder / "data", drill.folder / f"{node.name}.copy"
    with drill.phases.phase(f"{node.name} goes back") as notes:
        drill.wait_for("an interval to begin", lambda: _is_early(drill), 180, 0.05)
        # What changes meanwhile is copied as it comes, or not at all.
        subprocess.run(["cp", "-a", str(data), str(copy)], capture_output=True, check=False)
        copied_at = drill.certified_height(drill.swarm.app)
        wanted = copied_at + drill.options.heights_back
        drill.wait_for(
            "the subnet to go on", lambda: drill.certified_height(drill.swarm.app) >= wanted, 180
        )
        killed_at, package = drill.certified_height(drill.swarm.app), signed_cup_height(drill)
        drill.supervisor.kill(node.folder)
        drill.wait_for("the node to be down", lambda: drill.status(node) is None, 10)
        collected.collect(node.name, data)
        data.rename(drill.folder / f"{node.name}.lost")
        shutil.move(copy, data)
        start_s = drill.now_s()
        drill.supervisor.release(node.folder)
        drill.wait_for(
            f"{node.name} to sign again", lambda: signs_above(drill, node, killed_at), WAIT_S_MAX
        )
        back_s = drill.now_s() - start_s
        notes.append(
            f"copied at {copied_at}, killed at {killed_at} above the CUP of {package}, "
            f"signs again {back_s:.1f} s on"
        )
    return {
        "node": node.name,
        "copied_at": copied_at,
        "killed_at": killed_at,
        "cup_height": package,
        "back_s": round(back_s, 3),
    }


def _is_early(drill: Drill) -> bool:
    """Whether the newest package is so new that hardly anything was signed above it."""
    since = drill.certified_height(drill.swarm.app) - signed_cup_height(drill)
    return since <= drill.interval_blocks // EARLY_SHARE


@contextmanager
def _collecting(drill: Drill, collected: Collected) -> Iterator[None]:
    """Link the journals of all nodes, over and over, beside what is done meanwhile."""
    stop = threading.Event()

    def collect() -> None:
        while not stop.wait(COLLECT_S):
            for node in drill.swarm.app.nodes:
                collected.collect(node.name, node.folder / "data")

    task = drill.world.spawn(collect)
    try:
        yield
    finally:
        stop.set()
        task.join(10)
