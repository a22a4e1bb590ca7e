"""Root: controls every NNS canister but itself, and changes them when governance says so.

A change is stop, install, start; whatever fails, the canister is started again.
Source: reference/recovery.md §1.4 (dfinity/ic rs/nervous_system/root/src/change_canister.rs).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    Refuse,
    decode,
    encode,
    reply,
    update,
)

REQUEST = (
    "(record { stop_before_installing : bool; mode : variant { install; reinstall; upgrade };"
    " canister_id : principal; wasm_module : blob; arg : blob })"
)


@update
def change_nns_canister(ctx, request):
    if ctx.caller != GOVERNANCE:
        raise Refuse("only governance changes canisters through root")
    if request["canister_id"] == ctx.self_id:
        raise Refuse("root can't change itself: that is lifeline's part")
    context = encode(REQUEST, request)
    if request["stop_before_installing"]:
        manage(ctx, "stop_canister", request, "on_stopped", context)
    else:
        install(ctx, request, context)


def manage(ctx, method, request, on_reply, context):
    arg = encode("(record { canister_id : principal })", {"canister_id": request["canister_id"]})
    ctx.call(MANAGEMENT_CANISTER, method, arg, on_reply=on_reply, context=context)


def install(ctx, request, context):
    ((mode, _),) = request["mode"].items()
    arg = encode(
        "(record { mode : variant { install; reinstall;"
        " upgrade : opt record { skip_pre_upgrade : opt bool } };"
        " canister_id : principal; wasm_module : blob; arg : blob })",
        {
            "mode": {mode: None},
            "canister_id": request["canister_id"],
            "wasm_module": request["wasm_module"],
            "arg": request["arg"],
        },
    )
    ctx.call(MANAGEMENT_CANISTER, "install_code", arg, on_reply="on_installed", context=context)


@reply
def on_stopped(ctx, outcome, context):
    request = decode(REQUEST, context)[0]
    if outcome.ok:
        install(ctx, request, context)
    else:
        ctx.log(f"{request['canister_id']} did not stop: {outcome.reject_message}")
        manage(ctx, "start_canister", request, "on_started", b"")
    return LATER


@reply
def on_installed(ctx, outcome, context):
    request = decode(REQUEST, context)[0]
    if not outcome.ok:
        ctx.log(f"{request['canister_id']} was not installed: {outcome.reject_message}")
    manage(ctx, "start_canister", request, "on_started", b"")
    return LATER


@reply
def on_started(ctx, outcome, _context):
    if not outcome.ok:
        ctx.log(f"starting failed: {outcome.reject_message}")
    return LATER
