"""The pool of users' requests: bounded, and what is full says so in a way that can be retried."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from replica.execution import ingress
from replica.execution.ingress import IngressPool, decode_cached
from replica.protocol import envelope
from replica.protocol.artifacts import ValidationContext
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, RegistryVersion, TimeNs
from replica.runtime.space import RESERVE_BYTES, Space

KEY = Ed25519Key(b"\x09" * 32)
NOW = 1_700_000_000 * 10**9


def request(number: int) -> envelope.Request:
    content = {
        "request_type": "call",
        "sender": bytes(KEY.principal),
        "ingress_expiry": NOW + 60 * 10**9,
        "canister_id": bytes(10),
        "method_name": "m",
        "arg": number.to_bytes(4, "big"),
    }
    _, raw = envelope.sign_request(content, KEY)
    return envelope.decode(raw, TimeNs(NOW))


def test_a_full_pool_asks_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "POOL_MAX", 3)
    pool = IngressPool(lambda _: False)
    assert [pool.add(request(i)) for i in (0, 1, 1, 2)] == [True, True, False, True]
    with pytest.raises(Unavailable, match="try again") as refused:
        pool.add(request(3))
    assert refused.value.http_status == 503 and pool.is_full


def test_users_are_sent_away_before_peers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SUBMITTED_MAX", 2)
    pool = IngressPool(lambda _: False)
    assert [pool.submit(request(i)) for i in (0, 1, 1)] == [True, True, False]
    with pytest.raises(Unavailable, match="try again"):
        pool.submit(request(2))
    assert pool.add(request(2)), "somebody has told its user that it was accepted"


def test_the_oldest_of_what_was_checked_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "DECODED_MAX", 3)
    monkeypatch.setattr(ingress, "_decoded", OrderedDict())
    checked = [request(100 + i) for i in range(4)]
    for one in checked:
        IngressPool(lambda _: False).add(one)
    assert decode_cached(checked[3].raw, NOW) is checked[3]
    assert decode_cached(checked[1].raw, NOW) is checked[1]
    assert decode_cached(checked[0].raw, NOW) is not checked[0]


def test_what_was_checked_once_is_not_decoded_again() -> None:
    pool, checked = IngressPool(lambda _: False), request(7)
    pool.add(checked)
    assert decode_cached(checked.raw, NOW) is checked


def test_a_node_short_of_space_takes_no_requests_and_makes_empty_blocks() -> None:
    space = Space(100 << 30, 200 << 30)
    pool = IngressPool(lambda _: False, lambda: not space.is_below_reserve)
    assert pool.submit(request(1))
    context = ValidationContext(RegistryVersion(1), Height(0), TimeNs(NOW))
    assert pool.build((), context, 10).ingress
    space = Space(RESERVE_BYTES - 1, 200 << 30)
    with pytest.raises(Unavailable, match="disk is nearly full") as refused:
        pool.submit(request(2))
    assert refused.value.http_status == 503 and pool.is_full, "peers' are not taken in either"
    assert pool.build((), context, 10).ingress == ()
    space = Space(RESERVE_BYTES, 200 << 30)
    assert pool.build((), context, 10).ingress == (request(1).raw,)


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
