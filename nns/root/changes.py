"""Changing a canister: stop, install, start. Whatever fails, it is started again and told.

Each change is a row, so that what became of it can be seen, also when nobody waited for it.
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    Refuse,
    encode,
    sha256,
)

KEPT = 100
SECOND = 1_000_000_000
LOAD = "load snapshot"
TARGET = "(record { canister_id : principal })"
INSTALL = """(record {
  mode : variant { install; reinstall; upgrade : opt record { skip_pre_upgrade : opt bool } };
  canister_id : principal; wasm_module : blob; arg : blob })"""
SNAPSHOT = "(record { canister_id : principal; snapshot_id : blob })"


def begin(ctx, request):
    """Begin a change; the caller is answered when it is done, but governance at once."""
    ((mode, _),) = request["mode"].items()
    target = request["canister_id"]
    number = record(ctx, target, mode, request["wasm_module"], request["arg"])
    if request["stop_before_installing"]:
        manage(ctx, "stop_canister", target, "on_stopped", number)
    else:
        install(ctx, ctx.table("changes").get(number))
    return None if target == GOVERNANCE else LATER


def begin_load(ctx, request):
    """Begin to load a snapshot: it takes the module's place."""
    target = request["canister_id"]
    number = record(ctx, target, LOAD, request["snapshot_id"], b"")
    manage(ctx, "stop_canister", target, "on_stopped", number)
    return None if target == GOVERNANCE else LATER


def record(ctx, target, mode, module, arg):
    if target == ctx.self_id:
        raise Refuse("root can't change itself: that is lifeline's part")
    changes = ctx.table("changes")
    for row in changes.by_index("by_state", "running"):
        if row["canister"] == target:
            raise Refuse(f"{target} is being changed already (change {row['id']})")
    newest = next(iter(changes.range(reverse=True)), None)
    number = 1 if newest is None else newest["id"] + 1
    changes.put(
        id=number,
        canister=target,
        mode=mode,
        module=module,
        module_hash=sha256(module),
        arg=arg,
        state="running",
        failure=None,
        requested=ctx.time_ns // SECOND,
        finished=0,
    )
    if number > KEPT:
        changes.delete(number - KEPT)
    return number


def pack(number):
    return number.to_bytes(8, "big")


def change_of(ctx, context):
    return ctx.table("changes").get(int.from_bytes(context, "big"))


def manage(ctx, method, target, on_reply, number):
    arg = encode(TARGET, {"canister_id": target})
    ctx.call(MANAGEMENT_CANISTER, method, arg, on_reply=on_reply, context=pack(number))


def install(ctx, row):
    if row["mode"] == LOAD:
        method = "load_canister_snapshot"
        arg = encode(SNAPSHOT, {"canister_id": row["canister"], "snapshot_id": row["module"]})
    else:
        method = "install_code"
        arg = encode(
            INSTALL,
            {
                "mode": {row["mode"]: None},
                "canister_id": row["canister"],
                "wasm_module": row["module"],
                "arg": row["arg"],
            },
        )
    ctx.call(MANAGEMENT_CANISTER, method, arg, on_reply="on_installed", context=pack(row["id"]))


def fail(ctx, row, text):
    ctx.log(f"change {row['id']} of {row['canister']}: {text}")
    row["failure"] = text if row["failure"] is None else row["failure"] + "; " + text
    ctx.table("changes").put(**row)


def on_stopped(ctx, outcome, context):
    row = change_of(ctx, context)
    if outcome.ok:
        install(ctx, row)
    else:
        fail(ctx, row, f"it did not stop: {outcome.reject_message}")
        manage(ctx, "start_canister", row["canister"], "on_started", row["id"])
    return LATER


def on_installed(ctx, outcome, context):
    row = change_of(ctx, context)
    if not outcome.ok:
        fail(ctx, row, f"it was not installed: {outcome.reject_message}")
    manage(ctx, "start_canister", row["canister"], "on_started", row["id"])
    return LATER


def on_started(ctx, outcome, context):
    """Close the change. A failure is written down first and told in a step of its own."""
    row = change_of(ctx, context)
    if not outcome.ok:
        fail(ctx, row, f"it was not started: {outcome.reject_message}")
    row["state"] = "done" if row["failure"] is None else "failed"
    row["module"] = b""
    row["finished"] = ctx.time_ns // SECOND
    ctx.table("changes").put(**row)
    if row["failure"] is None:
        return None
    manage(ctx, "canister_status", row["canister"], "on_reported", row["id"])
    return LATER


def failure_of(ctx, context):
    row = change_of(ctx, context)
    return f"change {row['id']} of {row['canister']} failed: {row['failure']}"


def show(row):
    return {
        "id": row["id"],
        "canister_id": row["canister"],
        "mode": row["mode"],
        "module_hash": row["module_hash"],
        "state": row["state"],
        "failure": row["failure"],
        "requested_timestamp_seconds": row["requested"],
        "finished_timestamp_seconds": row["finished"],
    }
