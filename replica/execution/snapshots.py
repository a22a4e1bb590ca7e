"""Canister snapshots: code and rows as they were, to be loaded back when an upgrade went wrong.

Source: interface specification "IC method take_canister_snapshot" and the methods after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replica.execution.errors import Refused
from replica.state.placement import Placed, generation_of, tables_of, tables_of_snapshot
from replica.state.records import Canister, CanisterSnapshot
from replica.state.rows import Layer

SNAPSHOTS_MAX = 10
ROW_STEPS = 8


def take(
    canister: Canister, replaced: bytes | None, time_ns: int, layer: Layer
) -> tuple[Canister, int]:
    """Return the canister with one more snapshot, and the steps that copying took."""
    if not canister.bundle:
        raise Refused("IC0537", f"{canister.id} has no code to take a snapshot of")
    if replaced is not None:
        canister = delete(canister, replaced)
    if len(canister.snapshots) >= SNAPSHOTS_MAX:
        raise Refused(
            "IC0405", f"{canister.id} has {SNAPSHOTS_MAX} snapshots already; replace or delete one"
        )
    made = CanisterSnapshot(
        canister.next_snapshot,
        time_ns,
        canister.bundle,
        canister.certified_data,
        canister.timer_ns,
    )
    steps = _copy(tables_of(canister), tables_of_snapshot(canister, made), layer)
    taken = replace(
        canister, snapshots=(*canister.snapshots, made), next_snapshot=canister.next_snapshot + 1
    )
    return taken, steps


def load(canister: Canister, id_: bytes, layer: Layer) -> tuple[Canister, int]:
    """Return the canister with a snapshot's code and rows; what it held then is gone."""
    found = _find(canister, id_)
    names = [p.table.name for p in tables_of(canister)]
    names += [p.table.name for p in tables_of_snapshot(canister, found)]
    loaded = replace(
        canister,
        bundle=found.bundle,
        certified_data=found.certified_data,
        version=canister.version + 1,
        timer_ns=found.timer_ns,
        generations={
            **canister.generations,
            **{n: generation_of(canister, n) + 1 for n in names},
        },
    )
    return loaded, _copy(tables_of_snapshot(canister, found), tables_of(loaded), layer)


def delete(canister: Canister, id_: bytes) -> Canister:
    found = _find(canister, id_)
    return replace(canister, snapshots=tuple([s for s in canister.snapshots if s is not found]))


def describe(canister: Canister, snapshot: CanisterSnapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id_of(canister.id),
        "taken_at_timestamp": snapshot.taken_ns,
        "total_size": len(snapshot.bundle),
    }


def _find(canister: Canister, id_: bytes) -> CanisterSnapshot:
    for snapshot in canister.snapshots:
        if snapshot.id_of(canister.id) == id_:
            return snapshot
    raise Refused("IC0305", f"{canister.id} has no snapshot {id_.hex()}")


def _copy(sources: list[Placed], targets: list[Placed], layer: Layer) -> int:
    """Copy rows and index entries from one set of tables to another of the same declarations."""
    count = 0
    for source, target in zip(sources, targets, strict=True):
        for old, new in zip(source.row_tables, target.row_tables, strict=True):
            for key, row in list(layer.scan(old, b"", None)):
                layer.put(new, key, row)
                count += 1
    return count * ROW_STEPS
