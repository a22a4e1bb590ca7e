"""Recovery of a subnet: the registry checks the evidence itself before it stores the CUP."""

from replica.abi.v1 import Principal, Refuse, evidence, messages, sha256

from . import replacement
from .store import get, latest_version, need


def recovery_mutations(ctx, payload):
    """Return the mutations of a recovery; refuse what the evidence does not prove."""
    subnet = payload["subnet_id"]
    record = get(ctx, f"subnet_record_{subnet}")
    if record is None:
        raise Refuse(f"there is no subnet {subnet}; `reprise subnet list` shows them")
    settings = messages.parse(messages.SubnetRecord, record[0])
    if len(payload["state_hash"]) != 32:
        raise Refuse(f"state_hash must have 32 bytes, this one has {len(payload['state_hash'])}")
    if payload["registry_store_uri"]:
        raise Refuse("registry_store_uri is for a subnet that becomes the NNS: not supported")
    replacing = bool(payload["replacement_nodes"])
    if not settings.is_halted:
        raise Refuse(f"subnet {subnet} is not halted; halt it first (`reprise subnet halt`)")
    contents_raw, cup_version = need_versioned(ctx, f"catch_up_package_contents_{subnet}")
    contents = messages.parse(messages.CatchUpPackageContents, contents_raw)
    judged = judge(ctx, payload, subnet, contents_raw, cup_version, replacing)
    if judged.state_hash != payload["state_hash"]:
        raise Refuse("the state hash is not the one that the members attest")
    interval = settings.dkg_interval_length + 1
    lowest = evidence.recovery_height(judged.proven_height, interval)
    if payload["height"] < lowest or payload["height"] % interval:
        raise Refuse(
            f"height {payload['height']} is not above all that is proven: {judged.proven_height} "
            f"is, so the CUP must be at {lowest} or a later multiple of {interval}"
        )
    if payload["time_ns"] <= judged.proven_time_ns:
        raise Refuse("time_ns must be later than the newest proven block's time")
    contents.height = payload["height"]
    contents.time = payload["time_ns"]
    contents.state_hash = payload["state_hash"]
    contents.recovery.height = payload["height"]
    contents.recovery.time = payload["time_ns"]
    contents.recovery.state_hash = payload["state_hash"]
    set_keys(contents, subnet, None if replacing else judged.package.summary)
    mutations = [
        messages.Mutation(f"catch_up_package_contents_{subnet}", messages.serialize(contents))
    ]
    if payload["unhalt"] is not False:
        settings.is_halted = False
        settings.halt_at_cup_height = False
    if replacing:
        nodes = sorted(payload["replacement_nodes"])
        replacement.check_members(ctx, nodes, settings, judged.attesting)
        del settings.membership[:]
        settings.membership.extend(bytes(n) for n in nodes)
        mutations.append(replacement.key_hole(subnet))
    if messages.serialize(settings) != record[0]:
        mutations.append(messages.Mutation(f"subnet_record_{subnet}", messages.serialize(settings)))
    if payload["diff_hash"] is not None and payload["diff_hash"] != diff_hash(mutations):
        raise Refuse("the registry would change otherwise than what was proposed: plan anew")
    return mutations


def set_keys(contents, subnet, summary):
    """Let the CUP go on with the keys of the proven package's summary; None: leave holes."""
    for field, tag in (
        (contents.initial_ni_dkg_transcript_low_threshold, evidence.LOW),
        (contents.initial_ni_dkg_transcript_high_threshold, evidence.HIGH),
    ):
        if summary is None:
            field.CopyFrom(messages.InitialNiDkgTranscriptRecord())
            continue
        transcript = summary.low if tag == evidence.LOW else summary.high
        made = evidence.transcript_to_record(
            transcript, subnet, summary.height, tag, summary.registry_version
        )
        field.CopyFrom(made)


def judge(ctx, payload, subnet, contents_raw, cup_version, replacing):
    """Check the evidence against the keys that the registry holds."""
    if payload["evidence"] is None:
        raise Refuse("the proposal carries no evidence; make it with `reprise recover subnet plan`")

    def members(version):
        """Return who was a member at a version, or is now."""
        record = need(ctx, f"subnet_record_{subnet}", version)
        nodes = [Principal(raw) for raw in messages.parse(messages.SubnetRecord, record).membership]
        return {
            node: evidence.MemberKeys(
                public_key(ctx, f"crypto_record_{node}_1", version),
                public_key(ctx, f"crypto_record_{node}_3", version),
            )
            for node in nodes
        }

    at_cup = get(ctx, f"subnet_record_{subnet}", cup_version)[0]
    registry_cup = evidence.from_registry(subnet, contents_raw, cup_version, at_cup)
    return evidence.judge(
        evidence.decode(payload["evidence"]),
        subnet,
        public_key(ctx, f"crypto_threshold_signing_public_key_{subnet}"),
        members,
        registry_cup,
        replacing=replacing,
    )


def public_key(ctx, key, version=None):
    return messages.parse(messages.PublicKey, need(ctx, key, version)).key_value


def need_versioned(ctx, key):
    found = get(ctx, key)
    if found is None:
        raise Refuse(f"the registry has no {key}")
    return found


def diff_hash(mutations):
    """Return the hash that a vote is bound to: of the batch as it will be certified."""
    return sha256(messages.encode_batch(tuple(mutations)))


def simulation(ctx, mutations):
    """Return what a change would do, without doing it."""
    changes = []
    for m in sorted(mutations, key=lambda m: m.key):
        before = get(ctx, m.key)
        changes.append(
            {"key": m.key, "before": None if before is None else before[0], "after": m.value}
        )
    return {
        "changes": changes,
        "diff_hash": diff_hash(mutations),
        "version": latest_version(ctx) + 1,
    }
