"""Lifeline: controls root, and does nothing but change it when governance says so.

The smallest canister of all: it has no tables, and depends on no other canister's code.
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    ROOT,
    Refuse,
    decode,
    encode,
    reply,
    update,
)

TARGET = {"canister_id": ROOT}
WORK = "(text, blob, blob)"


def only_governance(ctx):
    if ctx.caller != GOVERNANCE:
        raise Refuse("only governance changes root through lifeline")


@update
def upgrade_root(ctx, arg):
    only_governance(ctx)
    work = encode(WORK, "upgrade", arg["wasm_module"], arg["module_arg"])
    if arg["stop_upgrade_start"]:
        manage(ctx, "stop_canister", "on_stopped", work)
    else:
        install(ctx, work)
    return LATER


@update
def hard_reset_root_to_version(ctx, arg):
    """Uninstall root, open calls and all, and install it anew."""
    only_governance(ctx)
    work = encode(WORK, "install", arg["wasm_module"], arg["init_arg"])
    manage(ctx, "uninstall_code", "on_uninstalled", work)
    return LATER


def manage(ctx, method, on_reply, context):
    arg = encode("(record { canister_id : principal })", TARGET)
    ctx.call(MANAGEMENT_CANISTER, method, arg, on_reply=on_reply, context=context)


def install(ctx, work):
    mode, module, module_arg = decode(WORK, work)
    arg = encode(
        "(record { mode : variant { install; reinstall;"
        " upgrade : opt record { skip_pre_upgrade : opt bool } };"
        " canister_id : principal; wasm_module : blob; arg : blob })",
        {"mode": {mode: None}, "canister_id": ROOT, "wasm_module": module, "arg": module_arg},
    )
    ctx.call(MANAGEMENT_CANISTER, "install_code", arg, on_reply="on_installed")


def start(ctx, failure):
    manage(ctx, "start_canister", "on_started", encode("(text)", failure))


@reply
def on_stopped(ctx, outcome, work):
    if outcome.ok:
        install(ctx, work)
    else:
        start(ctx, f"root did not stop: {outcome.reject_message}")
    return LATER


@reply
def on_uninstalled(ctx, outcome, work):
    if not outcome.ok:
        raise Refuse(f"root was not uninstalled: {outcome.reject_message}")
    install(ctx, work)
    return LATER


@reply
def on_installed(ctx, outcome, _context):
    start(ctx, "" if outcome.ok else f"root was not installed: {outcome.reject_message}")
    return LATER


@reply
def on_started(ctx, outcome, context):
    (failure,) = decode("(text)", context)
    if not outcome.ok:
        failure = f"{failure} root was not started: {outcome.reject_message}".strip()
    if failure:
        raise Refuse(failure)
