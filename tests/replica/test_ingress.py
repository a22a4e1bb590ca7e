"""The pool of users' requests: bounded, and what is full says so in a way that can be retried."""

from __future__ import annotations

import pytest

from replica.execution import ingress
from replica.execution.ingress import IngressPool, decode_cached
from replica.protocol import envelope
from replica.protocol.artifacts import ValidationContext
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Rejected, Unavailable
from replica.protocol.ids import CanisterId, Height, NodeId, Principal, RegistryVersion, TimeNs
from replica.runtime.space import RESERVE_BYTES, Space

KEY = Ed25519Key(b"\x09" * 32)
NOW = 1_700_000_000 * 10**9
CONTEXT = ValidationContext(RegistryVersion(1), Height(0), TimeNs(NOW))
PEERS = [NodeId(Principal(bytes([i]) * 29)) for i in (1, 2)]
SOMEBODY, NOBODY = CanisterId(Principal(bytes(10))), CanisterId(Principal(b"\x07" * 10))


def request(number: int, more: bytes = b"", canister: CanisterId = SOMEBODY) -> envelope.Request:
    content = {
        "request_type": "call",
        "sender": bytes(KEY.principal),
        "ingress_expiry": NOW + 60 * 10**9,
        "canister_id": bytes(canister),
        "method_name": "m",
        "arg": more + number.to_bytes(4, "big"),
    }
    _, raw = envelope.sign_request(content, KEY)
    return envelope.decode(raw, TimeNs(NOW))


def test_a_full_pool_asks_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "POOL_MAX", 3)
    pool = IngressPool(lambda _: False)
    assert [pool.add(request(i), PEERS[0]) for i in (0, 1, 1, 2)] == [True, True, False, True]
    with pytest.raises(Unavailable, match="try again") as refused:
        pool.add(request(3), PEERS[0])
    assert refused.value.http_status == 503 and pool.is_full(PEERS[0])


def test_users_are_sent_away_before_peers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SUBMITTED_MAX", 2)
    pool = IngressPool(lambda _: False)
    assert [pool.submit(request(i)) for i in (0, 1, 1)] == [True, True, False]
    with pytest.raises(Unavailable, match="try again"):
        pool.submit(request(2))
    assert pool.add(request(2), PEERS[0]), "somebody has told its user that it was accepted"


def test_who_hands_in_too_much_takes_no_others_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """One member with 4,000 signed requests had all users of all nodes sent away before."""
    monkeypatch.setattr(ingress, "POOL_MAX", 40)
    monkeypatch.setattr(ingress, "SUBMITTED_MAX", 20)
    pool, numbers = IngressPool(lambda _: False), iter(range(1000))
    while not pool.is_full(PEERS[0]):
        assert pool.add(request(next(numbers)), PEERS[0])
    assert len(pool) == 40
    assert [pool.submit(request(next(numbers))) for _ in range(10)] == [True] * 10
    assert [pool.add(request(next(numbers)), PEERS[1]) for _ in range(13)] == [True] * 13
    with pytest.raises(Unavailable):
        pool.add(request(next(numbers)), PEERS[0])
    chosen = [
        int.from_bytes(decode_cached(r, NOW).arg, "big")
        for r in pool.build((), CONTEXT, 30).ingress
    ]
    shares = [
        sum(first <= n < last for n in chosen) for first, last in ((0, 40), (40, 50), (50, 63))
    ]
    assert shares == [10, 10, 10], "and each has its share of a block"


def test_large_requests_take_no_more_of_memory_and_blocks_than_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = [request(i, bytes(1 << 19)) for i in range(12)]
    monkeypatch.setattr(ingress, "POOL_BYTES_MAX", 3 << 20)
    monkeypatch.setattr(ingress, "DECODED_BYTES_MAX", 2 << 20)
    monkeypatch.setattr(ingress, "_decoded", ingress._Decoded())
    pool = IngressPool(lambda _: False)
    for one in large[:5]:
        assert pool.add(one, PEERS[0])
    with pytest.raises(Unavailable):
        pool.add(large[5], PEERS[0])
    assert ingress._decoded._bytes <= 2 << 20
    small = [request(100 + i) for i in range(500)]
    assert all(pool.submit(one) for one in small)
    assert pool.add(large[6], PEERS[1]), "one finds room, whatever its size"
    assert pool.is_full(PEERS[0]) and not pool.is_full(None)
    chosen = pool.build((), CONTEXT, 1000).ingress
    assert {one.raw for one in small} < set(chosen)


def test_what_leads_to_nothing_is_not_taken_from_a_peer() -> None:
    executed, here = request(1), {request(2).request_id}
    pool = IngressPool(lambda id_: id_ not in here, is_callable=lambda id_: id_ != NOBODY)
    assert not pool.add(executed, PEERS[0]) and not len(pool), "it was executed"
    assert pool.add(request(2), PEERS[0])
    with pytest.raises(Rejected, match="no such canister"):
        pool.add(request(2, canister=NOBODY), PEERS[0])


def test_what_was_executed_makes_room_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SUBMITTED_MAX", 2)
    pool = IngressPool(lambda _: False)
    for one in (request(1), request(2)):
        pool.submit(one)
    with pytest.raises(Unavailable):
        pool.check_room()
    pool.executed([request(2).raw, request(3).raw])
    pool.check_room()
    assert pool.submit(request(4)) and len(pool) == 2


def test_the_oldest_of_what_was_checked_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "DECODED_MAX", 3)
    monkeypatch.setattr(ingress, "_decoded", ingress._Decoded())
    checked = [request(100 + i) for i in range(4)]
    for one in checked:
        IngressPool(lambda _: False).add(one, PEERS[0])
    assert decode_cached(checked[3].raw, NOW) is checked[3]
    assert decode_cached(checked[1].raw, NOW) is checked[1]
    assert decode_cached(checked[0].raw, NOW) is not checked[0]


def test_what_was_checked_once_is_not_decoded_again() -> None:
    pool, checked = IngressPool(lambda _: False), request(1007)
    pool.add(checked, PEERS[0])
    assert decode_cached(checked.raw, NOW) is checked


def test_a_node_short_of_space_takes_no_requests_and_makes_empty_blocks() -> None:
    space = Space(100 << 30, 200 << 30)
    pool = IngressPool(lambda _: False, lambda: not space.is_below_reserve)
    assert pool.submit(request(1))
    assert pool.build((), CONTEXT, 10).ingress
    space = Space(RESERVE_BYTES - 1, 200 << 30)
    with pytest.raises(Unavailable, match="disk is nearly full") as refused:
        pool.submit(request(2))
    assert refused.value.http_status == 503 and pool.is_full(PEERS[0]), (
        "peers' are not taken in either"
    )
    assert pool.build((), CONTEXT, 10).ingress == ()
    space = Space(RESERVE_BYTES, 200 << 30)
    assert pool.build((), CONTEXT, 10).ingress == (request(1).raw,)


@pytest.mark.parametrize(
    ("free", "total", "says"),
    [
        (512 << 20, 100 << 30, ""),
        (511 << 20, 100 << 30, "empty blocks"),
        (63 << 20, 100 << 30, "waits for space"),
        (5 << 20, 64 << 20, ""),
        (3 << 20, 64 << 20, "empty blocks"),
        (0, 64 << 20, "waits for space"),
        (0, 0, ""),
    ],
)
def test_the_reserve_is_a_share_of_a_small_disk(free: int, total: int, says: str) -> None:
    said = Space(free, total).describe()
    assert says in said and bool(says) == bool(said)
    assert "read-only" in Space(free, total, is_read_only=True).describe()
