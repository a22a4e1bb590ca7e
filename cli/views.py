"""What the read-only commands show. Everything of the registry is verified before it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from cli import context
from cli import nns_client as nns
from cli.recovery import detect, flooders, reports
from cli.recovery import plan as recovery
from replica.client import local_registry as keys
from replica.client.agent import Agent
from replica.protocol.errors import Malformed, NotFound, ReprisError
from replica.protocol.hashing import sha256
from replica.protocol.ids import Principal
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse

RECORDS: tuple[tuple[str, Any], ...] = (
    ("subnet_record_", pb.SubnetRecord),
    ("subnet_list", pb.SubnetListRecord),
    ("catch_up_package_contents_", pb.CatchUpPackageContents),
    ("node_record_", pb.NodeRecord),
    ("node_operator_record_", pb.NodeOperatorRecord),
    ("crypto_record_", pb.PublicKey),
    ("crypto_threshold_", pb.PublicKey),
    ("crypto_tls_cert_", pb.X509PublicKeyCert),
    ("replica_version_", pb.ReplicaVersionRecord),
    ("blessed_replica_versions", pb.BlessedReplicaVersions),
    ("routing_table", pb.RoutingTable),
    ("provisional_whitelist", pb.ProvisionalWhitelist),
    ("nns_subnet_id", pb.SubnetId),
    ("nns_recovery_record", pb.NnsRecoveryRecord),
)


def decode_record(key: str, value: bytes) -> Any:
    """Return a registry value as plain data; its hex when the key is of an unknown kind."""
    for prefix, kind in RECORDS:
        if key.startswith(prefix):
            return MessageToDict(parse(kind, value), preserving_proto_field_name=True)
    return value.hex()


def subnets(folder: Path) -> list[dict[str, Any]]:
    found = context.swarm(folder)
    records = context.records(found)
    probe = Agent([], found.root_key, timeout_s=2.0)
    rows = []
    for entry in found.subnets:
        view = records.view(entry.id, records.version)
        height = detect.certified_height(detect.look(entry, probe))
        rows.append(
            {
                "name": entry.name,
                "id": str(entry.id),
                "type": "system" if view.is_system else "application",
                "nodes": len(view.members),
                "certified": height,
                "state": "halted" if view.is_halted else "running",
            }
        )
    return rows


def subnet_record(folder: Path, text: str) -> dict[str, Any]:
    found = context.swarm(folder)
    entry = found.subnet(text)
    key = keys.subnet_record(entry.id)
    return dict(decode_record(key, context.records(found).need(key)))


FLOOD_WATCH_S = 2.0
"""For so long at least a subnet is watched: who floods shows between two looks."""


def diagnosis(folder: Path, text: str) -> dict[str, Any]:
    """Watch a subnet for as long as its stall limit, unless it moves before."""
    import time

    found = context.swarm(folder)
    entry = found.subnet(text)
    records = context.records(found)
    probe = Agent([], found.root_key, timeout_s=2.0)
    view = records.view(entry.id, records.version)
    before = detect.look(entry, probe)
    began = time.monotonic()
    limit_s = max(view.stall_limit_ns / 1e9, FLOOD_WATCH_S)
    while time.monotonic() < began + limit_s:
        time.sleep(0.2)
        after = detect.look(entry, probe)
        moved = reports.movement(before, after)
        if moved.is_certifying and time.monotonic() > began + FLOOD_WATCH_S:
            first, last = moved.certified
            what = [f"certified height moves: {first}, {last}", *detect.idle_nodes(view, after)]
            what += detect.crash_loops(after, probe) + flooders.describe(before, after)
            state = {"state": detect.RUNNING, "certified_height": last}
            return {**state, "what": "; ".join(what)}
    judged = detect.diagnose(entry, before, detect.look(entry, probe), records, probe)
    return {
        "state": judged.cause,
        "certified_height": judged.certified_height,
        "what": judged.text,
        "shares": list(judged.shares),
    }


def node(folder: Path, text: str) -> dict[str, Any]:
    found = context.swarm(folder)
    entry = found.node(text)
    records = context.records(found)
    record = decode_record("node_record_", records.need(keys.node_record(entry.id)))
    return {
        "name": entry.name,
        "id": str(entry.id),
        "subnet": entry.subnet,
        "http_url": entry.http_url,
        "orchestrator_url": entry.orchestrator_url,
        "folder": str(entry.folder),
        "record": record,
    }


def node_status(folder: Path, text: str) -> dict[str, Any]:
    found = context.swarm(folder)
    entry = found.node(text)
    agent = Agent([], found.root_key, timeout_s=2.0)
    out: dict[str, Any] = {}
    for part, url, path in (
        ("replica", entry.http_url, "/_/status"),
        ("orchestrator", entry.orchestrator_url, "/status"),
    ):
        try:
            out[part] = agent._get(url, path).json()
        except ReprisError as error:
            out[part] = f"unreachable: {error}"
    return out


def registry_value(folder: Path, key: str, version: int | None) -> dict[str, Any]:
    records = context.records(context.swarm(folder))
    found = records.get_versioned(key, version)
    if found is None:
        near = records.keys(key[:12])[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise NotFound(f"the registry has no {key}{hint}")
    value, at = found
    return {"key": key, "version": at, "decoded": decode_record(key, value), "value": value}


def registry_history(folder: Path, key: str | None) -> list[dict[str, Any]]:
    records = context.records(context.swarm(folder))
    rows = []
    for delta in records.deltas:
        for m in delta.mutations:
            if key is None or m.key == key:
                rows.append(
                    {
                        "version": delta.version,
                        "key": m.key,
                        "bytes": len(m.value) if m.value is not None else 0,
                        "what": "set" if m.value is not None else "deleted",
                    }
                )
    if not rows:
        raise NotFound(f"the registry never had {key}")
    return rows


# --- governance ------------------------------------------------------------------------------


def proposal_row(info: dict[str, Any]) -> dict[str, Any]:
    tally = info["latest_tally"]
    return {
        "id": info["id"]["id"],
        "status": nns.STATUS_NAMES[info["status"]],
        "topic": info["topic"],
        "yes": tally["yes"],
        "no": tally["no"],
        "total": tally["total"],
        "title": info["proposal"]["title"],
    }


def proposals(folder: Path) -> list[dict[str, Any]]:
    agent = context.nns_agent(context.swarm(folder), "default")
    return [proposal_row(p) for p in nns.list_proposals(agent)]


def proposal(folder: Path, number: int) -> dict[str, Any]:
    agent = context.nns_agent(context.swarm(folder), "default")
    info = nns.proposal_info(agent, number)
    out = proposal_row(info)
    out["proposer"] = info["proposer"]["id"]
    out["summary"] = info["proposal"]["summary"]
    out["deadline_s"] = info["deadline_timestamp_seconds"]
    out["failure"] = info["failure_reason"]
    action = info["proposal"]["action"]
    if "ExecuteNnsFunction" in action:
        call = action["ExecuteNnsFunction"]
        out["function"] = nns.FUNCTION_NAMES.get(call["nns_function"], call["nns_function"])
        payload = nns.decode_payload(call["nns_function"], call["payload"])
        if payload.get("evidence") is not None:
            payload["evidence"] = (
                f"{len(payload['evidence'])} bytes; check with `reprise proposal verify {number}`"
            )
        if payload.get("wasm_module") is not None:
            payload["wasm_module"] = f"SHA-256 {sha256(payload['wasm_module']).hex()}"
        out["payload"] = payload
    else:
        out["action"] = action
    out["ballots"] = [
        {
            "neuron": b["0"],
            "vote": {0: "none", 1: "yes", 2: "no"}[b["1"]["vote"]],
            "voting_power": b["1"]["voting_power"],
        }
        for b in info["ballots"]
    ]
    return out


def verify_proposal(folder: Path, number: int) -> dict[str, Any]:
    found = context.swarm(folder)
    info = nns.proposal_info(context.nns_agent(found, "default"), number)
    action = info["proposal"]["action"].get("ExecuteNnsFunction")
    if action is None or action["nns_function"] != nns.RECOVER_SUBNET:
        raise Malformed(f"proposal {number} is no recovery: there is no evidence to check")
    payload = nns.decode_payload(action["nns_function"], action["payload"])
    judged = recovery.verify_payload(payload, context.records(found))
    return {
        "holds": True,
        "class": "certified",
        "proven_height": judged.proven_height,
        "state_height": judged.state_height,
        "state_hash": judged.state_hash,
        "attesting": list(judged.attesting),
        "cup_height": payload["height"],
    }


def neurons(folder: Path, identity: str) -> list[dict[str, Any]]:
    agent = context.nns_agent(context.swarm(folder), identity)
    rows = []
    for n in nns.own_neurons(agent):
        ((kind, seconds),) = n["dissolve_state"].items()
        rows.append(
            {
                "id": n["id"]["id"],
                "stake_icp": n["cached_neuron_stake_e8s"] / 1e8,
                "state": "locked" if kind == "DissolveDelaySeconds" else "dissolving",
                "dissolve_delay_s": seconds,
                "voting_power": n["deciding_voting_power"],
            }
        )
    return rows


def neuron(folder: Path, number: int) -> dict[str, Any]:
    agent = context.nns_agent(context.swarm(folder), "default")
    found = nns.query(agent, "governance", "get_neuron_info", number)
    if "Err" in found:
        raise NotFound(found["Err"]["error_message"])
    return dict(found["Ok"])


def canister(folder: Path, text: str) -> dict[str, Any]:
    from replica.protocol import cbor

    found = context.swarm(folder)
    id_ = Principal.from_text(resolve_canister(folder, text))
    agent = found.agent(found.subnet_of_canister(id_))
    base = (b"canister", bytes(id_))
    paths = [(*base, b"module_hash"), (*base, b"controllers")]
    verified = agent.read_state(paths, canister=id_)
    controllers = verified.leaf(*base, b"controllers")
    if controllers is None:
        raise NotFound(f"there is no canister {id_}")
    return {
        "id": str(id_),
        "module_hash": verified.leaf(*base, b"module_hash"),
        "controllers": [Principal(c) for c in cbor.loads(controllers)],
        "certified_time_ns": verified.time_ns,
    }


def resolve_canister(folder: Path, text: str) -> str:
    """Return a canister's id; the NNS canisters and the journal go by name."""
    from replica.protocol.ids import LIFELINE, ROOT

    names = {**nns.CANISTERS, "root": ROOT, "lifeline": LIFELINE}
    if text == "journal":
        return str(context.swarm(folder).journal)
    return str(names[text]) if text in names else text


def recovery_status(folder: Path, text: str) -> dict[str, Any]:
    found = context.swarm(folder)
    entry = found.subnet(text)
    records = context.records(found)
    view = records.view(entry.id, records.version)
    package = records.registry_cup(entry.id)
    assert package is not None
    rows = context.status_rows(found, entry)
    return {
        "halted": view.is_halted,
        "registry_version": records.version,
        "registry_cup_height": package.height,
        "epoch": package.epoch,
        "nodes": [
            f"{r['name']}: {r['status']}, CUP {r['cup']}, certified {r['certified']}" for r in rows
        ],
    }
