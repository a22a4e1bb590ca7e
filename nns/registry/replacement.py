"""A recovery that replaces nodes: other members, and keys that the NNS deals for them.

The old keys went with the old nodes. What is voted on has holes where the new keys will be, and
these are filled when the NNS's nodes have dealt them.
Source: reference/recovery.md §2 (do_recover_subnet with replacement_nodes).
"""

from replica.abi.v1 import MANAGEMENT_CANISTER, Refuse, decode, encode, evidence, messages

from .membership import check_free
from .store import get, latest_version, principal

ASKED = """(record {
  subnet : principal; versions : vec nat64; mutations : vec record { key : text; value : blob };
})"""
DEALT = """(record {
  low_threshold_transcript_record : blob; high_threshold_transcript_record : blob;
  subnet_threshold_public_key : blob;
})"""


def keys_of(subnet):
    """Return the records that a replacement writes: CUP contents, members, public key."""
    return [
        f"catch_up_package_contents_{subnet}",
        f"subnet_record_{subnet}",
        f"crypto_threshold_signing_public_key_{subnet}",
    ]


def check_members(ctx, nodes, settings, attesting):
    """Refuse new members who could not go on with the state that is attested."""
    present = [principal(raw) for raw in settings.membership]
    for node in nodes:
        if node not in present:
            check_free(ctx, node)
    if len(dict.fromkeys(nodes)) != len(nodes):
        raise Refuse("replacement_nodes names a node twice")
    bringing = [n for n in nodes if n in attesting]
    needed = evidence.faults_max(len(present)) + 1
    if len(bringing) < needed:
        raise Refuse(
            f"{len(bringing)} of the new members attest the state; {needed} (f + 1) of those who "
            f"do must stay members, so that an honest one has it"
        )


def key_hole(subnet):
    """Return the mutation of the subnet's key, before there is one."""
    empty = messages.PublicKey(version=0, algorithm=2, key_value=b"")
    return messages.Mutation(keys_of(subnet)[2], messages.serialize(empty))


def ask_for_keys(ctx, payload, mutations):
    """Have the NNS deal keys to the new members; go on in `on_keys`."""
    subnet = payload["subnet_id"]
    asked = {
        "subnet": subnet,
        "versions": [get(ctx, key)[1] for key in keys_of(subnet)],
        "mutations": [{"key": m.key, "value": m.value} for m in mutations],
    }
    arg = encode(
        "(record { node_ids : vec principal; registry_version : nat64 })",
        {"node_ids": payload["replacement_nodes"], "registry_version": latest_version(ctx)},
    )
    ctx.call(
        MANAGEMENT_CANISTER,
        "setup_initial_dkg",
        arg,
        on_reply="on_keys",
        context=encode(ASKED, asked),
    )


def with_keys(ctx, outcome, context):
    """Return the mutations with the dealt keys in their holes."""
    if not outcome.ok:
        raise Refuse(f"the NNS dealt no keys: {outcome.reject_message}")
    (asked,), (dealt,) = decode(ASKED, context), decode(DEALT, outcome.reply)
    subnet = asked["subnet"]
    if [get(ctx, key)[1] for key in keys_of(subnet)] != list(asked["versions"]):
        raise Refuse(f"subnet {subnet} was changed while its keys were dealt: plan anew")
    contents_key, _, public_key = keys_of(subnet)
    filled = []
    for part in asked["mutations"]:
        key, value = part["key"], part["value"]
        if key == contents_key:
            contents = messages.parse(messages.CatchUpPackageContents, value)
            for field, name in (
                (contents.initial_ni_dkg_transcript_low_threshold, "low"),
                (contents.initial_ni_dkg_transcript_high_threshold, "high"),
            ):
                raw = dealt[f"{name}_threshold_transcript_record"]
                field.CopyFrom(messages.parse(messages.InitialNiDkgTranscriptRecord, raw))
            value = messages.serialize(contents)
        elif key == public_key:
            record = messages.parse(messages.PublicKey, value)
            record.key_value = dealt["subnet_threshold_public_key"]
            value = messages.serialize(record)
        filled.append(messages.Mutation(key, value))
    return filled
