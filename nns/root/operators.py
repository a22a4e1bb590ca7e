"""Node operators of the NNS subnet vote on an upgrade of governance, when governance can't.

One ballot a node; n - f must say yes. A proposal is bound to the module that runs, the module that
is proposed, and the version of the subnet's membership; it ends when any of these changes, when
more than f say no, or after seven days.
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    MANAGEMENT_CANISTER,
    REGISTRY,
    Rejected,
    ballots,
    decode,
    encode,
    sha256,
)

from . import changes

SECOND = 1_000_000_000
TTL_S = 7 * 86_400
YES, NO = 1, 2
BALLOTS_MAX = 100
REQUEST = "(blob, blob, blob, bool)"
VOTES = "(principal, blob, vec record { principal; int32 })"
MEMBERSHIP = """(record { version : nat64;
  members : vec record { node : principal; operator : principal; operator_key : blob } })"""
STATUS = "(record { module_hash : opt blob })"


def request_fault(expected, request):
    if request["canister_id"] != GOVERNANCE or "upgrade" not in request["mode"]:
        return "node operators can upgrade governance, and nothing else"
    if len(expected) != 32 or not request["wasm_module"]:
        return "give the SHA-256 of governance's present module, and the module that replaces it"
    return None


def pack(expected, request):
    return encode(
        REQUEST,
        expected,
        request["wasm_module"],
        request["arg"],
        request["stop_before_installing"],
    )


def ask_membership(ctx, on_reply, context):
    ctx.call(REGISTRY, "nns_membership", encode("()"), on_reply=on_reply, context=context)
    return LATER


def on_membership(ctx, outcome, context):
    """The proposer must run a node of the NNS subnet; then look at what governance runs."""
    if not outcome.ok:
        return {"Err": f"the registry does not answer: {outcome.reject_message}"}
    known = decode(MEMBERSHIP, outcome.reply)[0]
    if all(m["operator"] != ctx.caller for m in known["members"]):
        return {"Err": f"{ctx.caller} operates no node of the NNS subnet"}
    status = encode("(record { canister_id : principal })", {"canister_id": GOVERNANCE})
    both = encode("(blob, blob)", context, outcome.reply)
    ctx.call(MANAGEMENT_CANISTER, "canister_status", status, on_reply="on_status", context=both)
    return LATER


def on_status(ctx, outcome, context):
    request, membership = decode("(blob, blob)", context)
    expected, module, arg, stop = decode(REQUEST, request)
    known = decode(MEMBERSHIP, membership)[0]
    running = module_hash(outcome)
    if running != expected:
        found = "none" if running is None else running.hex()
        return {"Err": f"governance runs module {found}, not the expected {expected.hex()}"}
    now = ctx.time_ns // SECOND
    forget(ctx, ctx.caller)
    parts = [
        bytes(ctx.caller),
        expected,
        sha256(module),
        sha256(arg),
        known["version"],
        now + TTL_S,
    ]
    ctx.table("root_proposals").put(
        proposer=ctx.caller,
        current_hash=expected,
        module=module,
        arg=arg,
        stop=stop,
        membership_version=known["version"],
        submitted=now,
        deadline=now + TTL_S,
        subject=ballots.subject_of(ballots.GOVERNANCE_UPGRADE, parts),
    )
    for member in known["members"]:
        ctx.table("root_ballots").put(
            proposer=ctx.caller, node=member["node"], operator=member["operator"], vote=0
        )
    return count(ctx, ctx.caller, {ctx.caller: YES})


def module_hash(outcome):
    return decode(STATUS, outcome.reply)[0]["module_hash"] if outcome.ok else None


def find(ctx, proposer):
    """Return the proposal of a proposer; one whose time is over is forgotten."""
    found = ctx.table("root_proposals").get(proposer)
    if found is not None and found["deadline"] < ctx.time_ns // SECOND:
        forget(ctx, proposer)
        return None
    return found


def forget(ctx, proposer):
    ctx.table("root_proposals").delete(proposer)
    for row in list(ctx.table("root_ballots").range(proposer)):
        ctx.table("root_ballots").delete(row["proposer"], row["node"])


def cast_ballots(ctx, proposer, raws):
    """Take ballots that were signed elsewhere, for one proposal."""
    found = find(ctx, proposer)
    if found is None:
        return {"Err": f"{proposer} has no proposal pending"}
    if len(raws) > BALLOTS_MAX:
        return {"Err": f"at most {BALLOTS_MAX} ballots at once"}
    votes = []
    for raw in raws:
        try:
            ballot = ballots.decode(raw)
        except Rejected as error:
            return {"Err": str(error)}
        if ballot.purpose != ballots.GOVERNANCE_UPGRADE or ballot.subject != found["subject"]:
            return {"Err": f"the ballot of {ballot.voter} is for another proposal"}
        if ballot.deadline_s < ctx.time_ns // SECOND:
            return {"Err": f"the ballot of {ballot.voter} is too old"}
        votes.append({"0": ballot.voter, "1": ballot.choice})
    return ask_membership(ctx, "on_votes", encode(VOTES, proposer, found["subject"], votes))


def on_votes(ctx, outcome, context):
    """Count votes, if the membership is still the one that the proposal was made for."""
    if not outcome.ok:
        return {"Err": f"the registry does not answer: {outcome.reject_message}"}
    proposer, subject, votes = decode(VOTES, context)
    found = find(ctx, proposer)
    if found is None or found["subject"] != subject:
        return {"Err": "the proposal is not pending any more"}
    known = decode(MEMBERSHIP, outcome.reply)[0]
    if known["version"] != found["membership_version"]:
        forget(ctx, proposer)
        return {"Err": "the NNS subnet's membership has changed: the proposal is void"}
    return count(ctx, proposer, {v["0"]: v["1"] for v in votes})


def count(ctx, proposer, votes):
    rows = list(ctx.table("root_ballots").range(proposer))
    used = 0
    for row in rows:
        vote = votes.get(row["operator"])
        if vote is None or row["vote"]:
            continue
        row["vote"] = vote
        ctx.table("root_ballots").put(**row)
        used += 1
    if not used:
        return {"Err": "no such vote is open: not an operator of the NNS subnet, or voted already"}
    n = len(rows)
    faults = (n - 1) // 3
    yes = sum(1 for r in rows if r["vote"] == YES)
    no = sum(1 for r in rows if r["vote"] == NO)
    text = f"{yes} yes, {no} no of {n} nodes; {n - faults} yes are needed"
    if no > faults:
        forget(ctx, proposer)
        return {"Ok": text + ": rejected"}
    if yes < n - faults:
        return {"Ok": text}
    status = encode("(record { canister_id : principal })", {"canister_id": GOVERNANCE})
    context = encode("(principal)", proposer)
    ctx.call(MANAGEMENT_CANISTER, "canister_status", status, on_reply="on_adopted", context=context)
    return LATER


def on_adopted(ctx, outcome, context):
    """Carry out what n - f nodes want, if governance still runs what they wanted replaced."""
    (proposer,) = decode("(principal)", context)
    found = find(ctx, proposer)
    if found is None:
        return {"Err": "the proposal is not pending any more"}
    forget(ctx, proposer)
    if module_hash(outcome) != found["current_hash"]:
        return {"Err": "governance runs another module by now: the proposal is void"}
    request = {
        "stop_before_installing": found["stop"],
        "mode": {"upgrade": None},
        "canister_id": GOVERNANCE,
        "wasm_module": found["module"],
        "arg": found["arg"],
    }
    changes.begin(ctx, request)
    return {"Ok": "adopted; list_changes tells what becomes of it"}


def show(ctx, row):
    names = {0: "Undecided", YES: "Yes", NO: "No"}
    return {
        "proposer": row["proposer"],
        "current_wasm_sha": row["current_hash"],
        "proposed_wasm_sha": sha256(row["module"]),
        "arg_sha": sha256(row["arg"]),
        "subnet_membership_registry_version": row["membership_version"],
        "submission_timestamp_seconds": row["submitted"],
        "deadline_timestamp_seconds": row["deadline"],
        "subject": row["subject"],
        "node_operator_ballots": [
            {"node": b["node"], "operator": b["operator"], "ballot": {names[b["vote"]]: None}}
            for b in ctx.table("root_ballots").range(row["proposer"])
        ],
    }
