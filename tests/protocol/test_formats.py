"""Our own encodings and the strictness of all decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replica.protocol import artifacts, candid, canonical, cbor, cup, envelope, hash_tree
from replica.protocol.candid import decoding
from replica.protocol.crypto import bls
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.crypto.scheme import (
    KeyedHash,
    deal_bls,
    deal_double,
    threshold_high,
    threshold_low,
)
from replica.protocol.errors import LimitExceeded, Malformed, NotAuthorized, NotVerified, Rejected
from replica.protocol.hashing import domain
from replica.protocol.ids import ANONYMOUS, NodeId, Principal, canister_id

NOW = 1_700_000_000_000_000_000


# --- principals, cbor, canonical ----------------------------------------------------------------


def test_principal_text() -> None:
    assert str(canister_id(2)) == "ryjl3-tyaaa-aaaaa-aaaba-cai"
    assert Principal.from_text("ryjl3-tyaaa-aaaaa-aaaba-cai") == canister_id(2)
    assert str(Principal(b"")) == "aaaaa-aa"
    assert str(ANONYMOUS) == "2vxsx-fae"


@pytest.mark.parametrize("text", ["", "aaaaa", "ryjl3-tyaaa-aaaaa-aaaba-caj", "RYJL3", "a-b", "é"])
def test_principal_text_that_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        Principal.from_text(text)


@given(st.binary(max_size=29))
def test_principals_survive_their_text(raw: bytes) -> None:
    assert Principal.from_text(str(Principal(raw))) == raw


@pytest.mark.parametrize(
    "bad", ["00ff", "9fff", "c100", "c24101", "d9d9f7d9d9f700", "a2010101", ""]
)
def test_cbor_that_is_refused(bad: str) -> None:
    with pytest.raises(Malformed):
        cbor.loads(bytes.fromhex(bad))


@dataclass(frozen=True)
class Sample:
    number: int
    raw: bytes
    names: tuple[str, ...]
    inner: Sample | None
    table: dict[int, bytes]


samples = st.deferred(
    lambda: st.builds(
        Sample,
        st.integers(-(2**63), 2**64 - 1),
        st.binary(max_size=40),
        st.lists(st.text(max_size=5), max_size=3).map(tuple),
        st.none() | samples,
        st.dictionaries(st.integers(0, 99), st.binary(max_size=3), max_size=4).map(
            lambda d: dict(sorted(d.items()))
        ),
    )
)


@given(samples)
def test_canonical_round_trip(sample: Sample) -> None:
    assert canonical.decode(Sample, canonical.encode(sample)) == sample


@given(samples, st.integers(0, 10**6), st.integers(1, 255))
def test_canonical_bytes_are_the_only_ones(sample: Sample, position: int, change: int) -> None:
    raw = bytearray(canonical.encode(sample))
    raw[position % len(raw)] ^= change
    try:
        decoded = canonical.decode(Sample, bytes(raw))
    except Malformed:
        return
    assert canonical.encode(decoded) == bytes(raw)


@given(st.binary(max_size=300))
def test_no_decoder_does_more_than_refuse_noise(raw: bytes) -> None:
    for decode in (
        artifacts.decode,
        cup.decode,
        hash_tree.decode,
        lambda r: candid.decode((), b"DIDL" + r),
        lambda r: candid.decode_any(b"DIDL" + r),
        lambda r: envelope.decode(r, NOW),
    ):
        try:
            decode(raw)  # type: ignore[operator]
        except Exception as error:
            assert isinstance(error, Rejected), f"{decode} let {error!r} through"


# --- candid ------------------------------------------------------------------------------------


DID = candid.parse(
    """
    type List = opt record { head : int; tail : List };
    type Choice = variant { A; B : nat; C : record { x : text } };
    service : (opt nat8) -> {
      f : (record { id : nat64; list : List; choice : opt Choice; blob : blob }) -> (text) query;
      old : (record { id : nat64 }) -> ();
      new : (record { id : nat64; added : opt text; choice : opt variant { A } }) -> ();
    }
    """
)


def test_candid_round_trip() -> None:
    value = {
        "id": 2**64 - 1,
        "list": {"head": -5, "tail": {"head": 10**30, "tail": None}},
        "choice": {"C": {"x": "ü"}},
        "blob": b"\x00\xff",
    }
    types = DID.methods["f"].args
    assert candid.decode(types, candid.encode(types, [value], DID), DID) == [value]


def test_candid_spec_bytes() -> None:
    assert candid.encode(
        candid.parse("service:{f:(nat)->()}").methods["f"].args, [624485]
    ).hex() == ("4449444c00017de58e26")


def test_candid_subtyping() -> None:
    raw = candid.encode(
        DID.methods["f"].args, [{"id": 7, "list": None, "choice": {"B": 4}, "blob": b""}], DID
    )
    assert candid.decode(DID.methods["old"].args, raw, DID) == [{"id": 7}]
    # An unknown case inside opt, and a missing opt field, both become None.
    assert candid.decode(DID.methods["new"].args, raw, DID) == [
        {"id": 7, "added": None, "choice": None}
    ]
    with pytest.raises(Malformed):
        candid.decode(
            DID.methods["f"].args, candid.encode(DID.methods["old"].args, [{"id": 1}]), DID
        )


def test_candid_plans_of_a_method_serve_whoever_calls_it() -> None:
    """What was worked out for one sender's message must not be taken for another's."""
    mine = candid.parse("service : { m : (record { a : nat; b : opt text }) -> () }")
    types = mine.methods["m"].args
    theirs = [
        ("(record { a : nat; b : opt text })", {"a": 1, "b": "x"}, {"a": 1, "b": "x"}),
        ("(record { a : nat })", {"a": 2}, {"a": 2, "b": None}),
        ("(record { a : nat; c : bool })", {"a": 300, "c": True}, {"a": 300, "b": None}),
    ]
    for _ in range(3):
        for text, value, expected in theirs:
            other = candid.parse(f"service : {{ m : {text} -> () }}")
            raw = candid.encode(other.methods["m"].args, [value], other)
            assert candid.decode(types, raw, mine) == [expected]
            assert candid.decode(list(types), raw, mine) == [expected]
        with pytest.raises(Malformed):
            candid.decode(types, candid.encode([], []), mine)


def test_candid_values_that_nest_too_deep_are_not_encoded() -> None:
    did = candid.parse("type L = opt record { n : nat; next : L }; service : { m : (L) -> () }")
    types = did.methods["m"].args
    value: Any = None
    for n in range(40):
        value = {"n": n, "next": value}
    raw = candid.encode(types, [value], did)
    assert candid.decode(types, raw, did) == [value]
    for n in range(4000):
        value = {"n": n, "next": value}
    with pytest.raises(LimitExceeded, match="deeper"):
        candid.encode(types, [value], did)
    assert candid.encode(types, [None], did), "the next one is not the worse for it"


@pytest.mark.parametrize("value", [{}, {"a": 1, "b": 2}, {"z": 1}, "a", 7, None])
def test_what_is_no_variant_is_refused(value: Any) -> None:
    did = candid.parse("service : { m : (variant { a : nat; b : nat }) -> () }")
    with pytest.raises(Malformed, match="variant"):
        candid.encode(did.methods["m"].args, [value], did)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"DIDL",
        b"DIDL\x00\x00trailing",
        b"DIDL\x01\x6d\x7f\x01\x00" + b"\xff\xff\xff\xff\x0f",  # vec null of 2^32 - 1
        b"DIDL\x00\x01\x7d" + b"\x80" * 2000 + b"\x01",  # an endless nat
        b"DIDL\xff\xff\xff\xff\x0f",  # a table of 2^32 - 1 types
        b"DIDL\x01\x6e\x00\x01\x00" + b"\x01" * 5000,  # opt opt opt ...
    ],
    ids=range(7),
)
def test_candid_bombs_are_refused(raw: bytes) -> None:
    with pytest.raises((Malformed, LimitExceeded)):
        candid.decode_any(raw)


def test_did_errors_name_the_place() -> None:
    with pytest.raises(Malformed, match="unknown type Nope"):
        candid.parse("service : { f : (record { a : Nope }) -> () }")
    assert decoding.TABLE_MAX >= 1000


# --- envelopes ---------------------------------------------------------------------------------


def content(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "request_type": "call",
        "sender": b"\x04",
        "ingress_expiry": NOW + 60 * 10**9,
        "canister_id": bytes(canister_id(0)),
        "method_name": "m",
        "arg": b"DIDL\x00\x00",
    }
    return {**base, **changes}


def test_request_id_of_the_specification() -> None:
    example = {
        "request_type": "call",
        "sender": bytes.fromhex("04"),
        "ingress_expiry": 1685570400000000000,
        "canister_id": bytes.fromhex("00000000000004D2"),
        "method_name": "hello",
        "arg": bytes.fromhex("4449444c00fd2a"),
    }
    assert envelope.hash_of_map(example).hex() == (
        "1d1091364d6bb8a6c16b203ee75467d59ead468f523eb058880ae8ec80e2b101"
    )


@pytest.mark.parametrize("field", ["canister_id", "method_name", "sender", "arg", "nonce"])
@pytest.mark.parametrize("value", [7, [b"x"], {"a": 1}, 1.5, True])
def test_a_field_of_a_wrong_type_is_malformed(field: str, value: Any) -> None:
    raw = cbor.dumps({"content": {**content(), field: value}}, tagged=True)
    with pytest.raises(Malformed):
        envelope.decode(raw, NOW)


def test_signed_request() -> None:
    key = Ed25519Key(b"\x01" * 32)
    id_, raw = envelope.sign_request(content(sender=bytes(key.principal)), key)
    request = envelope.decode(raw, NOW)
    assert (request.request_id, request.sender) == (id_, key.principal)
    tampered = raw.replace(b"DIDL\x00\x00", b"DIDL\x00\x01")
    with pytest.raises(NotVerified):
        envelope.decode(tampered, NOW)


def test_expired_and_far_future_requests_say_so_as_agents_expect() -> None:
    _, raw = envelope.sign_request(content(), None)
    with pytest.raises(Malformed, match=r"^Invalid request expiry: "):
        envelope.decode(raw, NOW + 61 * 10**9)
    with pytest.raises(Malformed, match=r"^Invalid request expiry: "):
        envelope.decode(raw, NOW - 600 * 10**9)


@pytest.mark.parametrize(
    "changes",
    [
        {"request_type": "cal"},
        {"sender": "x"},
        {"nonce": bytes(33)},
        {"extra": 1},
        {"ingress_expiry": -1},
        {"arg": "text"},
        {"sender": bytes(30)},
    ],
    ids=str,
)
def test_malformed_requests(changes: dict[str, object]) -> None:
    raw = cbor.dumps({"content": content(**changes)}, tagged=True)
    with pytest.raises(Malformed):
        envelope.decode(raw, NOW)


def test_delegations() -> None:
    owner, session = Ed25519Key(b"\x01" * 32), Ed25519Key(b"\x02" * 32)

    def signed(delegation: dict[str, object]) -> bytes:
        link = {
            "delegation": delegation,
            "signature": owner.sign(
                domain("ic-request-auth-delegation") + envelope.hash_of_map(delegation)
            ),
        }
        body = content(sender=bytes(owner.principal))
        request_id = envelope.hash_of_map(body)
        return cbor.dumps(
            {
                "content": body,
                "sender_pubkey": owner.public_key_der,
                "sender_sig": session.sign(domain("ic-request") + request_id),
                "sender_delegation": [link],
            },
            tagged=True,
        )

    good = {"pubkey": session.public_key_der, "expiration": NOW + 10**9}
    assert envelope.decode(signed(good), NOW).sender == owner.principal
    with pytest.raises(NotAuthorized):
        envelope.decode(signed({**good, "expiration": NOW - 1}), NOW)
    with pytest.raises(NotAuthorized):
        envelope.decode(signed({**good, "targets": [bytes(canister_id(9))]}), NOW)
    with pytest.raises(NotAuthorized):
        envelope.decode(signed({**good, "permissions": "queries"}), NOW)


# --- signatures --------------------------------------------------------------------------------


NODES = [NodeId(Principal(bytes([i]) * 29)) for i in range(7)]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_any_threshold_of_shares_makes_the_one_signature(count: int) -> None:
    scheme, members = bls.Bls(), NODES[:count]
    threshold = threshold_high(count)
    dealt = deal_bls(members, threshold, [11 + i for i in range(threshold)])
    shares = {i: scheme.sign_threshold(s, b"m") for i, s in enumerate(dealt.shares)}
    first = dict(list(shares.items())[:threshold])
    last = dict(list(shares.items())[-threshold:])
    keys = dealt.transcript.share_keys
    made = scheme.combine_threshold(b"m", first, dealt.transcript)
    assert made == scheme.combine_threshold(b"m", last, dealt.transcript)
    assert scheme.verify_threshold(dealt.transcript.public_key, b"m", made)
    assert not scheme.verify_threshold(dealt.transcript.public_key, b"n", made)
    for i, share in shares.items():
        assert scheme.verify_threshold(keys[i], b"m", share)
        assert not scheme.verify_threshold(keys[(i + 1) % count], b"m", share) or count == 1


@pytest.mark.parametrize("scheme", [bls.Bls(), KeyedHash()], ids=["bls", "double"])
def test_fewer_shares_than_the_threshold_never_sign(scheme: bls.Bls | KeyedHash) -> None:
    double = isinstance(scheme, KeyedHash)
    dealt = deal_double(NODES[:4], 3, b"s") if double else deal_bls(NODES[:4], 3, [5, 6, 7])
    two = {i: scheme.sign_threshold(dealt.shares[i], b"m") for i in (0, 1)}
    with pytest.raises(AssertionError):
        scheme.combine_threshold(b"m", two, dealt.transcript)


@pytest.mark.parametrize("bad", [(), (2,), (0, 6), (1, 2, 3), tuple(range(7))])
@pytest.mark.parametrize("scheme", [bls.Bls(), KeyedHash()], ids=["bls", "double"])
def test_wrong_shares_are_found_in_a_batch(
    scheme: bls.Bls | KeyedHash, bad: tuple[int, ...]
) -> None:
    double = isinstance(scheme, KeyedHash)
    dealt = deal_double(NODES, 5, b"s") if double else deal_bls(NODES, 5, [5, 6, 7, 8, 9])
    keys = dealt.transcript.share_keys
    shares = [scheme.sign_threshold(s, b"m") for s in dealt.shares]
    for i in bad:
        shares[i] = scheme.sign_threshold(dealt.shares[i], b"another message")
    assert scheme.faulty_threshold(keys, b"m", shares, b"seed") == list(bad)


def test_errors_that_cancel_out_in_a_plain_sum_are_found() -> None:
    """Two signers move their shares apart by the same point: the sum stays right."""
    scheme = bls.Bls()
    secrets = [(i + 3).to_bytes(32, "big") for i in range(4)]
    keys = [bls.public_key(i + 3) for i in range(4)]
    good = [scheme.sign_multi(s, b"m") for s in secrets]
    shift = [(1000).to_bytes(32, "big"), (bls.ORDER - 1000).to_bytes(32, "big")]
    moved = [scheme.combine_multi([g, scheme.sign_multi(s, b"m")]) for g, s in zip(good, shift)]
    signatures = [*moved, *good[2:]]
    assert scheme.verify_multi(keys, b"m", scheme.combine_multi(signatures)), "the sum is right"
    assert scheme.faulty_multi(keys, b"m", signatures, b"seed") == [0, 1]


@pytest.mark.parametrize("bad", [b"", b"\xff" * 48, b"\xc0" + bytes(47), bytes(47), bytes(200)])
def test_bytes_that_are_no_point_are_wrong_shares(bad: bytes) -> None:
    scheme = bls.Bls()
    dealt = deal_bls(NODES[:4], 3, [5, 6, 7])
    shares = [scheme.sign_threshold(s, b"m") for s in dealt.shares]
    shares[1] = bad
    assert scheme.faulty_threshold(dealt.transcript.share_keys, b"m", shares, b"seed") == [1]


def test_infinity_is_no_signature_and_no_key() -> None:
    scheme = bls.Bls()
    infinity = b"\xc0" + bytes(47)
    assert not scheme.verify_threshold(bls.public_key(5), b"m", infinity)
    assert not scheme.verify_threshold(b"\xc0" + bytes(95), b"m", infinity)


def test_multi_signature_names_its_signers() -> None:
    scheme = bls.Bls()
    secrets = [(i + 3).to_bytes(32, "big") for i in range(4)]
    keys = [bls.public_key(i + 3) for i in range(4)]
    made = scheme.combine_multi([scheme.sign_multi(s, b"m") for s in secrets[:3]])
    assert scheme.verify_multi(keys[:3], b"m", made)
    assert not scheme.verify_multi(keys, b"m", made)
    assert not scheme.verify_multi(keys[1:], b"m", made)
    assert scheme.verify_possession(keys[0], scheme.prove_possession(secrets[0]))
    assert not scheme.verify_possession(keys[1], scheme.prove_possession(secrets[0]))


@pytest.mark.parametrize("count", range(1, 201))
def test_thresholds_are_safe_and_live_for_every_size(count: int) -> None:
    high, low = threshold_high(count), threshold_low(count)
    faulty = (count - 1) // 3
    assert 2 * high - count > faulty  # two quorums share an honest member
    assert count - faulty >= high  # the honest ones can form a quorum
    assert low == faulty + 1
