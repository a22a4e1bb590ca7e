"""Neurons: staking, dissolving, and how they are shown."""

from replica.abi.v1 import LATER, LEDGER, decode, encode, sha256

from .actions import neuron_subaccount, staking_account
from .voting_power import (
    DELAY_MAX,
    INITIAL_DELAY,
    age_of,
    delay_of,
    state_of,
    voting_power,
)

SECOND = 1_000_000_000
NEURONS_MAX = 500_000


def parameter(ctx, name):
    return ctx.table("parameters").get(name)["value"]


def claim_or_refresh(ctx, by, neuron):
    """Ask the ledger what lies in the neuron's account; the reply claims or refreshes."""
    if by is not None and "MemoAndController" in by:
        controller = by["MemoAndController"]["controller"] or ctx.caller
        subaccount = neuron_subaccount(controller, by["MemoAndController"]["memo"])
    elif neuron is not None:
        controller, subaccount = neuron["controller"], neuron["subaccount"]
    else:
        return None
    ctx.call(
        LEDGER,
        "account_balance",
        encode("(record { account : blob })", {"account": staking_account(subaccount)}),
        on_reply="on_balance",
        context=encode("(principal, blob)", controller, subaccount),
    )
    return LATER


def on_balance(ctx, outcome, context):
    """Return (neuron id, None) or (None, what is wrong)."""
    controller, subaccount = decode("(principal, blob)", context)
    if not outcome.ok:
        return None, f"the ledger did not answer: {outcome.reject_message}"
    held = decode("(record { e8s : nat64 })", outcome.reply)[0]["e8s"]
    least = parameter(ctx, "minimum_stake_e8s")
    if held < least:
        return None, f"the neuron's account holds {held} e8s; {least} are the least stake"
    now = ctx.time_ns // SECOND
    found = next(iter(ctx.table("neurons").by_index("unique_subaccount", subaccount)), None)
    if found is None:
        number = int.from_bytes(sha256(b"neuron" + subaccount)[:8], "big") or 1
        found = new_neuron(number, controller, subaccount, held, INITIAL_DELAY, now)
    elif held > found["stake_e8s"]:
        age = found["stake_e8s"] * age_of(found, now) // held
        found["stake_e8s"], found["aging_since"] = held, now - age
    ctx.table("neurons").put(**found)
    return found["id"], None


def new_neuron(number, controller, subaccount, stake_e8s, delay, now):
    return {
        "id": number,
        "controller": controller,
        "subaccount": subaccount,
        "stake_e8s": stake_e8s,
        "fees_e8s": 0,
        "dissolving": False,
        "dissolve_seconds": delay,
        "aging_since": now,
        "created": now,
    }


def configure(ctx, neuron, operation):
    """Apply an operation; return what is wrong, or None."""
    now = ctx.time_ns // SECOND
    if operation is None:
        return "name an operation"
    if "StartDissolving" in operation:
        if not neuron["dissolving"]:
            neuron["dissolve_seconds"] += now
            neuron["dissolving"] = True
    elif "StopDissolving" in operation:
        if state_of(neuron, now) != 2:
            return "the neuron does not dissolve"
        neuron["dissolve_seconds"] = delay_of(neuron, now)
        neuron["dissolving"], neuron["aging_since"] = False, now
    else:
        extra = operation["IncreaseDissolveDelay"]["additional_dissolve_delay_seconds"]
        delay = min(delay_of(neuron, now) + extra, DELAY_MAX)
        if state_of(neuron, now) == 2:
            neuron["dissolve_seconds"] = now + delay
        else:
            if neuron["dissolving"]:
                neuron["aging_since"] = now
            neuron["dissolving"], neuron["dissolve_seconds"] = False, delay
    ctx.table("neurons").put(**neuron)
    return None


def full(neuron, now):
    when = {"WhenDissolvedTimestampSeconds": neuron["dissolve_seconds"]}
    delay = {"DissolveDelaySeconds": neuron["dissolve_seconds"]}
    power = voting_power(neuron, now)
    return {
        "id": {"id": neuron["id"]},
        "controller": neuron["controller"],
        "account": neuron["subaccount"],
        "cached_neuron_stake_e8s": neuron["stake_e8s"],
        "neuron_fees_e8s": neuron["fees_e8s"],
        "created_timestamp_seconds": neuron["created"],
        "aging_since_timestamp_seconds": neuron["aging_since"],
        "dissolve_state": when if neuron["dissolving"] else delay,
        "deciding_voting_power": power,
        "potential_voting_power": power,
    }


def info(neuron, now):
    return {
        "dissolve_delay_seconds": delay_of(neuron, now),
        "age_seconds": age_of(neuron, now),
        "state": state_of(neuron, now),
        "stake_e8s": max(neuron["stake_e8s"] - neuron["fees_e8s"], 0),
        "voting_power": voting_power(neuron, now),
        "created_timestamp_seconds": neuron["created"],
        "retrieved_at_timestamp_seconds": now,
    }
