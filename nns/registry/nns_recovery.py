"""What the registry does in an offline recovery of the NNS, and whom it knows as its operators."""

from replica.abi.v1 import Principal, Refuse, messages

from . import releases
from .membership import check_free
from .store import get, need

RECORD = "nns_recovery_record"
PUBLIC_KEY_BYTES = 96


def nns_subnet(ctx):
    record = messages.parse(messages.SubnetId, need(ctx, "nns_subnet_id"))
    return Principal(record.principal_id.raw)


def membership(ctx):
    """Return the NNS subnet's nodes, each with its operator, and the newest version of these."""
    key = f"subnet_record_{nns_subnet(ctx)}"
    value, version = get(ctx, key)
    members = []
    for raw in messages.parse(messages.SubnetRecord, value).membership:
        node = Principal(raw)
        node_value, node_version = get(ctx, f"node_record_{node}")
        operator = Principal(messages.parse(messages.NodeRecord, node_value).node_operator_id)
        operator_value, operator_version = get(ctx, f"node_operator_record_{operator}")
        version = max(version, node_version, operator_version)
        members.append(
            {
                "node": node,
                "operator": operator,
                "operator_key": messages.parse(
                    messages.NodeOperatorRecord, operator_value
                ).public_key_der,
            }
        )
    return {"version": version, "members": members}


def nns_recovery_mutations(ctx, payload):
    """Return what an offline recovery changes: its record, what it replaces, no halt any more."""
    subnet = nns_subnet(ctx)
    key = f"subnet_record_{subnet}"
    settings = messages.parse(messages.SubnetRecord, need(ctx, key))
    settings.is_halted = False
    settings.halt_at_cup_height = False
    mutations = []
    version = payload["replica_version_id"]
    if version is not None and version not in releases.blessed(ctx):
        election = {
            "replica_version_to_elect": version,
            "replica_versions_to_unelect": [],
            "release_package_sha256_hex": payload["release_package_sha256_hex"],
            "release_package_urls": payload["release_package_urls"],
        }
        mutations += releases.revision(ctx, election)
    if version is not None:
        if version in settings.recalled_replica_version_ids:
            raise Refuse(f"{version} is recalled for the NNS subnet")
        settings.replica_version_id = version
    if payload["members"] is not None:
        mutations += new_committee(ctx, subnet, settings, payload)
    note = messages.NnsRecoveryRecord(
        height=payload["height"],
        time=payload["time_ns"],
        state_height=payload["state_height"],
        state_hash=payload["state_hash"],
        replica_version_id=version or "",
        canister_id=bytes(payload["canister_id"] or b""),
        module_hash=payload["module_hash"] or b"",
    )
    mutations.append(messages.Mutation(RECORD, messages.serialize(note)))
    mutations.append(messages.Mutation(key, messages.serialize(settings)))
    return mutations


def new_committee(ctx, subnet, settings, payload):
    """Put other members into the subnet's record; return the mutation of the root key."""
    if payload["root_key"] is None or len(payload["root_key"]) != PUBLIC_KEY_BYTES:
        raise Refuse("other members of the NNS come with the root key that they made")
    present = list(settings.membership)
    for node in payload["members"]:
        if bytes(node) not in present:
            check_free(ctx, node)
    del settings.membership[:]
    settings.membership.extend([bytes(n) for n in payload["members"]])
    key = f"crypto_threshold_signing_public_key_{subnet}"
    record = messages.parse(messages.PublicKey, need(ctx, key))
    record.key_value = payload["root_key"]
    return [messages.Mutation(key, messages.serialize(record))]
