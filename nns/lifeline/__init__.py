"""Lifeline: controls root, and does nothing but upgrade it when governance says so.

The smallest canister of all: it depends on no other canister's code.
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    ROOT,
    Refuse,
    encode,
    reply,
    update,
)

TARGET = {"canister_id": ROOT}


@update
def upgrade_root(ctx, arg):
    if ctx.caller != GOVERNANCE:
        raise Refuse("only governance upgrades root through lifeline")
    module = encode("(blob, blob)", arg["wasm_module"], arg["module_arg"])
    if arg["stop_upgrade_start"]:
        stop = encode("(record { canister_id : principal })", TARGET)
        ctx.call(MANAGEMENT_CANISTER, "stop_canister", stop, on_reply="on_stopped", context=module)
    else:
        install(ctx, module)


def install(ctx, module):
    from replica.abi.v1 import decode

    code, module_arg = decode("(blob, blob)", module)
    arg = encode(
        "(record { mode : variant { install; reinstall;"
        " upgrade : opt record { skip_pre_upgrade : opt bool } };"
        " canister_id : principal; wasm_module : blob; arg : blob })",
        {"mode": {"upgrade": None}, "canister_id": ROOT, "wasm_module": code, "arg": module_arg},
    )
    ctx.call(MANAGEMENT_CANISTER, "install_code", arg, on_reply="on_installed")


@reply
def on_stopped(ctx, outcome, module):
    if outcome.ok:
        install(ctx, module)
        return LATER
    return on_installed(ctx, outcome, b"")


@reply
def on_installed(ctx, outcome, _context):
    if not outcome.ok:
        ctx.log(f"root was not upgraded: {outcome.reject_message}")
    start = encode("(record { canister_id : principal })", TARGET)
    ctx.call(MANAGEMENT_CANISTER, "start_canister", start, on_reply="on_started")
    return LATER


@reply
def on_started(ctx, outcome, _context):
    if not outcome.ok:
        ctx.log(f"root was not started: {outcome.reject_message}")
    return LATER
