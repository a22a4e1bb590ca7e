"""Signatures of people and nodes: one rule for every input, and no exceptions out of any."""

from __future__ import annotations

import secrets

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from replica.protocol.crypto.keys import Ed25519Key, verify_der, verify_ed25519

ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = b"\x01" + bytes(31)
IDENTITY_WRITTEN_LONG = (2**255 - 19 + 1).to_bytes(32, "little")
OF_ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


def test_what_was_signed_verifies_and_nothing_near_it() -> None:
    for _ in range(50):
        key, message = Ed25519Key(secrets.token_bytes(32)), secrets.token_bytes(40)
        signature = key.sign(message)
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, message)
        assert verify_ed25519(key.public_key, message, signature)
        assert verify_der(key.public_key_der, message, signature)
        for place in (0, 31, 32, 63):
            wrong = bytearray(signature)
            wrong[place] ^= 1
            with pytest.raises(InvalidSignature):
                Ed25519PublicKey.from_public_bytes(key.public_key).verify(bytes(wrong), message)
            assert not verify_ed25519(key.public_key, message, bytes(wrong))
        assert not verify_ed25519(key.public_key, message + b"\0", signature)


def test_the_rules_of_zip_215() -> None:
    for message in (b"", b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
        # The cofactor counts: else the hash of the message decides, one time in eight.
        assert verify_ed25519(OF_ORDER_8, message, IDENTITY + bytes(32))
        assert verify_ed25519(IDENTITY_WRITTEN_LONG, message, IDENTITY + bytes(32))
        assert verify_ed25519(IDENTITY, message, IDENTITY_WRITTEN_LONG + bytes(32))
        # One signature has one form: S is below the order.
        assert not verify_ed25519(IDENTITY, message, IDENTITY + ORDER.to_bytes(32, "little"))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\x02" + bytes(31), b"\xff" * 32])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65), b"\xff" * 64])
def test_what_is_no_key_or_signature_does_not_verify(key: bytes, signature: bytes) -> None:
    assert not verify_ed25519(key, b"m", signature)
