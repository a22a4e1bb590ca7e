"""The simulation's groups keep the laws that signatures and key generation rest on."""

from __future__ import annotations

import pytest

from replica.protocol.crypto import bls
from replica.protocol.crypto.scheme import deal_bls
from replica.protocol.ids import NodeId, Principal
from simulation import open_groups

NODES = [NodeId(Principal(bytes([i]))) for i in range(4)]
SEED = bytes(32)


def _sign_as_a_subnet() -> tuple[bytes, bytes]:
    """Return a threshold key, and its signature of a message: shares, one of them bad, combined."""
    scheme = bls.Bls()
    deal = deal_bls(NODES, 3, (7, 11, 13))
    keys = deal.transcript.share_keys
    shares = [scheme.sign_threshold(s, b"message") for s in deal.shares]
    bad = [shares[0], shares[0], *shares[2:]]
    assert scheme.faulty_threshold(keys, b"message", shares, SEED) == []
    assert scheme.faulty_threshold(keys, b"message", bad, SEED) == [1]
    some = {i: shares[i] for i in (0, 2, 3)}
    signature = scheme.combine_threshold(b"message", some, deal.transcript)
    key = deal.transcript.public_key
    assert scheme.verify_threshold(key, b"message", signature)
    assert not scheme.verify_threshold(key, b"massage", signature)
    assert not scheme.verify_threshold(keys[0], b"message", signature)
    wrong = scheme.combine_threshold(
        b"message", {0: shares[1], 2: shares[2], 3: shares[3]}, deal.transcript
    )
    assert not scheme.verify_threshold(key, b"message", wrong)
    return key, signature


def test_thresholds_hold_in_both_kinds_of_groups_and_neither_takes_the_others_points() -> None:
    on_the_curve = _sign_as_a_subnet()
    with open_groups.in_use():
        assert bls.decode_g2(on_the_curve[0]) is None
        assert bls.decode_g1(on_the_curve[1]) is None
        in_the_open = _sign_as_a_subnet()
    assert bls.decode_g2(in_the_open[0]) is None
    assert _sign_as_a_subnet() == on_the_curve
    assert [len(a) for a in in_the_open] == [len(a) for a in on_the_curve]


def test_multisignatures_and_proofs_of_possession_hold() -> None:
    scheme = bls.Bls()
    with open_groups.in_use():
        secrets = [s.to_bytes(32, "big") for s in (3, 5, bls.ORDER - 1)]
        keys = [bls.public_key(int.from_bytes(s, "big")) for s in secrets]
        total = scheme.combine_multi([scheme.sign_multi(s, b"block") for s in secrets])
        assert scheme.verify_multi(keys, b"block", total)
        assert not scheme.verify_multi(keys[:2], b"block", total)
        proof = scheme.prove_possession(secrets[0])
        assert scheme.verify_possession(keys[0], proof)
        assert not scheme.verify_possession(keys[1], proof)


@pytest.mark.parametrize("where", [0, 20, 47])
def test_garbled_points_are_no_points_or_other_points(where: int) -> None:
    with open_groups.in_use():
        good = bls.Bls().sign_threshold(SEED[:-1] + b"\x09", b"message")
        raw = bytearray(good)
        raw[where] ^= 1
        point = bls.decode_g1(bytes(raw))
        assert point is None or point.compress() != good
    assert bls.decode_g1(good) is None
