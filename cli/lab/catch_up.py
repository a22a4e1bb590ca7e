"""The scenario node-catch-up: one node falls behind in three ways and heals by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from cli.lab import workload
from cli.lab.drill import (
    Drill,
    Outcome,
    describe_settings,
    signed_cup_height,
    signs_above,
)
from cli.lab.layout import NodeEntry, SubnetEntry

REQUESTS_S = 10.0
"""Checkpoints pack users' requests by so many seconds: what comes into such a file later has a node
that is behind fetch it whole."""


def node_catch_up(drill: Drill) -> Outcome:
    """One node falls behind and heals by itself: restarted, two CUPs behind, wiped."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    with phases.phase("swarm up") as notes:
        drill.up()
        _fill(drill, drill.options.journal_entries)
        drill.world.pause(REQUESTS_S)
        filled = drill.certified_height(app)
        node = app.nodes[3]
        drill.wait_for(
            "a CUP that holds the journal",
            lambda: (drill.status(node) or {}).get("cup_height", 0) > filled,
            90,
        )
        notes.append(describe_settings(drill))
    before = drill.certified_height(app)
    cases = [
        _case(drill, "restarted", node, lambda: None),
        _case(drill, "two CUPs behind", node, lambda: _two_cups(drill)),
        _case(drill, "wiped", node, lambda: _clear(node)),
    ]
    with phases.phase("verify") as notes:
        drill.writer.stop()
        entries = workload.read_all(drill.app, swarm, [drill.writer])
        kept = not drill.writer.fault and workload.preserved(drill.writer, entries)
        notes.append(f"{drill.writer.count} certified entries, all there once")
    good = (
        kept
        and cases[0]["bytes_fetched"] == 0
        and cases[1]["bytes_reused"] > cases[1]["bytes_fetched"] > 0
        and cases[2]["bytes_fetched"] > 0
        and all(c["signs_again"] and c["subnet_never_stopped"] for c in cases)
    )
    return drill.outcome(
        "node-catch-up",
        rto_seconds=max(c["rto_seconds"] for c in cases),
        kept=kept,
        before=before,
        after=drill.certified_height(app),
        good=good,
        cases=cases,
    )


def _case(
    drill: Drill, name: str, node: NodeEntry, while_down: Callable[[], None]
) -> dict[str, Any]:
    """Take a node down, do something to it, bring it back, and watch it catch up."""
    others = SubnetEntry("others", drill.swarm.app.id, drill.swarm.app.nodes[:3])
    with drill.phases.phase(name) as notes:
        at_stop = drill.certified_height(others)
        drill.supervisor.hold(node.folder)
        while_down()
        at_start = drill.certified_height(others)
        start = drill.now_s()
        drill.supervisor.release(node.folder)
        drill.wait_for(
            f"{node.name} to sign again", lambda: signs_above(drill, node, at_start), 90, 0.05
        )
        rto = drill.now_s() - start
        moved = (drill.status(node) or {})["state_sync"]
        at_end = drill.certified_height(others)
        notes.append(
            f"{moved['bytes_fetched']} bytes fetched, {moved['bytes_reused']} reused; "
            f"the others went from {at_stop} to {at_end}"
        )
    return {
        "case": name,
        "rto_seconds": round(rto, 3),
        "bytes_fetched": moved["bytes_fetched"],
        "bytes_reused": moved["bytes_reused"],
        "signs_again": True,
        "subnet_never_stopped": at_stop < at_end and (at_start > at_stop or name == "restarted"),
    }


def _fill(drill: Drill, count: int) -> None:
    """Let several clients write until the journal has some size."""
    clients = [drill.client(pad=512) for _ in range(8)]
    for client in clients:
        client.start()
    drill.wait_for("a journal of some size", lambda: sum(c.count for c in clients) >= count, 90)
    for client in clients:
        client.stop()


def _two_cups(drill: Drill) -> None:
    first = signed_cup_height(drill)
    interval = drill.interval_blocks
    drill.wait_for("two more CUPs", lambda: signed_cup_height(drill) >= first + 2 * interval, 90)


def _clear(node: NodeEntry) -> None:
    shutil.rmtree(node.folder / "data")
    (node.folder / "data").mkdir()
