"""Releases of the replica: electing, deploying to a subnet, withdrawing.

A release is elected once, with the SHA-256 of its package; every subnet then runs an elected one.
Source: reference/recovery.md §2 (do_revise_elected_guestos_versions and its neighbours).
"""

from replica.abi.v1 import Refuse, messages

from .store import get, need, subnet_ids

BLESSED = "blessed_replica_versions"
VERSION_MAX, URLS_MAX, URL_MAX = 64, 10, 1_000
HEX = "0123456789abcdef"


def version_key(version):
    return f"replica_version_{version}"


def blessed(ctx):
    found = messages.parse(messages.BlessedReplicaVersions, need(ctx, BLESSED))
    return list(found.blessed_version_ids)


def revision(ctx, payload):
    """Return the mutations that elect one release and withdraw others."""
    elected = blessed(ctx)
    mutations = []
    version = payload["replica_version_to_elect"]
    unelect = payload["replica_versions_to_unelect"]
    if version in unelect:
        raise Refuse(f"{version} can't be elected and withdrawn at once")
    if version is not None:
        digest = payload["release_package_sha256_hex"]
        mutations.append(election(ctx, version, digest, payload["release_package_urls"]))
        elected.append(version)
    for gone in unelect:
        if gone not in elected:
            raise Refuse(f"{gone} is not an elected release")
        users = [s for s in subnet_ids(ctx) if version_of(ctx, s) == gone]
        if users:
            raise Refuse(f"{gone} is what subnet {users[0]} runs")
        elected.remove(gone)
        mutations.append(messages.Mutation(version_key(gone), None))
    if not mutations:
        raise Refuse("name a release to elect, or some to withdraw")
    record = messages.BlessedReplicaVersions(blessed_version_ids=elected)
    mutations.append(messages.Mutation(BLESSED, messages.serialize(record)))
    return mutations


def election(ctx, version, digest, urls):
    """Return the mutation that stores a release's record."""
    if not version or len(version) > VERSION_MAX or any(c not in HEX for c in version):
        raise Refuse(f"a version id is lower-case hexadecimal, at most {VERSION_MAX} long")
    if digest is None or len(digest) != 64 or any(c not in HEX for c in digest):
        raise Refuse("release_package_sha256_hex must be 64 lower-case hexadecimal digits")
    if len(urls) > URLS_MAX or any(not u or len(u) > URL_MAX for u in urls):
        raise Refuse(f"at most {URLS_MAX} URLs of at most {URL_MAX} characters")
    if get(ctx, version_key(version)) is not None:
        raise Refuse(f"{version} is elected already")
    record = messages.ReplicaVersionRecord(
        release_package_sha256_hex=digest, release_package_urls=urls
    )
    return messages.Mutation(version_key(version), messages.serialize(record))


def deployment(ctx, payload):
    """Return the mutations that set what a subnet runs, from its next catch-up package on."""
    version = payload["replica_version_id"]
    if version not in blessed(ctx):
        raise Refuse(f"{version} is not an elected release")
    key = f"subnet_record_{payload['subnet_id']}"
    settings = messages.parse(messages.SubnetRecord, need(ctx, key))
    if version in settings.recalled_replica_version_ids:
        raise Refuse(f"{version} is recalled for this subnet")
    settings.replica_version_id = version
    return [messages.Mutation(key, messages.serialize(settings))]


def version_of(ctx, subnet):
    record = need(ctx, f"subnet_record_{subnet}")
    return messages.parse(messages.SubnetRecord, record).replica_version_id
