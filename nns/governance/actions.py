"""What an adopted proposal does: which canister is called, with what.

Source: reference/governance.md §1.6 (dfinity/ic rs/nns/governance/src/proposals).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LIFELINE,
    REGISTRY,
    ROOT,
    account_identifier,
    decode,
    encode,
    sha256,
)

# NNS function: canister, method, its dry run ("" when there is none), topic.
NNS_FUNCTIONS = {
    6: (REGISTRY, "recover_subnet", "simulate_recover_subnet", 7),
    7: (REGISTRY, "update_subnet", "simulate_update_subnet", 7),
    11: (
        REGISTRY,
        "deploy_guestos_to_all_subnet_nodes",
        "simulate_deploy_guestos_to_all_subnet_nodes",
        12,
    ),
    31: (REGISTRY, "change_subnet_membership", "simulate_change_subnet_membership", 7),
    38: (
        REGISTRY,
        "revise_elected_guestos_versions",
        "simulate_revise_elected_guestos_versions",
        13,
    ),
    42: (LIFELINE, "hard_reset_root_to_version", "", 17),
    55: (REGISTRY, "set_subnet_operational_level", "simulate_set_subnet_operational_level", 7),
}
HARD_RESET = 42
MOTION_TOPIC, PROTOCOL_CANISTER_TOPIC = 4, 17
ACTION_TYPE = """variant {
  Motion : record { motion_text : text };
  ExecuteNnsFunction : record { nns_function : int32; payload : blob };
  InstallCode : record {
    canister_id : opt principal; install_mode : opt int32; wasm_module : opt blob; arg : opt blob;
    skip_stopping_before_installing : opt bool;
  };
  StopOrStartCanister : record { canister_id : opt principal; action : opt int32 };
  TakeCanisterSnapshot : record { canister_id : opt principal; replace_snapshot : opt blob };
  LoadCanisterSnapshot : record { canister_id : opt principal; snapshot_id : opt blob };
}"""
ACTION = f"({ACTION_TYPE})"
MODES = {1: "install", 2: "reinstall", 3: "upgrade"}
PAYLOAD_MAX, MODULE_MAX = 70_000, 2 << 20


def pack(action):
    return encode(ACTION, action)


def unpack(raw):
    return decode(ACTION, raw)[0]


def fault(action):
    """Return what is wrong with an action as such; None: nothing."""
    if action is None:
        return "the proposal has no action"
    ((kind, value),) = action.items()
    return FAULTS[kind](value)


def motion_fault(motion):
    return "a motion has at most 10000 characters" if len(motion["motion_text"]) > 10_000 else None


def function_fault(call):
    number = call["nns_function"]
    if number not in NNS_FUNCTIONS:
        return f"the NNS function {number} is not known to this release"
    limit = MODULE_MAX + PAYLOAD_MAX if number == HARD_RESET else PAYLOAD_MAX
    if len(call["payload"]) > limit:
        return f"the payload of this NNS function has at most {limit} bytes"
    return None


def install_fault(install):
    if install["canister_id"] is None or not install["wasm_module"]:
        return "InstallCode needs canister_id and wasm_module"
    if install["install_mode"] not in MODES:
        return "install_mode is 1 install, 2 reinstall or 3 upgrade"
    if install["canister_id"] == ROOT and install["install_mode"] != 3:
        return "root is only upgraded by InstallCode; NNS function 42 resets it"
    if len(install["wasm_module"]) > MODULE_MAX:
        return f"a module has at most {MODULE_MAX} bytes"
    return None


def stop_or_start_fault(wanted):
    if wanted["canister_id"] is None or wanted["action"] not in (1, 2):
        return "name a canister and an action: 1 stop, 2 start"
    if wanted["canister_id"] in (GOVERNANCE, ROOT):
        return f"{wanted['canister_id']} is needed to carry this out"
    return None


def take_fault(wanted):
    return snapshot_fault(wanted)


def load_fault(wanted):
    if not wanted["snapshot_id"]:
        return "name the snapshot to load"
    return snapshot_fault(wanted)


def snapshot_fault(wanted):
    if wanted["canister_id"] is None:
        return "name a canister"
    return "root does not control itself" if wanted["canister_id"] == ROOT else None


FAULTS = {
    "Motion": motion_fault,
    "ExecuteNnsFunction": function_fault,
    "InstallCode": install_fault,
    "StopOrStartCanister": stop_or_start_fault,
    "TakeCanisterSnapshot": take_fault,
    "LoadCanisterSnapshot": load_fault,
}


def topic(action):
    if "ExecuteNnsFunction" in action:
        return NNS_FUNCTIONS[action["ExecuteNnsFunction"]["nns_function"]][3]
    return MOTION_TOPIC if "Motion" in action else PROTOCOL_CANISTER_TOPIC


def dry_run(action):
    """Return (canister, method, argument) of a call that fails if the action would; or None."""
    if "ExecuteNnsFunction" not in action:
        return None
    call = action["ExecuteNnsFunction"]
    target, _, method, _ = NNS_FUNCTIONS[call["nns_function"]]
    return (target, method, call["payload"]) if method else None


def execution(action):
    """Return (canister, method, argument); None: the action is done by being adopted."""
    ((kind, value),) = action.items()
    return EXECUTIONS[kind](value)


def run_motion(_motion):
    return None


def run_function(call):
    target, method, _, _ = NNS_FUNCTIONS[call["nns_function"]]
    return target, method, call["payload"]


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


def stop_or_start(wanted):
    type_ = "(record { canister_id : principal; action : variant { stop; start } })"
    action = {"stop" if wanted["action"] == 1 else "start": None}
    arg = encode(type_, {"canister_id": wanted["canister_id"], "action": action})
    return ROOT, "stop_or_start_nns_canister", arg


def take_snapshot(wanted):
    type_ = "(record { canister_id : principal; replace_snapshot : opt blob })"
    return ROOT, "take_canister_snapshot", encode(type_, wanted)


def load_snapshot(wanted):
    type_ = "(record { canister_id : principal; snapshot_id : blob })"
    return ROOT, "load_canister_snapshot", encode(type_, wanted)


EXECUTIONS = {
    "Motion": run_motion,
    "ExecuteNnsFunction": run_function,
    "InstallCode": install,
    "StopOrStartCanister": stop_or_start,
    "TakeCanisterSnapshot": take_snapshot,
    "LoadCanisterSnapshot": load_snapshot,
}


def shown(action, brief):
    """Return an action for listings: a module by its hash, and large fields left out if brief."""
    if "InstallCode" in action:
        wanted = dict(action["InstallCode"])
        wanted["wasm_module_hash"] = sha256(wanted["wasm_module"])
        wanted["arg_hash"] = sha256(wanted["arg"] or b"")
        wanted["wasm_module"] = None
        return {"InstallCode": wanted}
    if brief and "ExecuteNnsFunction" in action:
        call = action["ExecuteNnsFunction"]
        if len(call["payload"]) > 1000:
            return {"ExecuteNnsFunction": {**call, "payload": b""}}
    return action


def neuron_subaccount(controller, memo):
    """Return the ledger subaccount of governance that a neuron's stake lies in."""
    return sha256(b"\x0cneuron-stake" + bytes(controller) + memo.to_bytes(8, "big"))


def staking_account(subaccount):
    return account_identifier(GOVERNANCE, subaccount)
