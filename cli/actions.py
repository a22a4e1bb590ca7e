"""Commands that change something: proposals, votes, stakes, calls, recovery plans."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import context, views
from cli import nns_client as nns
from cli.lab.layout import Swarm
from cli.output import plain, progress, say
from cli.recovery import plan as recovery
from replica.client.agent import Agent
from replica.protocol import candid
from replica.protocol.errors import Malformed, NotFound
from replica.protocol.ids import Principal
from replica.runtime.durable import write_durably


def proposer(folder: Path, identity: str, neuron: int | None) -> tuple[Agent, int]:
    agent = context.nns_agent(context.swarm(folder), identity)
    return agent, neuron if neuron is not None else nns.default_neuron(agent)


def told(proposal: int, agent: Agent) -> None:
    info = nns.proposal_info(agent, proposal)
    row = views.proposal_row(info)
    sys.stdout.write(f"{proposal}\n")
    hint = (
        f"; vote with `reprise proposal vote {proposal} --yes`" if row["status"] == "open" else ""
    )
    say(f"proposal {proposal} is {row['status']}: {row['yes']} yes of {row['total']}{hint}")


def halt(folder: Path, subnet: str, identity: str, neuron: int | None) -> None:
    entry = context.swarm(folder).subnet(subnet)
    agent, number = proposer(folder, identity, neuron)
    payload = {"subnet_id": entry.id, "operational_level": 2}
    made = nns.propose(
        agent,
        number,
        f"Halt subnet {entry.name}",
        "The subnet is to stand still so that its state can be attested.",
        nns.SET_OPERATIONAL_LEVEL,
        payload,
    )
    told(made, agent)


def change_members(
    folder: Path, subnet: str, add: list[str], remove: list[str], identity: str, neuron: int | None
) -> None:
    swarm = context.swarm(folder)
    entry = swarm.subnet(subnet)
    coming, going = [swarm.node(n) for n in add], [swarm.node(n) for n in remove]
    agent, number = proposer(folder, identity, neuron)
    payload = {
        "subnet_id": entry.id,
        "node_ids_add": [n.id for n in coming],
        "node_ids_remove": [n.id for n in going],
    }
    names = [f"add {n.name}" for n in coming] + [f"remove {n.name}" for n in going]
    title = f"Subnet {entry.name}: {', '.join(names)}"[:256]
    text = "The subnet's keys are reshared to its new members; its public key stays."
    told(nns.propose(agent, number, title, text, nns.CHANGE_MEMBERSHIP, payload), agent)


def submit_motion(folder: Path, title: str, motion: str, identity: str, neuron: int | None) -> None:
    agent, number = proposer(folder, identity, neuron)
    told(nns.propose_motion(agent, number, title, motion), agent)


def vote(folder: Path, proposal: int, yes: bool, identity: str, neuron: int | None) -> None:
    agent, number = proposer(folder, identity, neuron)
    nns.vote(agent, number, proposal, nns.YES if yes else nns.NO)
    info = nns.proposal_info(agent, proposal)
    row = views.proposal_row(info)
    say(
        f"neuron {number} voted {'yes' if yes else 'no'}; proposal {proposal} is {row['status']}: "
        f"{row['yes']} yes, {row['no']} no of {row['total']}"
    )


def stake(folder: Path, amount: float, identity: str, memo: int) -> None:
    agent = context.nns_agent(context.swarm(folder), identity)
    number = nns.stake(agent, round(amount * 1e8), memo)
    sys.stdout.write(f"{number}\n")


def canister(folder: Path, text: str, method: str, arg: str, identity: str, *, query: bool) -> None:
    """Call or query with JSON arguments, typed by the canister's .did where it is known."""
    found = context.swarm(folder)
    id_ = Principal.from_text(views.resolve_canister(folder, text))
    agent = found.agent(found.subnet_of_canister(id_), found.identity(identity))
    did = _interface(found, id_)
    spec = did.methods.get(method)
    if spec is None:
        known = ", ".join(sorted(did.methods))
        raise NotFound(f"{text} has no method {method}; it has {known}")
    try:
        values = json.loads(arg)
    except ValueError as error:
        raise Malformed(f"the arguments are not JSON: {error}") from error
    if not isinstance(values, list):
        values = [values]
    typed = [from_json(t, v, did) for t, v in zip(spec.args, values)]
    raw = candid.encode(spec.args, typed, did)
    if query:
        answer = agent.query(id_, method, raw)  # type: ignore[arg-type]
    else:
        answer = agent.call(id_, method, raw, on_retry=progress("retry"))  # type: ignore[arg-type]
    results = candid.decode(spec.results, answer, did)
    sys.stdout.write(json.dumps(plain(results[0] if len(results) == 1 else results)) + "\n")


def _interface(found: Any, id_: Principal) -> candid.Interface:
    from cli.lab.workload import JOURNAL

    if id_ == found.journal:
        return JOURNAL
    for name, known in nns.CANISTERS.items():
        if id_ == known:
            return nns.interface(name)
    raise NotFound(f"the interface of {id_} is not known here")


def from_json(type_: candid.Type, value: Any, did: candid.Interface) -> Any:
    """Turn JSON into Candid values: hex for blobs, text for principals."""
    from replica.protocol.candid.types import Opt, Prim, Record, Variant, Vec

    type_ = did.resolve(type_)
    if type_ == Prim("principal"):
        return Principal.from_text(value)
    if isinstance(type_, Opt):
        return None if value is None else from_json(type_.inner, value, did)
    if isinstance(type_, Vec):
        if did.resolve(type_.inner) == Prim("nat8"):
            return bytes.fromhex(value)
        return [from_json(type_.inner, v, did) for v in value]
    if isinstance(type_, Record) and isinstance(value, dict):
        return {f.name: from_json(f.type, value.get(f.name), did) for f in type_.fields}
    if isinstance(type_, Variant) and isinstance(value, dict):
        return {
            f.name: from_json(f.type, value[f.name], did) for f in type_.fields if f.name in value
        }
    return value


# --- recovery --------------------------------------------------------------------------------


def _members_after(found: Swarm, present: Sequence[Principal], pairs: list[str]) -> list[Principal]:
    """Return who is a member once nodes are replaced as in OLD=NEW. Raises: Malformed."""
    members = list(present)
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator:
            raise Malformed(f"--replace takes OLD=NEW, not {pair}")
        gone = found.node(old).id
        if gone not in members:
            raise Malformed(f"{old} is not a member of the subnet")
        members[members.index(gone)] = found.node(new).id
    return members


def plan(folder: Path, subnet: str, out: Path, replaced: list[str]) -> dict[str, Any]:
    found = context.swarm(folder)
    entry = found.subnet(subnet)
    records = context.records(found)
    probe = Agent([], found.root_key, timeout_s=5.0)
    nns_agent = context.nns_agent(found, "default")
    present = records.view(entry.id, records.version).members
    entry = dataclasses.replace(entry, nodes=tuple(found.node(str(n)) for n in present))
    members = _members_after(found, present, replaced) if replaced else None
    made = recovery.make(entry, nns_agent, probe, records, progress("plan"), members)
    shown = made.to_plain()
    write_durably(out.resolve(), json.dumps(shown, indent=1).encode())
    say(f"plan written to {out}; file it with `reprise recover subnet propose {out}`")
    del shown["payload"]
    shown["changes"] = [
        {
            "key": c["key"],
            "before": views.decode_record(c["key"], c["before"]) if c["before"] else None,
            "after": views.decode_record(c["key"], c["after"]) if c["after"] else None,
        }
        for c in made.changes
        if not c["key"].startswith("catch_up_package")
    ]
    return shown


def propose(folder: Path, path: Path, identity: str, neuron: int | None) -> None:
    try:
        shown = json.loads(path.read_text())
        raw = bytes.fromhex(shown["payload"])
    except (OSError, ValueError, KeyError) as error:
        raise Malformed(f"{path} is no plan: {error}") from error
    payload = nns.decode_payload(nns.RECOVER_SUBNET, raw)
    agent, number = proposer(folder, identity, neuron)
    summary = "\n".join(shown["findings"])[:14_000]
    made = nns.propose(
        agent,
        number,
        f"Recover subnet {shown['subnet']}",
        summary,
        nns.RECOVER_SUBNET,
        payload,
    )
    told(made, agent)
