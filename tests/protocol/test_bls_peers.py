"""What one library makes another takes: the one that does the work is checked by two others."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from blspy import G1Element, G2Element
from py_arkworks_bls12381 import G1Point, G2Point, Scalar

from replica.protocol.crypto import bls

DOMAINS = (bls.DST_THRESHOLD, bls.DST_MULTI, bls.DST_POP)


def _peer_accepts(key: bytes, message: bytes, signature: bytes, dst: bytes) -> bool:
    point, public = G1Element.from_bytes(signature), G2Element.from_bytes(key)
    left, right = point.pair(G2Element.generator()), G1Element.from_message(message, dst)
    return bool(left == right.pair(public))


@pytest.mark.parametrize("seed", range(20))
def test_keys_hashes_and_signatures_are_the_same_everywhere(seed: int) -> None:
    draw = random.Random(seed)
    secret = draw.randrange(1, bls.ORDER) if seed else bls.ORDER - 1
    message, dst = draw.randbytes(draw.randrange(100)), DOMAINS[seed % 3]
    scalar = Scalar.from_be_bytes(secret.to_bytes(32, "big"))
    key = bls.public_key(secret)
    assert key == bytes((G2Point() * scalar).to_compressed_bytes())
    hashed = bytes(G1Element.from_message(message, dst))
    assert bytes(bls._hash(message, dst).compress()) == hashed
    signature = bls._sign(secret, message, dst)
    expected = G1Point.from_compressed_bytes(hashed) * scalar
    assert signature == bytes(expected.to_compressed_bytes())
    assert bls._pairs_match(key, message, signature, dst)
    assert _peer_accepts(key, message, signature, dst)
    other = bls.public_key(secret - 1 or 2)
    assert not bls._pairs_match(other, message, signature, dst)
    assert not _peer_accepts(other, message, signature, dst)


def test_points_that_one_library_refuses_all_refuse() -> None:
    """Among them points of the curve outside the group: a factor of theirs proves nothing."""
    outcomes = {True: 0, False: 0}
    for number in range(200):
        raw = bytearray(hashlib.shake_256(number.to_bytes(4, "big")).digest(48))
        raw[0] = 0x80 | (raw[0] & 0x3F)
        ours = bls.decode_g1(bytes(raw)) is not None
        assert ours == _decodes(G1Element.from_bytes, bytes(raw)), raw.hex()
        outcomes[_decodes(G1Element.from_bytes_unchecked, bytes(raw))] += 1
        wide = bytes(raw) + hashlib.sha512(raw).digest()[:48]
        assert (bls.decode_g2(wide) is not None) == _decodes(G2Element.from_bytes, wide)
    assert min(outcomes.values()) > 5, "both points off the curve and points outside the group"


@pytest.mark.parametrize(
    ("nodes", "threshold"), [(4, 2), (4, 3), (7, 5), (13, 8), (40, 8), (40, 14)]
)
def test_any_shares_make_the_signature_of_the_secret(nodes: int, threshold: int) -> None:
    """Few of a small subnet are added up, others multiplied: either way it is the one there is."""
    draw = random.Random(nodes * threshold)
    secrets = [draw.randrange(bls.ORDER) for _ in range(threshold)]
    message = draw.randbytes(20)
    shares = [
        bls._sign(bls.evaluate(secrets, i + 1), message, bls.DST_THRESHOLD) for i in range(nodes)
    ]
    sets = itertools.combinations(range(nodes), threshold)
    if nodes > 7:
        sets = iter([tuple(draw.sample(range(nodes), threshold)) for _ in range(10)])
    for indices in sets:
        chosen = {i: shares[i] for i in indices}
        made = bls.VERIFIER.combine_threshold(message, chosen, _Threshold(threshold))
        assert made == bls._sign(secrets[0], message, bls.DST_THRESHOLD)


class _Threshold:
    def __init__(self, threshold: int) -> None:
        self.threshold = threshold


def test_what_is_no_point_is_not_added_up() -> None:
    good = bls._sign(5, b"", bls.DST_THRESHOLD)
    for bad in (b"", good[:-1], b"\xff" * 48, bytes(48)):
        with pytest.raises(ValueError):
            bls.VERIFIER.combine_threshold(b"", {0: good, 1: bad}, _Threshold(2))


def _decodes(decode: object, raw: bytes) -> bool:
    try:
        decode(raw)  # type: ignore[operator]
    except ValueError:
        return False
    return True
