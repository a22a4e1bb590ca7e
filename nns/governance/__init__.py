"""Governance: neurons hold voting power, proposals are voted on, adopted ones are executed.

Source: reference/governance.md §1 (dfinity/ic rs/nns/governance); methods and records are the IC's.
"""

from replica.abi.v1 import LATER, init, post_upgrade, query, reply, timer, update

from . import actions, neurons, proposals
from .neurons import SECOND, new_neuron, parameter
from .proposals import error
from .records import PROPOSAL, decode_context
from .voting_power import position_of, power_at, vote_at

LIST_MAX = 100


@init
def install(ctx, arg):
    now = ctx.time_ns // SECOND
    for n in arg["neurons"]:
        made = new_neuron(
            n["id"],
            n["controller"],
            n["subaccount"],
            n["stake_e8s"],
            n["dissolve_delay_seconds"],
            now,
        )
        ctx.table("neurons").put(**made)
    for name in (
        "voting_period_seconds",
        "reject_cost_e8s",
        "minimum_stake_e8s",
        "minimum_dissolve_delay_to_vote_seconds",
    ):
        ctx.table("parameters").put(name=name, value=arg[name])


@post_upgrade
def upgraded(ctx):
    """A timer does not outlive the code that set it."""
    proposals.set_timer(ctx)


@timer
def on_deadline(ctx):
    proposals.decide_overdue(ctx)


@update
def manage_neuron(ctx, arg):
    command = arg["command"]
    if command is None:
        return answer(error("InvalidCommand", "name a command"))
    neuron = None if arg["id"] is None else ctx.table("neurons").get(arg["id"]["id"])
    if "ClaimOrRefresh" in command:
        claimed = neurons.claim_or_refresh(ctx, command["ClaimOrRefresh"]["by"], neuron)
        return claimed or answer(error("NotFound", "name a memo or a neuron"))
    if neuron is None:
        return answer(error("NotFound", "there is no such neuron"))
    if neuron["controller"] != ctx.caller:
        return answer(
            error("NotAuthorized", f"{ctx.caller} does not control neuron {neuron['id']}")
        )
    return answer(run(ctx, neuron, command))


def run(ctx, neuron, command):
    if "MakeProposal" in command:
        return proposals.make(ctx, neuron, command["MakeProposal"])
    if "RegisterVote" in command:
        vote = command["RegisterVote"]
        if vote["proposal"] is None:
            return error("InvalidCommand", "name a proposal")
        return proposals.register_vote(ctx, neuron, vote["proposal"]["id"], vote["vote"])
    fault = neurons.configure(ctx, neuron, command["Configure"]["operation"])
    return error("PreconditionFailed", fault) if fault else {"Configure": {}}


def answer(command):
    return command if command is LATER else {"command": command}


@reply
def on_balance(ctx, outcome, context):
    number, fault = neurons.on_balance(ctx, outcome, context)
    if fault:
        return answer(error("InsufficientFunds", fault))
    return answer({"ClaimOrRefresh": {"refreshed_neuron_id": {"id": number}}})


@reply
def on_dry_run(ctx, outcome, context):
    neuron_id, proposal = decode_context(PROPOSAL, context)
    failed = proposals.dry_run_failed(outcome)
    if failed:
        return answer(failed)
    return answer(proposals.store(ctx, proposals.need_neuron(ctx, neuron_id), proposal))


@reply
def on_executed(ctx, outcome, context):
    failure = None if outcome.ok else outcome.reject_message
    proposals.finish(ctx, int.from_bytes(context, "big"), failure)
    return LATER


# --- reading -----------------------------------------------------------------------------------


@query
def list_neurons(ctx, arg):
    now = ctx.time_ns // SECOND
    found = {}
    for number in arg["neuron_ids"]:
        neuron = ctx.table("neurons").get(number)
        if neuron is not None:
            found[number] = neuron
    if arg["include_neurons_readable_by_caller"]:
        for neuron in ctx.table("neurons").by_index("by_controller", ctx.caller):
            found[neuron["id"]] = neuron
    own = [n for n in found.values() if n["controller"] == ctx.caller]
    return {
        "neuron_infos": [{"0": i, "1": neurons.info(n, now)} for i, n in found.items()],
        "full_neurons": [neurons.full(n, now) for n in own],
    }


@query
def get_full_neuron(ctx, number):
    neuron = ctx.table("neurons").get(number)
    if neuron is None:
        return {"Err": error("NotFound", f"there is no neuron {number}")["Error"]}
    return {"Ok": neurons.full(neuron, ctx.time_ns // SECOND)}


@query
def get_neuron_info(ctx, number):
    neuron = ctx.table("neurons").get(number)
    if neuron is None:
        return {"Err": error("NotFound", f"there is no neuron {number}")["Error"]}
    return {"Ok": neurons.info(neuron, ctx.time_ns // SECOND)}


@query
def list_proposals(ctx, arg):
    before = arg["before_proposal"]
    start = None if before is None else (before["id"],)
    out = []
    for p in ctx.table("proposals").range(start=start, reverse=True):
        if len(out) >= min(arg["limit"] or LIST_MAX, LIST_MAX):
            break
        wanted = not arg["include_status"] or p["status"] in arg["include_status"]
        if wanted and p["topic"] not in arg["exclude_topic"]:
            out.append(show(ctx, p, brief=bool(arg["omit_large_fields"])))
    return {"proposal_info": out}


@query
def get_proposal_info(ctx, number):
    proposal = ctx.table("proposals").get(number) if number < 1 << 63 else None
    return None if proposal is None else show(ctx, proposal, brief=False)


@query
def get_network_economics_parameters(ctx):
    return {
        "neuron_minimum_stake_e8s": parameter(ctx, "minimum_stake_e8s"),
        "reject_cost_e8s": parameter(ctx, "reject_cost_e8s"),
        "transaction_fee_e8s": 10_000,
    }


def show(ctx, p, brief):
    failure = None
    if p["failure"] is not None:
        failure = error("External", p["failure"])["Error"]
    action = actions.shown(actions.unpack(p["action"]), brief)
    return {
        "id": {"id": p["id"]},
        "proposer": {"id": p["proposer"]},
        "status": p["status"],
        "topic": p["topic"],
        "latest_tally": {
            "yes": p["yes"],
            "no": p["no"],
            "total": p["total"],
            "timestamp_seconds": ctx.time_ns // SECOND,
        },
        "proposal": {
            "url": p["url"],
            "title": p["title"],
            "summary": p["summary"],
            "action": action,
        },
        "ballots": own_ballots(ctx, p),
        "proposal_timestamp_seconds": p["created"],
        "deadline_timestamp_seconds": p["deadline"],
        "decided_timestamp_seconds": p["decided"],
        "executed_timestamp_seconds": p["executed"],
        "failed_timestamp_seconds": p["failed"],
        "failure_reason": failure,
        "reject_cost_e8s": p["reject_cost_e8s"],
        "reward_status": 1,
    }


def own_ballots(ctx, p):
    """Return the ballots of the caller's neurons."""
    snapshot = ctx.table("snapshots").get(p["snapshot"])
    out = []
    for neuron in ctx.table("neurons").by_index("by_controller", ctx.caller):
        position = position_of(snapshot, neuron["id"])
        if position is not None:
            vote, power = vote_at(p["votes"], position), power_at(snapshot, position)
            out.append({"0": neuron["id"], "1": {"vote": vote, "voting_power": power}})
    return out
