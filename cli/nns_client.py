"""Calls to the NNS canisters, typed by their .did files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from replica.client.agent import Agent
from replica.protocol import candid
from replica.protocol.errors import Malformed, NotFound, Rejected, Unavailable
from replica.protocol.ids import (
    GOVERNANCE,
    LEDGER,
    LIFELINE,
    REGISTRY,
    ROOT,
    CanisterId,
    Principal,
)

YES, NO = 1, 2
STATUS_NAMES = {1: "open", 2: "rejected", 3: "adopted", 4: "executed", 5: "failed"}
RECOVER_SUBNET, UPDATE_SUBNET, SET_OPERATIONAL_LEVEL = 6, 7, 55
CHANGE_MEMBERSHIP = 31
DEPLOY_RELEASE, REVISE_RELEASES, HARD_RESET_ROOT = 11, 38, 42
FUNCTION_NAMES = {
    6: "RecoverSubnet",
    7: "UpdateConfigOfSubnet",
    11: "DeployGuestosToAllSubnetNodes",
    31: "ChangeSubnetMembership",
    38: "ReviseElectedGuestosVersions",
    42: "HardResetNnsRootToVersion",
    55: "SetSubnetOperationalLevel",
}
METHODS = {
    RECOVER_SUBNET: "recover_subnet",
    UPDATE_SUBNET: "update_subnet",
    DEPLOY_RELEASE: "deploy_guestos_to_all_subnet_nodes",
    CHANGE_MEMBERSHIP: "change_subnet_membership",
    REVISE_RELEASES: "revise_elected_guestos_versions",
    HARD_RESET_ROOT: "hard_reset_root_to_version",
    SET_OPERATIONAL_LEVEL: "set_subnet_operational_level",
}
"""Method that each NNS function calls: of lifeline for a hard reset, else of the registry."""
FEE_E8S = 10_000


class GovernanceError(Rejected):
    """Governance refused a command."""

    code = "governance-error"


@lru_cache
def interface(name: str) -> candid.Interface:
    import nns

    folder = Path(nns.__file__).parent / name
    return candid.parse((folder / f"{name}.did").read_text())


def encode(name: str, method: str, *values: Any) -> bytes:
    did = interface(name)
    return candid.encode(did.methods[method].args, values, did)


def decode(name: str, method: str, raw: bytes) -> Any:
    did = interface(name)
    results = candid.decode(did.methods[method].results, raw, did)
    return results[0] if len(results) == 1 else tuple(results)


CANISTERS: dict[str, CanisterId] = {
    "registry": REGISTRY,
    "governance": GOVERNANCE,
    "ledger": LEDGER,
    "root": ROOT,
    "lifeline": LIFELINE,
}


def query(agent: Agent, name: str, method: str, *values: Any) -> Any:
    raw = agent.query(CANISTERS[name], method, encode(name, method, *values))
    return decode(name, method, raw)


def call(agent: Agent, name: str, method: str, *values: Any) -> Any:
    raw = agent.call(CANISTERS[name], method, encode(name, method, *values))
    return decode(name, method, raw)


# --- neurons ---------------------------------------------------------------------------------


def manage(agent: Agent, neuron: int | None, command: dict[str, Any]) -> dict[str, Any]:
    """Run a neuron command. Raises: GovernanceError."""
    id_ = None if neuron is None else {"id": neuron}
    answer = call(agent, "governance", "manage_neuron", {"id": id_, "command": command})
    found: dict[str, Any] = answer["command"] or {}
    if "Error" in found:
        raise GovernanceError(found["Error"]["error_message"])
    return found


def stake(agent: Agent, amount_e8s: int, memo: int) -> int:
    """Transfer to the neuron's account and claim it; return the neuron's id."""
    from nns.governance.actions import neuron_subaccount, staking_account

    account = staking_account(neuron_subaccount(agent.sender, memo))
    result = call(
        agent,
        "ledger",
        "transfer",
        {
            "memo": memo,
            "amount": {"e8s": amount_e8s},
            "fee": {"e8s": FEE_E8S},
            "from_subaccount": None,
            "to": account,
            "created_at_time": {"timestamp_nanos": agent.world.now_ns()},
        },
    )
    if "Err" in result:
        raise GovernanceError(f"the ledger refused the transfer: {result['Err']}")
    by = {"MemoAndController": {"controller": None, "memo": memo}}
    claimed = manage(agent, None, {"ClaimOrRefresh": {"by": by}})
    return int(claimed["ClaimOrRefresh"]["refreshed_neuron_id"]["id"])


def own_neurons(agent: Agent) -> list[dict[str, Any]]:
    arg = {"neuron_ids": [], "include_neurons_readable_by_caller": True}
    return list(query(agent, "governance", "list_neurons", arg)["full_neurons"])


def default_neuron(agent: Agent) -> int:
    """Return the caller's neuron with most stake. Raises: NotFound."""
    neurons = own_neurons(agent)
    if not neurons:
        raise NotFound("this identity has no neuron; make one with `reprise neuron stake`")
    best = max(neurons, key=lambda n: n["cached_neuron_stake_e8s"])
    return int(best["id"]["id"])


# --- proposals -------------------------------------------------------------------------------


def _target(number: int) -> str:
    return "lifeline" if number == HARD_RESET_ROOT else "registry"


def function_payload(number: int, payload: dict[str, Any]) -> bytes:
    return encode(_target(number), METHODS[number], payload)


def decode_payload(number: int, payload: bytes) -> dict[str, Any]:
    method = METHODS.get(number)
    if method is None:
        raise Malformed(f"the NNS function {number} is not known here")
    did = interface(_target(number))
    (decoded,) = candid.decode(did.methods[method].args, payload, did)
    return dict(decoded)


def propose(
    agent: Agent, neuron: int, title: str, summary: str, number: int, payload: dict[str, Any]
) -> int:
    """Make a proposal that runs an NNS function; return its id."""
    action = {
        "ExecuteNnsFunction": {
            "nns_function": number,
            "payload": function_payload(number, payload),
        }
    }
    return propose_action(agent, neuron, title, summary, action)


def propose_motion(agent: Agent, neuron: int, title: str, text: str) -> int:
    return propose_action(agent, neuron, title, text, {"Motion": {"motion_text": text}})


def propose_action(
    agent: Agent, neuron: int, title: str, summary: str, action: dict[str, Any]
) -> int:
    """Make a proposal with any action of governance's .did; return its id."""
    proposal = {"title": title, "summary": summary, "url": "", "action": action}
    made = manage(agent, neuron, {"MakeProposal": proposal})
    return int(made["MakeProposal"]["proposal_id"]["id"])


def install_action(target: Principal, module: bytes, mode: int = 3) -> dict[str, Any]:
    """Return the action that installs code (mode 1 install, 2 reinstall, 3 upgrade)."""
    return {
        "InstallCode": {
            "canister_id": target,
            "install_mode": mode,
            "wasm_module": module,
            "arg": None,
            "skip_stopping_before_installing": None,
        }
    }


def vote(agent: Agent, neuron: int, proposal: int, choice: int) -> None:
    manage(agent, neuron, {"RegisterVote": {"vote": choice, "proposal": {"id": proposal}}})


def proposal_info(agent: Agent, proposal: int) -> dict[str, Any]:
    found = query(agent, "governance", "get_proposal_info", proposal)
    if found is None:
        raise NotFound(f"there is no proposal {proposal}; `reprise proposal list` shows them")
    return dict(found)


def list_proposals(agent: Agent, limit: int = 100) -> list[dict[str, Any]]:
    arg: dict[str, Any] = {
        "include_reward_status": [],
        "before_proposal": None,
        "limit": limit,
        "exclude_topic": [],
        "include_status": [],
        "omit_large_fields": False,
    }
    return list(query(agent, "governance", "list_proposals", arg)["proposal_info"])


def wait_decided(agent: Agent, proposal: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait until a proposal is executed, failed or rejected."""
    end = agent.world.monotonic_s() + timeout_s
    while True:
        info = proposal_info(agent, proposal)
        if info["status"] in (2, 4, 5):
            return info
        if agent.world.monotonic_s() > end:
            raise Unavailable(
                f"proposal {proposal} is still {STATUS_NAMES[info['status']]} "
                f"after {timeout_s:.0f} s"
            )
        agent.world.pause(0.15)


__all__ = ["Principal"]
