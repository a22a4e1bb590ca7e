"""Proposals: making, voting, deciding, executing.

A proposal is decided as soon as one side has the absolute majority, else at its deadline.
"""

from replica.abi.v1 import LATER, Refuse

from . import actions
from .neurons import SECOND, parameter
from .records import PROPOSAL, encode_context
from .voting_power import position_of, power_at, take_snapshot, vote_at, with_vote

OPEN, REJECTED, ADOPTED, EXECUTED, FAILED = 1, 2, 3, 4, 5
YES, NO = 1, 2
QUORUM_NUMERATOR, QUORUM_DENOMINATOR = 3, 100
TITLE_MIN, TITLE_MAX, SUMMARY_MAX, URL_MAX = 5, 256, 15_000, 2_048
OPEN_MAX = 200


def error(kind, message):
    types = {
        "NotAuthorized": 2,
        "NotFound": 5,
        "InsufficientFunds": 12,
        "PreconditionFailed": 8,
        "ResourceExhausted": 7,
        "InvalidProposal": 16,
        "InvalidCommand": 4,
        "External": 14,
    }
    return {"Error": {"error_type": types[kind], "error_message": message}}


def text_fault(proposal):
    title = proposal["title"] or ""
    if not TITLE_MIN <= len(title.encode()) <= TITLE_MAX:
        return f"the title must have {TITLE_MIN} to {TITLE_MAX} bytes"
    if len(proposal["summary"].encode()) > SUMMARY_MAX:
        return f"the summary has at most {SUMMARY_MAX} bytes"
    if len(proposal["url"]) > URL_MAX:
        return f"the url has at most {URL_MAX} characters"
    return None


def make(ctx, neuron, proposal):
    """Check a proposal; store it, after a dry run by its target where there is one."""
    fault = text_fault(proposal) or actions.fault(proposal["action"])
    if fault:
        return error("InvalidProposal", fault)
    cost = parameter(ctx, "reject_cost_e8s")
    if neuron["stake_e8s"] - neuron["fees_e8s"] < cost:
        return error("InsufficientFunds", f"proposing takes a stake of {cost} e8s at least")
    if sum(1 for _ in ctx.table("proposals").by_index("by_status", OPEN)) >= OPEN_MAX:
        return error("ResourceExhausted", f"{OPEN_MAX} proposals are open already")
    dry = actions.dry_run(proposal["action"])
    if dry is None:
        return store(ctx, neuron, proposal)
    target, method, payload = dry
    context = encode_context(neuron["id"], PROPOSAL, proposal)
    ctx.call(target, method, payload, on_reply="on_dry_run", context=context)
    return LATER


def store(ctx, neuron, proposal):
    now = ctx.time_ns // SECOND
    delay_min = parameter(ctx, "minimum_dissolve_delay_to_vote_seconds")
    snapshot_id, total = take_snapshot(ctx, now, delay_min)
    snapshot = ctx.table("snapshots").get(snapshot_id)
    newest = next(iter(ctx.table("proposals").range(reverse=True)), None)
    number = 1 if newest is None else newest["id"] + 1
    cost = parameter(ctx, "reject_cost_e8s")
    neuron["fees_e8s"] += cost
    ctx.table("neurons").put(**neuron)
    count = len(snapshot["neurons"]) // 8
    ctx.table("proposals").put(
        id=number,
        proposer=neuron["id"],
        title=proposal["title"],
        summary=proposal["summary"],
        url=proposal["url"],
        action=actions.pack(proposal["action"]),
        topic=actions.topic(proposal["action"]),
        status=OPEN,
        created=now,
        deadline=now + parameter(ctx, "voting_period_seconds"),
        decided=0,
        executed=0,
        failed=0,
        failure=None,
        snapshot=snapshot_id,
        votes=bytes((count + 3) // 4),
        yes=0,
        no=0,
        total=total,
        reject_cost_e8s=cost,
    )
    position = position_of(snapshot, neuron["id"])
    if position is not None:
        cast(ctx, ctx.table("proposals").get(number), position, power_at(snapshot, position), YES)
    set_timer(ctx)
    return {"MakeProposal": {"message": None, "proposal_id": {"id": number}}}


def register_vote(ctx, neuron, proposal_id, vote):
    proposal = ctx.table("proposals").get(proposal_id)
    if proposal is None:
        return error("NotFound", f"there is no proposal {proposal_id}")
    if vote not in (YES, NO):
        return error("InvalidCommand", "a vote is 1 (yes) or 2 (no)")
    if ctx.time_ns // SECOND > proposal["deadline"]:
        return error("PreconditionFailed", f"the voting period of {proposal_id} is over")
    snapshot = ctx.table("snapshots").get(proposal["snapshot"])
    position = position_of(snapshot, neuron["id"])
    if position is None:
        return error(
            "NotAuthorized",
            f"neuron {neuron['id']} has no ballot on {proposal_id}: it could not vote yet when "
            "the proposal was made",
        )
    if vote_at(proposal["votes"], position):
        return error("PreconditionFailed", f"neuron {neuron['id']} has voted already")
    cast(ctx, proposal, position, power_at(snapshot, position), vote)
    return {"RegisterVote": {}}


def cast(ctx, proposal, position, power, vote):
    proposal["votes"] = with_vote(proposal["votes"], position, vote)
    proposal["yes" if vote == YES else "no"] += power
    ctx.table("proposals").put(**proposal)
    decide(ctx, proposal)


def decide(ctx, proposal):
    """Adopt or reject a proposal whose fate is sealed."""
    if proposal["status"] != OPEN:
        return
    yes, no, total = proposal["yes"], proposal["no"], proposal["total"]
    over = ctx.time_ns // SECOND >= proposal["deadline"]
    quorum = yes * QUORUM_DENOMINATOR >= total * QUORUM_NUMERATOR
    if yes > total - yes or (over and yes > no and quorum):
        proposal["status"] = ADOPTED
    elif no >= total - no or over:
        proposal["status"] = REJECTED
    else:
        return
    proposal["decided"] = ctx.time_ns // SECOND
    ctx.table("proposals").put(**proposal)
    if proposal["status"] == ADOPTED:
        give_back(ctx, proposal)
        execute(ctx, proposal)


def give_back(ctx, proposal):
    neuron = ctx.table("neurons").get(proposal["proposer"])
    if neuron is not None:
        neuron["fees_e8s"] = max(neuron["fees_e8s"] - proposal["reject_cost_e8s"], 0)
        ctx.table("neurons").put(**neuron)


def execute(ctx, proposal):
    call = actions.execution(actions.unpack(proposal["action"]))
    if call is None:
        finish(ctx, proposal["id"], None)
        return
    target, method, payload = call
    ctx.call(
        target, method, payload, on_reply="on_executed", context=proposal["id"].to_bytes(8, "big")
    )


def finish(ctx, proposal_id, failure):
    proposal = ctx.table("proposals").get(proposal_id)
    now = ctx.time_ns // SECOND
    proposal["status"] = EXECUTED if failure is None else FAILED
    proposal["executed" if failure is None else "failed"] = now
    proposal["failure"] = failure
    ctx.table("proposals").put(**proposal)


def decide_overdue(ctx):
    due = list(ctx.table("proposals").by_index("by_status", OPEN))
    for proposal in due:
        decide(ctx, proposal)
    set_timer(ctx)


def set_timer(ctx):
    """Wake up at the nearest deadline."""
    deadlines = [p["deadline"] for p in ctx.table("proposals").by_index("by_status", OPEN)]
    ctx.set_timer(min(deadlines) * SECOND if deadlines else 0)


def dry_run_failed(outcome):
    if outcome.ok:
        return None
    return error("InvalidProposal", f"the dry run failed: {outcome.reject_message}")


def need_neuron(ctx, neuron_id):
    neuron = ctx.table("neurons").get(neuron_id)
    if neuron is None:
        raise Refuse(f"neuron {neuron_id} is gone")
    return neuron
