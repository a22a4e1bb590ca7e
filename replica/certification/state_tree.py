"""The certified tree: what of the state a client can ask to have proven.

Source: interface specification "The system state tree"; reference/state.md §2, versions up to V25.
Our own leaves: /metadata/state_digest, so that every round's signature covers the whole state, and
/metadata/epoch, so that a certification shows to which epoch it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from replica.protocol import cbor, hash_tree, radix_tree
from replica.protocol.certificate import encode_ranges
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.hashing import leb128, sha256
from replica.protocol.ids import NodeId, Principal, SubnetId
from replica.state.records import REJECTED, REPLIED, Canister, IngressStatus
from replica.state.state import Snapshot


@dataclass(frozen=True, slots=True)
class SubnetEntry:
    """A subnet as the tree shows it."""

    id: SubnetId
    public_key_der: bytes
    ranges: tuple[tuple[Principal, Principal], ...]
    type: str
    nodes: tuple[tuple[NodeId, bytes], ...]
    """Members and their DER keys; shown for the own subnet only."""


Topology = tuple[SubnetEntry, ...]


def build(snapshot: Snapshot, topology: Topology, request_status: hash_tree.Tree) -> hash_tree.Tree:
    """Return the tree of a state; `request_status` is what `requests` made of it."""
    system = snapshot.system
    canisters = {bytes(i): _canister(c) for i, c in snapshot.canisters.items()}
    tree: dict[bytes, object] = {
        b"metadata": {
            b"epoch": leb128(system.epoch),
            b"height": leb128(snapshot.height),
            b"state_digest": system.digest,
        },
        b"time": leb128(system.time_ns),
        b"request_status": request_status,
        b"canister": canisters,
        **_subnets(topology, SubnetId(system.subnet)),
    }
    return hash_tree.build({k: v for k, v in tree.items() if v not in ({}, hash_tree.EMPTY)})


def requests(
    before: hash_tree.Tree, snapshot: Snapshot, touched: Iterable[bytes]
) -> hash_tree.Tree:
    """Return the subtree of requests after those touched have changed; from `EMPTY`: after all."""
    known = snapshot.ingress
    changes = {i: _request(known[i]) if i in known else None for i in touched}
    return radix_tree.update(before, changes)


@lru_cache(maxsize=8)
def _subnets(topology: Topology, own: SubnetId) -> dict[bytes, hash_tree.Tree]:
    subnets: dict[bytes, object] = {}
    ranges: dict[bytes, object] = {}
    for entry in topology:
        shown: dict[bytes, object] = {
            b"public_key": entry.public_key_der,
            b"canister_ranges": encode_ranges(list(entry.ranges)),
            b"type": entry.type.encode(),
        }
        if entry.id == own:
            shown[b"node"] = {bytes(n): {b"public_key": k} for n, k in entry.nodes}
        subnets[bytes(entry.id)] = shown
        if entry.ranges:
            first = bytes(entry.ranges[0][0])
            ranges[bytes(entry.id)] = {first: encode_ranges(list(entry.ranges))}
    return {
        b"subnet": hash_tree.build(subnets),
        b"canister_ranges": hash_tree.build(ranges),
    }


@lru_cache(maxsize=4096)
def _leaves(
    controllers: tuple[Principal, ...], bundle: bytes, certified_data: bytes
) -> hash_tree.Tree:
    tree: dict[bytes, bytes] = {
        b"controllers": cbor.dumps([bytes(c) for c in controllers], tagged=True)
    }
    if bundle:
        tree[b"module_hash"] = sha256(bundle)
        tree[b"certified_data"] = certified_data
    return hash_tree.build(tree)


def _canister(canister: Canister) -> hash_tree.Tree:
    return _leaves(canister.controllers, canister.bundle, canister.certified_data)


@lru_cache(maxsize=8)
def _status(status: str) -> hash_tree.Tree:
    return hash_tree.labeled(b"status", hash_tree.leaf(status.encode()))


def _request(status: IngressStatus) -> hash_tree.Tree:
    if status.status == REPLIED:
        reply = hash_tree.labeled(b"reply", hash_tree.leaf(status.reply))
        return hash_tree.fork(reply, _status(status.status))
    if status.status != REJECTED:
        return _status(status.status)
    return hash_tree.build(
        {
            b"status": status.status.encode(),
            b"reject_code": leb128(status.reject_code),
            b"reject_message": status.reject_message.encode(),
            b"error_code": status.error_code.encode(),
        }
    )


def position_witness(tree: hash_tree.Tree) -> bytes:
    """Return the part of a tree that a certification shows: its epoch and height."""
    return hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS))
