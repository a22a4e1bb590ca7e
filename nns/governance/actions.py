"""What an adopted proposal does: which canister is called, with what.

Source: reference/governance.md §1.6 (dfinity/ic rs/nns/governance/src/proposals).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LIFELINE,
    REGISTRY,
    ROOT,
    decode,
    encode,
)

# NNS function: method of the registry, dry run of it ("" when there is none), topic.
NNS_FUNCTIONS = {
    6: ("recover_subnet", "simulate_recover_subnet", 7),
    7: ("update_subnet", "simulate_update_subnet", 7),
    55: ("set_subnet_operational_level", "", 7),
}
MOTION_TOPIC, PROTOCOL_CANISTER_TOPIC = 4, 17
ACTION = """(variant {
  Motion : record { motion_text : text };
  ExecuteNnsFunction : record { nns_function : int32; payload : blob };
  InstallCode : record {
    canister_id : opt principal; install_mode : opt int32; wasm_module : opt blob; arg : opt blob;
    skip_stopping_before_installing : opt bool;
  };
})"""
MODES = {1: "install", 2: "reinstall", 3: "upgrade"}


def pack(action):
    return encode(ACTION, action)


def unpack(raw):
    return decode(ACTION, raw)[0]


def fault(action):
    """Return what is wrong with an action as such; None: nothing."""
    if action is None:
        return "the proposal has no action"
    if "ExecuteNnsFunction" in action:
        number = action["ExecuteNnsFunction"]["nns_function"]
        if number not in NNS_FUNCTIONS:
            return f"the NNS function {number} is not known to this release"
        if len(action["ExecuteNnsFunction"]["payload"]) > 70_000:
            return "the payload of an NNS function has at most 70000 bytes"
    elif "InstallCode" in action:
        install = action["InstallCode"]
        if install["canister_id"] is None or install["wasm_module"] is None:
            return "InstallCode needs canister_id and wasm_module"
        if install["install_mode"] not in MODES:
            return "install_mode is 1 install, 2 reinstall or 3 upgrade"
    elif len(action["Motion"]["motion_text"]) > 10_000:
        return "a motion has at most 10000 characters"
    return None


def topic(action):
    if "ExecuteNnsFunction" in action:
        return NNS_FUNCTIONS[action["ExecuteNnsFunction"]["nns_function"]][2]
    return PROTOCOL_CANISTER_TOPIC if "InstallCode" in action else MOTION_TOPIC


def dry_run(action):
    """Return (canister, method, argument) of a call that fails if the action would; or None."""
    if "ExecuteNnsFunction" not in action:
        return None
    call = action["ExecuteNnsFunction"]
    method = NNS_FUNCTIONS[call["nns_function"]][1]
    return (REGISTRY, method, call["payload"]) if method else None


def execution(action):
    """Return (canister, method, argument); None: the action is done by being adopted."""
    if "ExecuteNnsFunction" in action:
        call = action["ExecuteNnsFunction"]
        return REGISTRY, NNS_FUNCTIONS[call["nns_function"]][0], call["payload"]
    if "InstallCode" in action:
        return install(action["InstallCode"])
    return None


def install(wanted):
    target, stop = wanted["canister_id"], not wanted["skip_stopping_before_installing"]
    if target == ROOT:
        return (
            LIFELINE,
            "upgrade_root",
            encode(
                "(record { wasm_module : blob; module_arg : blob; stop_upgrade_start : bool })",
                {
                    "wasm_module": wanted["wasm_module"],
                    "module_arg": wanted["arg"] or b"",
                    "stop_upgrade_start": stop,
                },
            ),
        )
    return (
        ROOT,
        "change_nns_canister",
        encode(
            "(record { stop_before_installing : bool;"
            " mode : variant { install; reinstall; upgrade };"
            " canister_id : principal; wasm_module : blob; arg : blob })",
            {
                "stop_before_installing": stop,
                "mode": {MODES[wanted["install_mode"]]: None},
                "canister_id": target,
                "wasm_module": wanted["wasm_module"],
                "arg": wanted["arg"] or b"",
            },
        ),
    )


def neuron_subaccount(controller, memo):
    """Return the ledger subaccount of governance that a neuron's stake lies in."""
    from replica.abi.v1 import sha256

    return sha256(b"\x0cneuron-stake" + bytes(controller) + memo.to_bytes(8, "big"))


def staking_account(subaccount):
    from replica.abi.v1 import account_identifier

    return account_identifier(GOVERNANCE, subaccount)
