"""New members and a new root key for an NNS that lost more than f nodes, and their shares.

There is no chain any more that could agree on dealings. Whoever builds the recovery collects one of
each node that is to go on; each of these looks whether it can open its shares, and the operators'
signatures under the recovery decide which dealings count.
"""

from __future__ import annotations

from collections.abc import Iterable

from replica.client.local_registry import VersionedRecords
from replica.protocol.crypto import dkg
from replica.protocol.crypto.dkg import HIGH, LOW, BlsDkg
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.crypto.scheme import faults_max
from replica.protocol.errors import NotFound, NotVerified, Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId, SubnetId
from replica.protocol.nns_recovery import KeyDealing, KeyPlan
from replica.runtime.settings import Secrets


def check_members(
    records: VersionedRecords,
    subnet: SubnetId,
    before: tuple[NodeId, ...],
    members: tuple[NodeId, ...],
    attesting: Iterable[NodeId],
) -> None:
    """Check who is to go on. `before`: the members so far; `attesting`: who has the state.

    Raises: NotVerified, Rejected.
    """
    if list(members) != sorted(set(members)):
        raise NotVerified("the new members are not in order, or one is named twice")
    gone, faults = [n for n in before if n not in members], faults_max(len(before))
    if len(gone) <= faults:
        raise Rejected(
            f"{len(gone)} of {len(before)} members would be replaced: up to {faults} (f) leave the "
            "root key alone; recover with the members there are, and replace these by a proposal"
        )
    bringing = [n for n in members if n in set(attesting)]
    if len(bringing) < faults + 1:
        raise Rejected(
            f"{len(bringing)} of the new members attest the state; {faults + 1} (f + 1) of those "
            "who do must stay members, so that an honest one has it"
        )
    for node in members:
        if node in before:
            continue
        try:
            records.node_keys(node)
        except NotFound as error:
            raise NotVerified(f"{node} is not a registered node: {error}") from error
        if records.subnet_of(node) not in (None, subnet):
            raise Rejected(f"{node} is a member of another subnet")


def deal(
    records: VersionedRecords, plan: KeyPlan, node: NodeId, secrets: Secrets
) -> tuple[KeyDealing, KeyDealing]:
    """Return this node's dealings for both keys; the same each time it is asked."""
    seed = sha256(b"dealing seed" + secrets.dealing)
    receivers = {m: records.node_keys(m).dealing for m in plan.members}
    made = []
    for tag in (LOW, HIGH):
        config = plan.config(tag)
        dealing = BlsDkg().deal(config, node, seed, None, receivers)
        signature = secrets.signing.sign(dkg.message(config, dealing))
        made.append(KeyDealing(tag, node, dealing, signature))
    return made[0], made[1]


def check_dealings(
    records: VersionedRecords, plan: KeyPlan, dealings: tuple[KeyDealing, ...]
) -> None:
    """Check that dealings are their dealers', at most one for each key. Raises: NotVerified."""
    seen = set()
    for d in dealings:
        if (d.tag, d.dealer) in seen or d.tag not in (LOW, HIGH) or d.dealer not in plan.members:
            raise NotVerified("a dealing of the new keys is there twice, or of no new member")
        seen.add((d.tag, d.dealer))
        config, key = plan.config(d.tag), records.node_keys(d.dealer).signing
        if not verify_ed25519(key, dkg.message(config, d.dealing), d.signature):
            raise NotVerified(f"the dealing of {d.dealer} is not signed by it")
        if fault := BlsDkg().fault(config, d.dealer, d.dealing):
            raise NotVerified(f"the dealing of {d.dealer} is none: {fault}")


def bad_dealers(
    plan: KeyPlan, dealings: tuple[KeyDealing, ...], node: NodeId, secret: bytes
) -> list[NodeId]:
    """Return whose dealings give this node, a new member, shares that it can't use.

    `secret`: what opens that which is sealed for the node.
    """
    bad = {
        d.dealer
        for d in dealings
        if not BlsDkg().opens(plan.config(d.tag), d.dealing, node, secret)
    }
    return sorted(bad)
