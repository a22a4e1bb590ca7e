"""Certificates: a hash tree, a threshold signature on its root, and at most one delegation.

Source: interface specification "Certification"; reference/state.md §2.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import cbor, hash_tree
from replica.protocol.crypto import bls
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import domain, leb128_decode
from replica.protocol.ids import Principal, SubnetId, TimeNs

BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Delegation:
    subnet_id: SubnetId
    certificate: bytes
    """CBOR of the root subnet's certificate of the subnet's key and canister ranges."""


@dataclass(frozen=True, slots=True)
class Certificate:
    tree: hash_tree.Tree
    signature: bytes
    """48 bytes, G1 compressed, over `state_root_message(tree.digest)`."""
    delegation: Delegation | None = None

    def encode(self) -> bytes:
        plain = {"tree": hash_tree.to_plain(self.tree), "signature": self.signature}
        if self.delegation is not None:
            plain["delegation"] = {
                "subnet_id": bytes(self.delegation.subnet_id),
                "certificate": self.delegation.certificate,
            }
        return cbor.dumps(plain, tagged=True)

    def leaf(self, *path: bytes) -> bytes | None:
        return hash_tree.lookup_leaf(self.tree, path)

    @property
    def time_ns(self) -> TimeNs:
        raw = self.leaf(b"time")
        if raw is None:
            raise NotVerified("the certificate shows no time")
        return TimeNs(leb128_decode(raw))


def decode(data: bytes) -> Certificate:
    """Decode a certificate. Raises: Malformed."""
    plain = cbor.loads(data, bytes_max=BYTES_MAX)
    if not isinstance(plain, dict) or not set(plain) <= {"tree", "signature", "delegation"}:
        raise Malformed("not a certificate")
    signature = plain.get("signature")
    if type(signature) is not bytes or "tree" not in plain:
        raise Malformed("a certificate needs a tree and a signature")
    delegation = None
    if plain.get("delegation") is not None:  # some encoders write an explicit null
        match plain["delegation"]:
            case {"subnet_id": bytes(subnet_id), "certificate": bytes(inner)}:
                delegation = Delegation(SubnetId(Principal(subnet_id)), inner)
            case _:
                raise Malformed("not a delegation")
    return Certificate(hash_tree.from_plain(plain["tree"]), signature, delegation)


def state_root_message(root_hash: bytes) -> bytes:
    """Return what the subnet signs for a state tree."""
    return domain("ic-state-root") + root_hash


def verify(
    data: bytes,
    root_key_der: bytes,
    canister_id: Principal | None = None,
    scheme: bls.ThresholdVerifier = bls.VERIFIER,
) -> Certificate:
    """Decode a certificate and check it against the root key.

    `canister_id`: demand that the signing subnet is responsible for this canister (None: skip).
    Raises: Malformed, NotVerified.
    """
    certificate = decode(data)
    key = bls.public_key_from_der(root_key_der)
    if certificate.delegation is not None:
        key = verify_delegation(certificate.delegation, root_key_der, canister_id, scheme)
    message = state_root_message(certificate.tree.digest)
    if not scheme.verify_threshold(key, message, certificate.signature):
        raise NotVerified("the certificate's signature does not verify")
    return certificate


def verify_delegation(
    delegation: Delegation,
    root_key_der: bytes,
    canister_id: Principal | None,
    scheme: bls.ThresholdVerifier = bls.VERIFIER,
) -> bytes:
    """Return the subnet's 96-byte public key that the root subnet certified."""
    inner = decode(delegation.certificate)
    if inner.delegation is not None:
        raise NotVerified("a delegation must not itself be delegated")
    root_key = bls.public_key_from_der(root_key_der)
    if not scheme.verify_threshold(
        root_key, state_root_message(inner.tree.digest), inner.signature
    ):
        raise NotVerified("the delegation's signature does not verify")
    subnet = bytes(delegation.subnet_id)
    if canister_id is not None and not _in_ranges(inner.tree, subnet, canister_id):
        raise NotVerified(f"subnet {delegation.subnet_id} is not responsible for {canister_id}")
    key_der = inner.leaf(b"subnet", subnet, b"public_key")
    if key_der is None:
        raise NotVerified("the delegation does not show the subnet's public key")
    return bls.public_key_from_der(key_der)


def _in_ranges(tree: hash_tree.Tree, subnet: bytes, canister_id: Principal) -> bool:
    """Check both homes of the canister ranges; each one present must contain the canister."""
    found: list[bytes] = []
    flat = hash_tree.lookup_leaf(tree, (b"subnet", subnet, b"canister_ranges"))
    if flat is not None:
        found.append(flat)
    shards = hash_tree.lookup(tree, (b"canister_ranges", subnet))
    if not isinstance(shards, hash_tree.Absent | hash_tree.Unknown):
        below = [
            (label, node) for label, node in hash_tree.children(shards) if label <= canister_id
        ]
        if below and isinstance(below[-1][1], hash_tree.Leaf):
            found.append(below[-1][1].value)
        else:
            return False
    if not found:
        return False
    return all(any(lo <= canister_id <= hi for lo, hi in decode_ranges(raw)) for raw in found)


def encode_ranges(ranges: list[tuple[Principal, Principal]]) -> bytes:
    return cbor.dumps([[bytes(lo), bytes(hi)] for lo, hi in ranges], tagged=True)


def decode_ranges(raw: bytes) -> list[tuple[Principal, Principal]]:
    plain = cbor.loads(raw)
    if not isinstance(plain, list):
        raise Malformed("canister ranges are not a list")
    ranges = []
    for item in plain:
        match item:
            case [bytes(lo), bytes(hi)]:
                ranges.append((Principal(lo), Principal(hi)))
            case _:
                raise Malformed("not a range of canisters")
    return ranges
