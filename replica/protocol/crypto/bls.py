"""BLS12-381 as the IC uses it: signatures in G1, keys in G2.

Owns threshold signatures (shares by Lagrange interpolation) and multi-signatures with proof of
possession. pyblst does the work: it hashes, decodes with subgroup checks, multiplies secrets in
constant time and pairs with one final exponentiation. arkworks sums many multiples of public
points, blspy adds points that were decoded before: each is the fastest at it.

Source: reference/consensus.md §1.3 and §2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

from blspy import G1Element
from py_arkworks_bls12381 import G1Point, G2Point, Scalar
from pyblst import BlstP1Element, BlstP2Element, final_verify, miller_loop

from replica.protocol.errors import Malformed
from replica.protocol.hashing import domain

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""Order of the groups: secret keys and polynomial coefficients live modulo this."""
SIGNATURE_BYTES = 48
PUBLIC_KEY_BYTES = 96
DST_THRESHOLD = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
DST_MULTI = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_POP_"
DST_POP = b"BLS_POP_BLS12381G1_XMD:SHA-256_SSWU_RO_POP_"
DER_PREFIX = bytes.fromhex(
    "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100"
)

SMALL_SHARES_MAX, SMALL_BITS = 8, 24
"""So few shares with such small coefficients are added up by doubling: in 0.28 of the time that a
sum of any multiples takes for 2 of 4 nodes, in 0.45 of it for 8 of 13."""

G1 = BlstP1Element.uncompress(bytes(G1Point().to_compressed_bytes()))
G2 = BlstP2Element.uncompress(bytes(G2Point().to_compressed_bytes()))
"""The generators."""


class ThresholdVerifier(Protocol):
    """What a verifier of certificates and CUPs needs of a signature scheme."""

    def verify_threshold(self, public_key: bytes, message: bytes, signature: bytes) -> bool: ...


class Committee(Protocol):
    """What interpolation needs of a transcript."""

    @property
    def threshold(self) -> int: ...


def public_key_to_der(public_key: bytes) -> bytes:
    return DER_PREFIX + public_key


def public_key_from_der(der: bytes) -> bytes:
    """Return the 96 bytes of a DER-wrapped BLS key. Raises: Malformed."""
    if len(der) != len(DER_PREFIX) + PUBLIC_KEY_BYTES or not der.startswith(DER_PREFIX):
        raise Malformed("not a DER-encoded BLS12-381 public key (133 bytes)")
    return der[len(DER_PREFIX) :]


@lru_cache(maxsize=4096)
def decode_g2(raw: bytes) -> BlstP2Element | None:
    """Decode with subgroup check; None for what is no usable key or commitment."""
    if len(raw) != PUBLIC_KEY_BYTES or raw[0] & 0x40:
        return None
    try:
        return BlstP2Element.uncompress(raw)
    except ValueError:
        return None


def decode_g1(raw: bytes) -> BlstP1Element | None:
    """Decode with subgroup check; None for what is no usable signature or key."""
    if len(raw) != SIGNATURE_BYTES or raw[0] & 0x40:  # the point at infinity signs everything
        return None
    try:
        return BlstP1Element.uncompress(raw)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _hash(message: bytes, dst: bytes) -> BlstP1Element:
    return BlstP1Element.hash_to_group(message, dst)


@lru_cache(maxsize=1024)
def _verify(public_key: bytes, message: bytes, signature: bytes, dst: bytes) -> bool:
    return _pairs_match(public_key, message, signature, dst)


def _pairs_match(public_key: bytes, message: bytes, signature: bytes, dst: bytes) -> bool:
    key, point = decode_g2(public_key), decode_g1(signature)
    if key is None or point is None:
        return False
    pairs = miller_loop(point, G2), miller_loop(_hash(message, dst), key)
    return bool(final_verify(*pairs))


def scalar(value: int) -> Scalar:
    return Scalar.from_be_bytes((value % ORDER).to_bytes(32, "big"))


def _sign(secret: int, message: bytes, dst: bytes) -> bytes:
    return bytes(_hash(message, dst).scalar_mul(secret % ORDER).compress())


def public_key(secret: int) -> bytes:
    """Return the 96-byte key of a secret scalar."""
    return bytes(G2.scalar_mul(secret % ORDER).compress())


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """Evaluate a polynomial, constant term first, modulo the group order."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % ORDER
    return value


@lru_cache(maxsize=1024)
def lagrange(indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the coefficients at 0 for 0-based share indices; index i stands at x = i + 1."""
    factors, divisor = exact_lagrange(indices)
    inverse = pow(divisor, -1, ORDER)
    return tuple(f * inverse % ORDER for f in factors)


@lru_cache(maxsize=1024)
def exact_lagrange(indices: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the coefficients of `lagrange` as whole numbers over one divisor, not modulo anything.

    Those of a few shares of a small subnet have a few bits, and four of six pairs divide by 1.
    """
    exact = []
    for i in indices:
        others = [j for j in indices if j != i]
        exact.append(Fraction(math.prod(j + 1 for j in others), math.prod(j - i for j in others)))
    divisor = math.lcm(*(c.denominator for c in exact))
    return tuple(int(c * divisor) for c in exact), divisor


def _sum_of_multiples(points: Sequence[G1Element], factors: Sequence[int]) -> G1Element:
    """Add small multiples of points, all doublings in one go. No factor is 0."""
    signed = [(p if f > 0 else p.negate(), abs(f)) for p, f in zip(points, factors, strict=True)]
    total = None
    for bit in reversed(range(max(f.bit_length() for _, f in signed))):
        if total is not None:
            total = total + total
        for point, factor in signed:
            if factor >> bit & 1:
                total = point if total is None else total + point
    assert total is not None
    return total


def _divided(point: bytes, divisor: int) -> bytes:
    """Raises: ValueError for a point outside the group."""
    inverse = pow(divisor, -1, ORDER)
    return bytes(BlstP1Element.uncompress(point).scalar_mul(inverse).compress())


def _coefficients(seed: bytes, message: bytes, signatures: Sequence[bytes]) -> list[int]:
    """Return 128-bit factors that nobody can foresee who does not know the seed."""
    digest = hashlib.sha256(seed + hashlib.sha256(message).digest() + b"".join(signatures)).digest()
    raw = hashlib.shake_256(digest).digest(16 * len(signatures))
    return [int.from_bytes(raw[i : i + 16], "big") | 1 for i in range(0, len(raw), 16)]


def _all_good(
    keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], dst: bytes, seed: bytes
) -> bool:
    """Check signatures of one message at once: e(sum r*sig, g2) = e(H(m), sum r*key)."""
    if len(keys) == 1:
        return _verify(keys[0], message, signatures[0], dst)
    points = [decode_g1(s) for s in signatures]
    if any(p is None for p in points) or any(decode_g2(k) is None for k in keys):
        return False  # decoding checks the subgroup, without which random factors prove nothing
    factors = [scalar(r) for r in _coefficients(seed, message, signatures)]
    left = G1Point.multiexp_unchecked(
        [G1Point.from_compressed_bytes_unchecked(s) for s in signatures], factors
    )
    right = G2Point.multiexp_unchecked(
        [G2Point.from_compressed_bytes_unchecked(k) for k in keys], factors
    )
    key, sum_ = bytes(right.to_compressed_bytes()), bytes(left.to_compressed_bytes())
    return _pairs_match(key, message, sum_, dst)


def faulty(
    keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], dst: bytes, seed: bytes
) -> list[int]:
    """Return the positions of the wrong signatures, by halving groups that do not check out."""
    assert len(keys) == len(signatures)
    out: list[int] = []
    groups = [list(range(len(keys)))] if keys else []
    while groups:
        group = groups.pop()
        if _all_good([keys[i] for i in group], message, [signatures[i] for i in group], dst, seed):
            continue
        if len(group) == 1:
            out.append(group[0])
        else:
            half = len(group) // 2
            groups += [group[:half], group[half:]]
    return sorted(out)


class Bls:
    """The real scheme. Stateless; results of verification are cached by content."""

    def sign_threshold(self, secret: bytes, message: bytes) -> bytes:
        return _sign(int.from_bytes(secret, "big"), message, DST_THRESHOLD)

    def verify_threshold(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return _verify(public_key, message, signature, DST_THRESHOLD)

    def combine_threshold(
        self, message: bytes, shares: Mapping[int, bytes], transcript: Committee
    ) -> bytes:
        """Interpolate shares, keyed by 0-based index, into the signature.

        Whoever combines shares that were not checked has to check the signature.
        Raises: ValueError for bytes that are no point.
        """
        assert len(shares) >= transcript.threshold, "too few shares to combine"
        indices = tuple(sorted(shares)[: transcript.threshold])
        if len(indices) <= SMALL_SHARES_MAX:
            factors, divisor = exact_lagrange(indices)
            if max(map(abs, factors)) < 1 << SMALL_BITS:
                few = [G1Element.from_bytes_unchecked(shares[i]) for i in indices]
                total = bytes(_sum_of_multiples(few, factors))
                return total if divisor == 1 else _divided(total, divisor)
        points = [G1Point.from_compressed_bytes_unchecked(shares[i]) for i in indices]
        scalars = [scalar(c) for c in lagrange(indices)]
        return bytes(G1Point.multiexp_unchecked(points, scalars).to_compressed_bytes())

    def faulty_threshold(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        """Return the positions of wrong shares. `seed`: 32 bytes unknown to the signers."""
        return faulty(keys, message, signatures, DST_THRESHOLD, seed)

    def faulty_multi(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        """Return the positions of wrong shares. `seed`: 32 bytes unknown to the signers."""
        return faulty(keys, message, signatures, DST_MULTI, seed)

    def sign_multi(self, secret: bytes, message: bytes) -> bytes:
        return _sign(int.from_bytes(secret, "big"), message, DST_MULTI)

    def verify_multi(self, public_keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
        """Check a multi-signature of exactly these keys (one key: a share)."""
        if not public_keys:
            return False
        if len(public_keys) == 1:
            return _verify(public_keys[0], message, signature, DST_MULTI)
        aggregate = _aggregate_keys(tuple(public_keys))
        return aggregate is not None and _verify(aggregate, message, signature, DST_MULTI)

    def combine_multi(self, signatures: Sequence[bytes]) -> bytes:
        total = G1Element.from_bytes_unchecked(signatures[0])
        for signature in signatures[1:]:
            total = total + G1Element.from_bytes_unchecked(signature)
        return bytes(total)

    def prove_possession(self, secret: bytes) -> bytes:
        value = int.from_bytes(secret, "big")
        return _sign(value, _possession_message(public_key(value)), DST_POP)

    def verify_possession(self, public_key: bytes, proof: bytes) -> bool:
        return _verify(public_key, _possession_message(public_key), proof, DST_POP)


@lru_cache(maxsize=1024)
def _aggregate_keys(public_keys: tuple[bytes, ...]) -> bytes | None:
    total = None
    for raw in public_keys:
        key = decode_g2(raw)
        if key is None:
            return None
        total = key if total is None else total + key
    return bytes(total.compress()) if total is not None else None


def _possession_message(public_key: bytes) -> bytes:
    return domain("ic-multi-sig-bls12381-pop") + public_key


VERIFIER = Bls()
