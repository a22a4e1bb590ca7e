"""Registry deltas on the wire: mutations, the certified tree of versions, and their verification.

A registry's certified data is the root of {current_version: LEB128, delta: {version BE64: batch}}.
A reader checks the certificate, the tree against it, and that deltas are contiguous.

Source: reference/recovery.md §2 (dfinity/ic rs/registry/transport).
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import certificate, hash_tree
from replica.protocol.crypto import bls
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import leb128, leb128_decode
from replica.protocol.ids import REGISTRY, RegistryVersion, TimeNs
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize

INSERT, UPDATE, DELETE, UPSERT = 0, 1, 2, 4


@dataclass(frozen=True, slots=True)
class Mutation:
    key: str
    value: bytes | None
    """None deletes the key."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One registry version: an atomic batch of mutations, as the bytes that are certified."""

    version: RegistryVersion
    batch: bytes

    @property
    def mutations(self) -> tuple[Mutation, ...]:
        return decode_batch(self.batch)


@dataclass(frozen=True, slots=True)
class CertifiedDeltas:
    deltas: tuple[Delta, ...]
    current_version: RegistryVersion
    time_ns: TimeNs


def encode_batch(mutations: tuple[Mutation, ...]) -> bytes:
    """Encode a normalised batch: sorted by key, upserts and deletes only."""
    message = pb.RegistryAtomicMutateRequest()
    for m in sorted(mutations, key=lambda m: m.key):
        kind = DELETE if m.value is None else UPSERT
        message.mutations.add(mutation_type=kind, key=m.key.encode(), value=m.value or b"")
    return serialize(message)


def decode_batch(data: bytes) -> tuple[Mutation, ...]:
    """Raises: Malformed."""
    message = parse(pb.RegistryAtomicMutateRequest, data)
    out = []
    for m in message.mutations:
        if m.mutation_type not in (UPSERT, DELETE):
            raise Malformed("a certified batch holds upserts and deletes only")
        try:
            key = m.key.decode()
        except UnicodeDecodeError as error:
            raise Malformed("a registry key is not text") from error
        out.append(Mutation(key, None if m.mutation_type == DELETE else m.value))
    return tuple(out)


def delta_tree(
    batches: dict[RegistryVersion, bytes], current: RegistryVersion
) -> hash_tree.LabeledTree:
    """Return the labelled tree whose digest is the registry's certified data."""
    return {
        b"current_version": leb128(current),
        b"delta": {version.to_bytes(8, "big"): batch for version, batch in batches.items()},
    }


def encode_response(tree: hash_tree.Tree, certificate_bytes: bytes) -> bytes:
    message = pb.CertifiedResponse(certificate=certificate_bytes)
    _tree_to_message(tree, message.hash_tree)
    return serialize(message)


def verify_response(
    data: bytes,
    since: RegistryVersion,
    root_key_der: bytes,
    scheme: bls.ThresholdVerifier = bls.VERIFIER,
) -> CertifiedDeltas:
    """Check a reply to get_certified_changes_since against the root key.

    `since`: the reader's version; the first delta must be the one after it.
    Raises: Malformed, NotVerified (also for a gap).
    """
    message = parse(pb.CertifiedResponse, data)
    verified = certificate.verify(message.certificate, root_key_der, REGISTRY, scheme)
    certified = verified.leaf(b"canister", bytes(REGISTRY), b"certified_data")
    tree = _tree_from_message(message.hash_tree)
    if certified is None or certified != tree.digest:
        raise NotVerified("the registry's certified data is not the digest of the tree sent")
    raw_version = hash_tree.lookup_leaf(tree, (b"current_version",))
    if raw_version is None:
        raise NotVerified("the reply does not show the registry's current version")
    current = RegistryVersion(leb128_decode(raw_version))
    deltas: list[Delta] = []
    found = hash_tree.lookup(tree, (b"delta",))
    if not isinstance(found, hash_tree.Absent | hash_tree.Unknown):
        for label, node in hash_tree.children(found):
            if isinstance(node, hash_tree.Leaf) and int.from_bytes(label, "big") > since:
                deltas.append(Delta(RegistryVersion(int.from_bytes(label, "big")), node.value))
    for offset, delta in enumerate(deltas):
        if delta.version != since + 1 + offset:
            raise NotVerified(
                f"registry deltas have a gap: expected version {since + 1 + offset}, "
                f"found {delta.version}"
            )
    if current > since and not deltas:
        raise NotVerified(f"the registry is at {current} but sent nothing after {since}")
    if deltas and deltas[-1].version > current:
        raise NotVerified("the reply holds deltas above the current version")
    return CertifiedDeltas(tuple(deltas), current, verified.time_ns)


def _tree_to_message(tree: hash_tree.Tree, out: pb.MixedHashTree) -> None:
    if isinstance(tree, hash_tree.Fork):
        _tree_to_message(tree.left, out.fork.left_tree)
        _tree_to_message(tree.right, out.fork.right_tree)
    elif isinstance(tree, hash_tree.Labeled):
        out.labeled.label = tree.label
        _tree_to_message(tree.subtree, out.labeled.subtree)
    elif isinstance(tree, hash_tree.Leaf):
        out.leaf_data = tree.value
    elif isinstance(tree, hash_tree.Pruned):
        out.pruned_digest = tree.digest
    else:
        out.empty.SetInParent()


def _tree_from_message(message: pb.MixedHashTree, depth: int = 0) -> hash_tree.Tree:
    if depth > hash_tree.DEPTH_MAX:
        raise Malformed("hash tree too deep")
    match message.WhichOneof("tree_enum"):
        case "empty":
            return hash_tree.EMPTY
        case "fork":
            return hash_tree.fork(
                _tree_from_message(message.fork.left_tree, depth + 1),
                _tree_from_message(message.fork.right_tree, depth + 1),
            )
        case "labeled":
            inner = _tree_from_message(message.labeled.subtree, depth + 1)
            return hash_tree.labeled(message.labeled.label, inner)
        case "leaf_data":
            return hash_tree.leaf(message.leaf_data)
        case "pruned_digest" if len(message.pruned_digest) == 32:
            return hash_tree.Pruned(message.pruned_digest)
    raise Malformed("not a hash tree")
