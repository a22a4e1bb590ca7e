"""The registry: what the network consists of, versioned and certified.

Holds subnets, nodes, keys, releases and the CUPs of recoveries. Only governance changes it.
Source: reference/recovery.md §2 (dfinity/ic rs/registry/canister).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    LATER,
    Refuse,
    init,
    messages,
    query,
    raw_query,
    reply,
    update,
)

from . import membership as members
from . import releases, replacement
from .nns_recovery import membership, nns_recovery_mutations
from .recovery import recovery_mutations, simulation
from .store import apply, changes_since, get, latest_version, need

NORMAL, DOWN_FOR_REPAIRS = 1, 2


@init
def install(ctx, arg):
    """Take over the genesis content: one version per batch."""
    for raw in arg["mutations"]:
        request = messages.parse(messages.RegistryAtomicMutateRequest, raw)
        mutations = [
            messages.Mutation(
                m.key.decode(), None if m.mutation_type == messages.DELETE else m.value
            )
            for m in request.mutations
        ]
        apply(ctx, mutations)


@raw_query
def get_certified_changes_since(ctx, raw):
    request = messages.parse(messages.RegistryGetChangesSinceRequest, raw)
    return changes_since(ctx, request.version)


@query
def get_latest_version(ctx):
    return latest_version(ctx)


@query
def get_value(ctx, arg):
    found = get(ctx, arg["key"], arg["version"])
    return None if found is None else {"value": found[0], "version": found[1]}


@query
def get_history(ctx, arg):
    out = []
    for row in ctx.table("values").range(arg["key"]):
        time_ns = ctx.table("changelog").get(row["version"])["time_ns"]
        out.append({"version": row["version"], "value": row["value"], "time_ns": time_ns})
    return out


@query
def keys(ctx, arg):
    found = {}
    for row in ctx.table("values").range():
        if row["key"].startswith(arg["prefix"]):
            found[row["key"]] = row["value"] is not None
    return [k for k, alive in found.items() if alive]


@update
def recover_subnet(ctx, payload):
    only_governance(ctx)
    mutations = recovery_mutations(ctx, payload)
    if payload["replacement_nodes"]:
        replacement.ask_for_keys(ctx, payload, mutations)
        return LATER
    apply(ctx, mutations)


@reply
def on_keys(ctx, outcome, context):
    apply(ctx, replacement.with_keys(ctx, outcome, context))


@query
def simulate_recover_subnet(ctx, payload):
    return simulation(ctx, recovery_mutations(ctx, payload))


@update
def update_subnet(ctx, payload):
    only_governance(ctx)
    apply(ctx, settings_mutations(ctx, payload))


@query
def simulate_update_subnet(ctx, payload):
    return simulation(ctx, settings_mutations(ctx, payload))


@update
def set_subnet_operational_level(ctx, payload):
    only_governance(ctx)
    apply(ctx, level_mutations(ctx, payload))


@query
def simulate_set_subnet_operational_level(ctx, payload):
    return simulation(ctx, level_mutations(ctx, payload))


@update
def revise_elected_guestos_versions(ctx, payload):
    only_governance(ctx)
    apply(ctx, releases.revision(ctx, payload))


@query
def simulate_revise_elected_guestos_versions(ctx, payload):
    return simulation(ctx, releases.revision(ctx, payload))


@update
def deploy_guestos_to_all_subnet_nodes(ctx, payload):
    only_governance(ctx)
    apply(ctx, releases.deployment(ctx, payload))


@query
def simulate_deploy_guestos_to_all_subnet_nodes(ctx, payload):
    return simulation(ctx, releases.deployment(ctx, payload))


@update
def change_subnet_membership(ctx, payload):
    only_governance(ctx)
    apply(ctx, members.change(ctx, payload))


@query
def simulate_change_subnet_membership(ctx, payload):
    return simulation(ctx, members.change(ctx, payload))


@update
def record_nns_recovery(ctx, payload):
    only_governance(ctx)
    apply(ctx, nns_recovery_mutations(ctx, payload))


@query
def nns_membership(ctx):
    return membership(ctx)


def level_mutations(ctx, payload):
    """Return the mutations of a halt or its end; with either, releases can be recalled."""
    if payload["subnet_id"] is None or payload["operational_level"] not in (1, 2, None):
        raise Refuse("name a subnet and an operational level: 1 normal, 2 down for repairs")
    key = f"subnet_record_{payload['subnet_id']}"
    settings = messages.parse(messages.SubnetRecord, need(ctx, key))
    if payload["operational_level"] is not None:
        settings.is_halted = payload["operational_level"] == DOWN_FOR_REPAIRS
    recalled = payload["recalled_replica_version_ids"]
    if recalled is not None:
        del settings.recalled_replica_version_ids[:]
        settings.recalled_replica_version_ids.extend(recalled)
    elif payload["operational_level"] is None:
        raise Refuse("nothing is to be changed: give a level, recalled versions, or both")
    return [messages.Mutation(key, messages.serialize(settings))]


SETTINGS = (
    "is_halted",
    "unit_delay_millis",
    "initial_notary_delay_millis",
    "dkg_interval_length",
    "halt_at_cup_height",
)


def settings_mutations(ctx, payload):
    key = f"subnet_record_{payload['subnet_id']}"
    settings = messages.parse(messages.SubnetRecord, need(ctx, key))
    for name in SETTINGS:
        value = payload.get(name)
        if value is None:
            continue
        if name == "is_halted":
            settings.is_halted = value
        elif name == "unit_delay_millis":
            settings.unit_delay_millis = value
        elif name == "initial_notary_delay_millis":
            settings.initial_notary_delay_millis = value
        elif name == "dkg_interval_length":
            settings.dkg_interval_length = value
        else:
            settings.halt_at_cup_height = value
    return [messages.Mutation(key, messages.serialize(settings))]


def only_governance(ctx):
    if ctx.caller != GOVERNANCE:
        raise Refuse(f"only governance changes the registry, not {ctx.caller}")
