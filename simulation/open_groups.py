"""The groups of BLS12-381 with every discrete logarithm in the open: points are numbers.

A pairing is a product here, so whoever reads a public key could sign in its name: nobody in a
simulation does. Everything above the groups runs as it is: key generation, sealed shares,
complaints, thresholds, proofs of possession, encodings of the right length. A whole swarm spends
half of its time on curves otherwise; how the curve behaves is known, and shown elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha512
from typing import Any, ClassVar, Self

from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.bls import ORDER

NUMBER_BYTES = 32


class _Point:
    """A multiple of the generator. Has the names by which all three libraries are called."""

    prefix: ClassVar[bytes]
    """What an encoding begins with; the number follows. Anything else is no point."""

    __slots__ = ("number",)

    def __init__(self, number: int = 1) -> None:
        self.number = number

    @classmethod
    def uncompress(cls, raw: bytes) -> Self:
        number = int.from_bytes(raw[-NUMBER_BYTES:], "big")
        if raw[:-NUMBER_BYTES] != cls.prefix or number >= ORDER:
            raise ValueError("not a point")
        return cls(number)

    from_bytes_unchecked = from_compressed_bytes_unchecked = uncompress

    @classmethod
    def hash_to_group(cls, message: bytes, dst: bytes) -> Self:
        return cls(int.from_bytes(sha512(dst + message).digest(), "big") % (ORDER - 1) + 1)

    @classmethod
    def multiexp_unchecked(cls, points: Sequence[Self], factors: Sequence[int]) -> Self:
        return cls(sum(p.number * f for p, f in zip(points, factors, strict=True)) % ORDER)

    def scalar_mul(self, factor: int) -> Self:
        return type(self)(self.number * factor % ORDER)

    def compress(self) -> bytes:
        return self.prefix + self.number.to_bytes(NUMBER_BYTES, "big")

    __bytes__ = to_compressed_bytes = compress

    def __add__(self, other: Self) -> Self:
        return type(self)((self.number + other.number) % ORDER)

    def __neg__(self) -> Self:
        return type(self)(-self.number % ORDER)

    negate = __neg__


class G1(_Point):
    __slots__ = ()
    prefix = b"\x80".ljust(bls.SIGNATURE_BYTES - NUMBER_BYTES, b"\x01")


class G2(_Point):
    __slots__ = ()
    prefix = b"\x80".ljust(bls.PUBLIC_KEY_BYTES - NUMBER_BYTES, b"\x02")


class _Scalar:
    @staticmethod
    def from_be_bytes(raw: bytes) -> int:
        return int.from_bytes(raw, "big")


def _pairing(first: G1, second: G2) -> int:
    return first.number * second.number % ORDER


_IN_BLS: dict[str, Any] = {
    "G1": G1(),
    "G2": G2(),
    "G1Element": G1,
    "G1Point": G1,
    "G2Point": G2,
    "BlstP1Element": G1,
    "BlstP2Element": G2,
    "Scalar": _Scalar,
    "miller_loop": _pairing,
    "final_verify": int.__eq__,
}
_IN_DKG: dict[str, Any] = {"G2Point": G2, "BlstP1Element": G1}


@contextmanager
def in_use() -> Iterator[None]:
    """Have `bls` and `dkg` compute in these groups meanwhile."""
    kept = [(m, name, getattr(m, name)) for m, names in _PLACES for name in names]
    _forget()
    try:
        for module, names in _PLACES:
            for name, substitute in names.items():
                setattr(module, name, substitute)
        yield
    finally:
        for module, name, original in kept:
            setattr(module, name, original)
        _forget()


_PLACES = ((bls, _IN_BLS), (dkg, _IN_DKG))


def _forget() -> None:
    """Clear every cache of the two modules: no point of one kind of groups meets the other."""
    for module, _ in _PLACES:
        for thing in list(vars(module).values()):
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
