"""Keys of people and nodes: Ed25519 (ours to sign with), and the kinds whose signatures we check.

Source: interface specification "Signatures"; reference/interface.md §A2.
"""

from __future__ import annotations

from functools import lru_cache

import ed25519_zebra
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from replica.protocol.errors import Malformed
from replica.protocol.ids import Principal

ED25519_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")


class Ed25519Key:
    """A signing key; the 32-byte seed is the whole secret."""

    def __init__(self, seed: bytes) -> None:
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.public_key_der = ED25519_DER_PREFIX + self.public_key
        self.principal = Principal.self_authenticating(self.public_key_der)

    @classmethod
    def from_pem(cls, pem: bytes) -> Ed25519Key:
        """Read an unencrypted PKCS#8 Ed25519 key. Raises: Malformed."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise Malformed(f"not an unencrypted private key in PEM: {error}") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise Malformed("the identity's key is not Ed25519")
        return cls(key.private_bytes_raw())

    def to_pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@lru_cache(maxsize=1024)
def verify_ed25519(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Check a signature by the rules of ZIP 215.

    These say of every input whether it verifies. RFC 8032 leaves some open (the cofactor, points
    not written in the shortest form), on which libraries, and versions of one, differ: nodes that
    judge a signature differently would disagree about a block.
    """
    return bool(ed25519_zebra.ed_verify(signature, message, public_key))


def verify_der(public_key_der: bytes, message: bytes, signature: bytes) -> bool:
    """Check a signature under a DER-encoded Ed25519, P-256 or secp256k1 key.

    Raises: Malformed for a key of any other kind.
    """
    if public_key_der.startswith(ED25519_DER_PREFIX) and len(public_key_der) == 44:
        return verify_ed25519(public_key_der[12:], message, signature)
    try:
        key = serialization.load_der_public_key(public_key_der)
    except (ValueError, TypeError) as error:
        raise Malformed(f"not a public key in DER: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Malformed("keys of this kind are not supported")
    if key.curve.name not in ("secp256r1", "secp256k1"):
        raise Malformed(f"the curve {key.curve.name} is not supported")
    if len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
