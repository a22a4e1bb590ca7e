"""SHA-256 with domain separation, and the variable-length integers of the IC.

Source: reference/state.md §1-2; interface specification, "Representation-independent hashing".
"""

from __future__ import annotations

import hashlib

from replica.protocol.errors import Malformed


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def domain(separator: str) -> bytes:
    """Return one length byte and the ASCII separator: what precedes a hashed or signed message."""
    raw = separator.encode("ascii")
    return bytes([len(raw)]) + raw


def domain_hash(separator: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(domain(separator))
    for part in parts:
        digest.update(part)
    return digest.digest()


def leb128(value: int) -> bytes:
    """Encode a natural number as shortest unsigned LEB128."""
    if value < 0:
        raise Malformed("LEB128 here encodes natural numbers only")
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        if not value:
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


def leb128_decode(data: bytes, bits_max: int = 64) -> int:
    """Decode a whole buffer as one unsigned LEB128 number of at most `bits_max` bits.

    Raises: Malformed.
    """
    value = 0
    for position, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * position)
        if value.bit_length() > bits_max:
            raise Malformed(f"LEB128 number above {bits_max} bits")
        if not byte & 0x80:
            if position + 1 != len(data):
                raise Malformed("bytes after a LEB128 number")
            return value
    raise Malformed("truncated LEB128 number")
