"""Installing code: what becomes of a canister's tables, and who moves the rows.

An upgrade keeps every table whose declaration stays; a changed one opens a new generation, and its
rows are moved, metered, by the new code's `@migrate` function of that name. All of it happens in
the caller's layer, to be merged or dropped: a failure leaves the old code and the old rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from replica.abi import bundle as bundles
from replica.abi.tables import Row, Table
from replica.client.table_schema import try_tables
from replica.execution import python_runtime as python
from replica.execution.metering import Meter
from replica.protocol import candid
from replica.protocol.errors import Malformed, Rejected
from replica.protocol.ids import Principal
from replica.state.placement import Placed, generation_of, tables_of
from replica.state.records import Canister
from replica.state.rows import Layer

INSTALL_STEPS_MAX = 10 * python.STEPS_MAX


@dataclass
class Installed:
    canister: Canister
    steps: int = 0
    moved: int = 0
    failure: str = ""
    error_code: str = ""


def run(
    before: Canister,
    mode: str,
    module: bytes,
    arg: bytes,
    caller: Principal,
    time_ns: int,
    layer: Layer,
) -> Installed:
    """Install, reinstall or upgrade. When it failed the result says why: drop `layer` then."""
    done = Installed(before)
    try:
        admitted = bundles.admit(module)
        try_tables(admitted.name, admitted.tables)
        loaded = python.program(module)
    except Rejected as error:
        return _failed(done, "IC0505", f"the bundle is refused: {error}")
    if mode == "install" and before.bundle:
        return _failed(done, "IC0538", f"{before.id} has code already; use upgrade or reinstall")
    if mode == "upgrade" and not before.bundle:
        return _failed(done, "IC0537", f"{before.id} has no code to upgrade")
    after = replace(before, bundle=module, version=before.version + 1, timer_ns=0)
    meter = Meter(INSTALL_STEPS_MAX)
    if mode == "upgrade":
        changed, fault = _changed_tables(before, loaded)
        if fault:
            return _failed(done, "IC0505", fault)
        after = replace(after, generations=_bumped(before, changed))
    else:
        names = [p.table.name for p in tables_of(before)]
        after = replace(after, generations=_bumped(before, names), certified_data=b"")
    context = python.InvocationContext(
        loaded, after, caller, time_ns, layer, meter, read_only=False
    )
    result, stage = context.result, "moving rows"
    if mode == "upgrade":
        done.moved = _move_rows(before, after, loaded, context)
    entry = "post_upgrade" if mode == "upgrade" else "init"
    if result.trap is None and result.rejected is None and (entry, "") in loaded.entries:
        try:
            values = _arguments(loaded, entry, arg)
        except Rejected as error:
            return _failed(done, "IC0408", f"init argument: {error}")
        stage = entry
        python.run(context, loaded, entry, "", tuple(values), None)
    done.steps = INSTALL_STEPS_MAX - max(meter.left, 0)
    failure = result.trap or result.rejected
    if failure or result.calls:
        return _failed(done, "IC0503", f"{stage} failed: {failure or 'it must not call out'}")
    data = result.certified_data
    done.canister = replace(
        after,
        certified_data=after.certified_data if data is None else data,
        timer_ns=result.timer_ns or 0,
    )
    return done


def without_code(before: Canister) -> Canister:
    """Return a canister after its code was taken away; its rows lie in no generation in use."""
    names = [p.table.name for p in tables_of(before)]
    return replace(
        before,
        bundle=b"",
        certified_data=b"",
        timer_ns=0,
        version=before.version + 1,
        generations=_bumped(before, names),
    )


def _failed(done: Installed, error_code: str, text: str) -> Installed:
    done.failure, done.error_code = text, error_code
    return done


def _arguments(loaded: python.Program, entry: str, arg: bytes) -> list[Any]:
    if entry != "init":
        return []
    return candid.decode(loaded.bundle.interface.init, arg, loaded.bundle.interface)


def _bumped(before: Canister, names: list[str]) -> dict[str, int]:
    return {**before.generations, **{n: generation_of(before, n) + 1 for n in names}}


def _changed_tables(before: Canister, loaded: python.Program) -> tuple[list[str], str]:
    """Return the tables that need a new generation, and what is wrong ("": nothing)."""
    bundle = loaded.bundle
    new = {t.name: t for t in bundle.tables}
    old = {t.name: t for t in bundles.read(before.bundle).tables}
    changed = []
    for name, table in old.items():
        if name not in new:
            if name not in bundle.dropped:
                return [], f"the upgrade loses the table {name}; list it in dropped_tables"
            changed.append(name)
        elif new[name] != table:
            if ("migrate", name) not in loaded.entries and not _fits(table, new[name]):
                return [], (
                    f"the table {name} changes: the code must say how its rows are moved, with a "
                    f"@migrate function named {name}"
                )
            changed.append(name)
    return changed, ""


def _fits(old: Table, new: Table) -> bool:
    """Whether rows can be kept as they are, with None in new columns."""
    kept = set(old.columns)
    added = set(new.columns) - kept
    return old.key == new.key and kept <= set(new.columns) and all(c.optional for c in added)


def _move_rows(
    before: Canister, after: Canister, loaded: python.Program, context: python.InvocationContext
) -> int:
    """Move the rows of every changed table; return how many were read."""
    old = {p.table.name: p for p in tables_of(before)}
    moved = 0

    def action() -> None:
        nonlocal moved
        for placed in tables_of(after):
            source = old.get(placed.table.name)
            if source is None or source.table == placed.table:
                continue
            move = loaded.entries.get(("migrate", placed.table.name))
            moved += _move_table(source, placed, move, context)

    python.guard(loaded, context, action)
    return moved


def _move_table(
    source: Placed,
    target: Placed,
    move: Callable[..., Any] | None,
    context: python.InvocationContext,
) -> int:
    layer, meter = context._layer, context._meter
    rows = python.handle(source, layer, meter, read_only=True)
    put = python.handle(target, layer, meter, read_only=False).put
    filler: Row = {c.name: None for c in target.table.columns}
    count = 0
    for row in rows.range():
        count += 1
        made = {**filler, **row} if move is None else move(row)
        for new in made if isinstance(made, list) else [made]:
            if new is None:
                continue
            if not isinstance(new, dict):
                raise Malformed(f"@migrate {target.table.name} must return a row, a list or None")
            put(**new)
    return count
