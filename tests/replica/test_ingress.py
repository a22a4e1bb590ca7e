"""The pool of users' requests: bounded, and what is full says so in a way that can be retried."""

from __future__ import annotations

import pytest

from replica.execution import ingress
from replica.execution.ingress import IngressPool, decode_cached
from replica.protocol import envelope
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Unavailable
from replica.protocol.ids import TimeNs

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
    assert refused.value.http_status == 503


def test_what_was_checked_once_is_not_decoded_again() -> None:
    pool, checked = IngressPool(lambda _: False), request(7)
    pool.add(checked)
    assert decode_cached(checked.raw, NOW) is checked
