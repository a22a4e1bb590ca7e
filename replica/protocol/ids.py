"""Identifiers and the units of the protocol.

Owns the principal and its text form, and the distinct integer types (heights, versions, times).
Knows nothing of any message that carries them.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from functools import lru_cache
from typing import NewType

from replica.protocol.errors import Malformed

PRINCIPAL_BYTES_MAX = 29

Height = NewType("Height", int)
"""Position in a subnet's chain; 0 is the genesis."""
RegistryVersion = NewType("RegistryVersion", int)
"""Global version of the registry; 1 is the first mutation."""
Epoch = NewType("Epoch", int)
"""Registry version of the unsigned CUP that a chain starts from."""
TimeNs = NewType("TimeNs", int)
"""Nanoseconds since the Unix epoch."""
Rank = NewType("Rank", int)
"""Position in a height's order of block makers, 0 first."""
E8s = NewType("E8s", int)
"""Hundred-millionths of a token."""


class Principal(bytes):
    """A principal: 0 to 29 bytes that name a user, a canister, a subnet or a node.

    Source: interface specification, "Principals".
    """

    def __new__(cls, raw: bytes) -> Principal:
        if len(raw) > PRINCIPAL_BYTES_MAX:
            raise Malformed(f"a principal has at most 29 bytes, this one has {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_text(cls, text: str) -> Principal:
        """Parse the grouped base32 form; refuse any text that `to_text` would not print.

        Raises: Malformed.
        """
        compact = text.replace("-", "").upper()
        try:
            raw = base64.b32decode(compact + "=" * (-len(compact) % 8))
        except ValueError as error:
            raise Malformed(f"{text[:70]!r} is not a principal: not base32") from error
        if len(raw) < 4:
            raise Malformed(f"{text[:70]!r} is not a principal: too short")
        principal = cls(raw[4:])
        if principal.to_text() != text:
            raise Malformed(f"{text[:70]!r} is not a principal: wrong checksum or grouping")
        return principal

    @classmethod
    def self_authenticating(cls, public_key_der: bytes) -> Principal:
        """Derive the principal of a public key: SHA-224(DER) and a 2."""
        return cls(hashlib.sha224(public_key_der).digest() + b"\x02")

    def to_text(self) -> str:
        return _text_of(bytes(self))

    @property
    def short(self) -> str:
        """The first group of the text form, for people."""
        return self.to_text().split("-", 1)[0]

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"Principal({self.to_text()})"


@lru_cache(maxsize=4096)
def _text_of(raw: bytes) -> str:
    checked = zlib.crc32(raw).to_bytes(4, "big") + raw
    flat = base64.b32encode(checked).decode().rstrip("=").lower()
    return "-".join(flat[i : i + 5] for i in range(0, len(flat), 5))


NodeId = NewType("NodeId", Principal)
SubnetId = NewType("SubnetId", Principal)
CanisterId = NewType("CanisterId", Principal)

ANONYMOUS = Principal(b"\x04")
MANAGEMENT_CANISTER = CanisterId(Principal(b""))


def canister_id(index: int) -> CanisterId:
    """Return the id of the canister with this number: 8 bytes big-endian, 1, 1."""
    return CanisterId(Principal(index.to_bytes(8, "big") + b"\x01\x01"))


REGISTRY = canister_id(0)
GOVERNANCE = canister_id(1)
LEDGER = canister_id(2)
ROOT = canister_id(3)
LIFELINE = canister_id(5)
