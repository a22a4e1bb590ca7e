"""Root: controls every NNS canister but itself, and changes them when governance says so.

When governance itself is broken, the node operators of the NNS subnet decide instead.
Source: reference/recovery.md §1.4 (dfinity/ic rs/nervous_system/root and rs/nns/handlers/root).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    Refuse,
    decode,
    encode,
    query,
    reply,
    sha256,
    update,
)

from . import changes, operators

TARGET = "(record { canister_id : principal })"


def only_governance(ctx):
    if ctx.caller != GOVERNANCE:
        raise Refuse("only governance changes canisters through root")


@update
def change_nns_canister(ctx, request):
    only_governance(ctx)
    return changes.begin(ctx, request)


@update
def stop_or_start_nns_canister(ctx, request):
    only_governance(ctx)
    ((action, _),) = request["action"].items()
    arg = encode(TARGET, {"canister_id": request["canister_id"]})
    ctx.call(MANAGEMENT_CANISTER, f"{action}_canister", arg, on_reply="on_done")
    return LATER


@update
def take_canister_snapshot(ctx, request):
    only_governance(ctx)
    arg = encode(
        "(record { canister_id : principal; replace_snapshot : opt blob })",
        {"canister_id": request["canister_id"], "replace_snapshot": request["replace_snapshot"]},
    )
    ctx.call(MANAGEMENT_CANISTER, "take_canister_snapshot", arg, on_reply="on_snapshot_taken")
    return LATER


@update
def load_canister_snapshot(ctx, request):
    """Bring a canister back to a snapshot of it: stopped before, started after."""
    only_governance(ctx)
    return changes.begin_load(ctx, request)


@update
def list_canister_snapshots(ctx, request):
    arg = encode(TARGET, {"canister_id": request["canister_id"]})
    ctx.call(MANAGEMENT_CANISTER, "list_canister_snapshots", arg, on_reply="on_snapshots_listed")
    return LATER


SNAPSHOT = "record { id : blob; taken_at_timestamp : nat64; total_size : nat64 }"


@reply
def on_done(ctx, outcome, _context):
    if not outcome.ok:
        raise Refuse(outcome.reject_message)


@reply
def on_snapshot_taken(ctx, outcome, _context):
    if not outcome.ok:
        raise Refuse(outcome.reject_message)
    return decode(f"({SNAPSHOT})", outcome.reply)[0]


@reply
def on_snapshots_listed(ctx, outcome, _context):
    if not outcome.ok:
        raise Refuse(outcome.reject_message)
    return decode(f"(vec {SNAPSHOT})", outcome.reply)[0]


@query
def list_changes(ctx):
    return [changes.show(row) for row in ctx.table("changes").range(reverse=True)]


# --- a change, step by step ---------------------------------------------------------------------


@reply
def on_stopped(ctx, outcome, context):
    return changes.on_stopped(ctx, outcome, context)


@reply
def on_installed(ctx, outcome, context):
    return changes.on_installed(ctx, outcome, context)


@reply
def on_started(ctx, outcome, context):
    return changes.on_started(ctx, outcome, context)


@reply
def on_reported(ctx, _outcome, context):
    raise Refuse(changes.failure_of(ctx, context))


# --- node operators in governance's place -------------------------------------------------------


@update
def submit_root_proposal_to_upgrade_governance_canister(ctx, expected, request):
    fault = operators.request_fault(expected, request)
    if fault:
        return {"Err": fault}
    return operators.ask_membership(ctx, "on_membership", operators.pack(expected, request))


@reply
def on_membership(ctx, outcome, context):
    return operators.on_membership(ctx, outcome, context)


@reply
def on_status(ctx, outcome, context):
    return operators.on_status(ctx, outcome, context)


@update
def vote_on_root_proposal_to_upgrade_governance_canister(ctx, proposer, wasm_sha, ballot):
    found = operators.find(ctx, proposer)
    if found is None:
        return {"Err": f"{proposer} has no proposal pending"}
    if wasm_sha != sha256(found["module"]):
        return {"Err": "the proposal is for another module than the one that is voted on"}
    if "Undecided" in ballot:
        return {"Err": "vote Yes or No"}
    vote = 1 if "Yes" in ballot else 2
    votes = encode(operators.VOTES, proposer, found["subject"], [{"0": ctx.caller, "1": vote}])
    return operators.ask_membership(ctx, "on_votes", votes)


@update
def cast_ballots(ctx, arg):
    return operators.cast_ballots(ctx, arg["proposer"], arg["ballots"])


@reply
def on_votes(ctx, outcome, context):
    return operators.on_votes(ctx, outcome, context)


@reply
def on_adopted(ctx, outcome, context):
    return operators.on_adopted(ctx, outcome, context)


@query
def get_pending_root_proposals_to_upgrade_governance_canister(ctx):
    return [operators.show(ctx, row) for row in ctx.table("root_proposals").range()]
