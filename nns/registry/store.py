"""The versioned key-value store: append-only changelog, certified tree, invariants."""

from replica.abi.v1 import Principal, Refuse, hash_tree, leb128, messages


def latest_version(ctx):
    for row in ctx.table("changelog").range(reverse=True):
        return row["version"]
    return 0


def get(ctx, key, version=None):
    """Return (value, version that wrote it), or None."""
    bound = (key, (version if version is not None else latest_version(ctx)) + 1)
    for row in ctx.table("values").range(key, start=bound, reverse=True):
        return None if row["value"] is None else (row["value"], row["version"])
    return None


def need(ctx, key, version=None):
    found = get(ctx, key, version)
    if found is None:
        raise Refuse(f"the registry has no {key}")
    return found[0]


def subnet_ids(ctx):
    record = messages.parse(messages.SubnetListRecord, need(ctx, "subnet_list"))
    return [Principal(raw) for raw in record.subnets]


def apply(ctx, mutations):
    """Append one version made of these mutations, after the invariants held on the outcome."""
    if not mutations:
        return
    changed = {m.key: m.value for m in mutations}
    check_invariants(ctx, changed)
    version = latest_version(ctx) + 1
    batch = messages.encode_batch(tuple(mutations))
    ctx.table("changelog").put(version=version, batch=batch, time_ns=ctx.time_ns)
    for m in mutations:
        ctx.table("values").put(key=m.key, version=version, value=m.value)
    ctx.set_certified_data(delta_tree(ctx).digest)


def delta_tree(ctx):
    """Return the tree whose digest is certified: the current version and every batch."""
    version = latest_version(ctx)
    deltas = {
        row["version"].to_bytes(8, "big"): row["batch"] for row in ctx.table("changelog").range()
    }
    return hash_tree.build({b"current_version": leb128(version), b"delta": deltas})


RESPONSE_BYTES_MAX = 1_300_000


def changes_since(ctx, version):
    """Return the certified answer to a reader that holds `version`."""
    wanted, size = [(b"current_version",)], 0
    for row in ctx.table("changelog").range(start=(version + 1,)):
        size += len(row["batch"])
        if size > RESPONSE_BYTES_MAX and len(wanted) > 1:
            break
        wanted.append((b"delta", row["version"].to_bytes(8, "big")))
    if len(wanted) == 1:
        wanted.append((b"delta", (version + 1).to_bytes(8, "big")))
    witness = hash_tree.witness(delta_tree(ctx), wanted)
    return messages.encode_response(witness, ctx.certificate() or b"")


# --- invariants --------------------------------------------------------------------------------


def check_invariants(ctx, changed):
    """Refuse a batch after which the registry would contradict itself."""

    def read(key):
        if key in changed:
            return changed[key]
        found = get(ctx, key)
        return None if found is None else found[0]

    listed = read("subnet_list")
    if listed is None:
        raise Refuse("invariant: the registry must have a subnet_list")
    subnets = messages.parse(messages.SubnetListRecord, listed).subnets
    seen = {}
    systems = 0
    for raw in subnets:
        subnet = principal(raw)
        record = read(f"subnet_record_{subnet}")
        if record is None:
            raise Refuse(f"invariant: subnet {subnet} has no record")
        settings = messages.parse(messages.SubnetRecord, record)
        systems += settings.subnet_type == 2
        if not settings.membership:
            raise Refuse(f"invariant: subnet {subnet} must have at least one node")
        if read(f"replica_version_{settings.replica_version_id}") is None:
            raise Refuse(f"invariant: subnet {subnet} would run a release that is not elected")
        if not settings.dkg_interval_length:
            raise Refuse(f"invariant: subnet {subnet} has no interval length")
        for node in settings.membership:
            if node in seen:
                raise Refuse(f"invariant: node {principal(node)} would be in two subnets")
            seen[node] = True
            if read(f"node_record_{principal(node)}") is None:
                raise Refuse(f"invariant: member {principal(node)} has no node record")
        for key in (
            f"catch_up_package_contents_{subnet}",
            f"crypto_threshold_signing_public_key_{subnet}",
        ):
            if read(key) is None:
                raise Refuse(f"invariant: {key} is missing")
    if not systems:
        raise Refuse("invariant: there must be a system subnet")


def principal(raw):
    return Principal(bytes(raw))
