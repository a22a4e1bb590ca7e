"""Who is in which subnet: adding, removing and replacing members.

Keys follow by themselves: the subnet reshares its own to whoever is a member. What must hold is
that those who stay can go on without those who come, who have to fetch the state first.
Source: reference/recovery.md §2 (do_change_subnet_membership).
"""

from replica.abi.v1 import Refuse, messages

from .store import get, need, principal, subnet_ids


def change(ctx, payload):
    """Return the mutations that add nodes to a subnet and remove others from it."""
    subnet = payload["subnet_id"]
    settings = messages.parse(messages.SubnetRecord, need(ctx, f"subnet_record_{subnet}"))
    present = [principal(raw) for raw in settings.membership]
    added, removed = payload["node_ids_add"], payload["node_ids_remove"]
    if not added and not removed:
        raise Refuse("name nodes to add, to remove, or both")
    for node in removed:
        if node not in present:
            raise Refuse(f"{node} is not a member of subnet {subnet}")
    for node in added:
        check_free(ctx, node)
    if len(dict.fromkeys([*added, *removed])) != len(added) + len(removed):
        raise Refuse("a node is named twice")
    after = sorted([n for n in present if n not in removed] + list(added))
    if not after:
        raise Refuse("a subnet must keep at least one node")
    staying = len(after) - len(added)
    quorum = len(after) - (len(after) - 1) // 3
    if staying < quorum:
        raise Refuse(
            f"{staying} members stay, but {quorum} of the new {len(after)} must be able to sign "
            f"while the others fetch the state: change fewer at once"
        )
    del settings.membership[:]
    settings.membership.extend(bytes(n) for n in after)
    return [messages.Mutation(f"subnet_record_{subnet}", messages.serialize(settings))]


def check_free(ctx, node):
    """Refuse a node that is unknown, lacks a key, or is in a subnet."""
    keys = [f"node_record_{node}", f"crypto_tls_cert_{node}"]
    keys += [f"crypto_record_{node}_{purpose}" for purpose in (1, 3, 4)]
    for key in keys:
        if get(ctx, key) is None:
            raise Refuse(f"{node} is not registered: the registry has no {key}")
    for subnet in subnet_ids(ctx):
        record = messages.parse(messages.SubnetRecord, need(ctx, f"subnet_record_{subnet}"))
        if bytes(node) in record.membership:
            raise Refuse(f"{node} is a member of subnet {subnet} already")
