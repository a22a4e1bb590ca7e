"""What consensus asks of cryptography, and the keyed-hash double used by fast simulations.

`Scheme` is stateless: it signs with secrets it is handed, checks, and combines. The real one is
`bls.Bls`. The double keeps what matters about thresholds honest: every node has its own key, and
the group's code can only be computed out of enough valid shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol

from replica.protocol.crypto import bls
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId


class Scheme(Protocol):
    """Threshold signatures and multi-signatures."""

    def sign_threshold(self, secret: bytes, message: bytes) -> bytes: ...
    def verify_threshold(self, public_key: bytes, message: bytes, signature: bytes) -> bool: ...
    def combine_threshold(
        self, message: bytes, shares: Mapping[int, bytes], transcript: Transcript
    ) -> bytes:
        """Combine shares by their 0-based index. Raises: ValueError for bytes that are none."""
        ...

    def sign_multi(self, secret: bytes, message: bytes) -> bytes: ...
    def verify_multi(
        self, public_keys: Sequence[bytes], message: bytes, signature: bytes
    ) -> bool: ...
    def combine_multi(self, signatures: Sequence[bytes]) -> bytes: ...
    def faulty_threshold(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]: ...
    def faulty_multi(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class SealedShares:
    """What one dealer sealed for the members of a committee."""

    dealer: int
    """The dealer's share index."""
    ephemeral: bytes
    sealed: tuple[bytes, ...]
    """In the committee's order."""


@dataclass(frozen=True)
class Transcript:
    """The public outcome of a key generation: who holds shares of which key.

    A node's share index is its position in `committee`.
    """

    threshold: int
    committee: tuple[NodeId, ...]
    """In ascending order."""
    public_key: bytes
    """96 bytes."""
    share_keys: tuple[bytes, ...]
    """96 bytes each, in the committee's order."""
    sealed: tuple[SealedShares, ...] = ()
    """The members' secret shares, each readable by its owner only; empty: the genesis dealer gave
    them out by other means."""
    is_reshared: bool = False

    def __hash__(self) -> int:
        return hash((self.public_key, self.share_keys))

    def without_shares(self) -> Transcript:
        """Return what later generations of the key have to know of it."""
        return replace(self, sealed=()) if self.sealed else self

    def index_of(self, node: NodeId) -> int | None:
        return self.committee.index(node) if node in self.committee else None


def faults_max(count: int) -> int:
    """Return f, the number of faulty members that a committee of this size tolerates."""
    return (count - 1) // 3


def threshold_low(count: int) -> int:
    """Return f + 1: at least one honest member took part."""
    return faults_max(count) + 1


def threshold_high(count: int) -> int:
    """Return n - f: two such groups share an honest member."""
    return count - faults_max(count)


@dataclass(frozen=True, slots=True)
class Dealing:
    """What a trusted dealer hands out: the public transcript and each member's secret share."""

    transcript: Transcript
    shares: tuple[bytes, ...]


def deal_bls(committee: Sequence[NodeId], threshold: int, coefficients: Sequence[int]) -> Dealing:
    """Share the secret `coefficients[0]` among the committee (trusted dealer).

    `coefficients`: `threshold` secret scalars from a cryptographic source.
    """
    assert len(coefficients) == threshold
    members = tuple(sorted(committee))
    secrets = [bls.evaluate(coefficients, i + 1) for i in range(len(members))]
    transcript = Transcript(
        threshold,
        members,
        bls.public_key(coefficients[0]),
        tuple([bls.public_key(s) for s in secrets]),
    )
    return Dealing(transcript, tuple([s.to_bytes(32, "big") for s in secrets]))


class KeyedHash:
    """A double for simulations: a public key is the secret itself, a signature is a keyed hash."""

    def sign_threshold(self, secret: bytes, message: bytes) -> bytes:
        return blake2b(message, key=secret[:32], digest_size=24).digest()

    def verify_threshold(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return blake2b(message, key=public_key[:32], digest_size=24).digest() == signature

    def combine_threshold(
        self, message: bytes, shares: Mapping[int, bytes], transcript: Transcript
    ) -> bytes:
        keys = transcript.share_keys
        assert len(shares) >= transcript.threshold, "too few shares to combine"
        valid = [i for i, s in shares.items() if self.verify_threshold(keys[i], message, s)]
        if len(valid) < transcript.threshold:  # as interpolation would: bytes that do not verify
            return blake2b(b"".join(shares.values()), digest_size=24).digest()
        return blake2b(message, key=transcript.public_key[:32], digest_size=24).digest()

    def faulty_threshold(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        pairs = enumerate(zip(keys, signatures, strict=True))
        return [i for i, (k, s) in pairs if not self.verify_threshold(k, message, s)]

    def faulty_multi(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        pairs = enumerate(zip(keys, signatures, strict=True))
        return [i for i, (k, s) in pairs if self.sign_multi(k, message) != s]

    def sign_multi(self, secret: bytes, message: bytes) -> bytes:
        return blake2b(message, key=secret[:32], digest_size=24, person=b"multi").digest()

    def verify_multi(self, public_keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
        if not public_keys:
            return False
        parts = [self.sign_multi(k, message) for k in public_keys]
        return self.combine_multi(parts) == signature

    def combine_multi(self, signatures: Sequence[bytes]) -> bytes:
        total = 0
        for signature in signatures:
            total ^= int.from_bytes(signature, "big")
        return total.to_bytes(24, "big")


def deal_double(committee: Sequence[NodeId], threshold: int, seed: bytes) -> Dealing:
    """Deal keys for `KeyedHash`."""
    members = tuple(sorted(committee))
    secrets = tuple([sha256(b"share" + seed + bytes(m)) for m in members])
    group = sha256(b"group" + b"".join(secrets))
    return Dealing(Transcript(threshold, members, group, secrets), secrets)
