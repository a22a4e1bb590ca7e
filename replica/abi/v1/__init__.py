"""ABI v1: everything that a Python canister may see. Frozen: only additions, never changes.

A canister's package declares methods with the decorators below. A method receives the call's
`Context` and its decoded Candid arguments, and returns its Candid result. A method that has to
wait for another canister calls `ctx.call(..., on_reply="name", context=...)` and returns `LATER`;
the reply method, declared with `@reply`, gets the outcome and that context, and answers the
original caller with its own return value.

All functions here are pure: equal inputs, equal outputs, on every node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from replica.abi.tables import TableHandle
from replica.abi.v1 import ballots, evidence, messages
from replica.protocol import candid as _candid
from replica.protocol import hash_tree
from replica.protocol.crypto.keys import verify_der, verify_ed25519
from replica.protocol.errors import Rejected
from replica.protocol.hashing import leb128, sha256
from replica.protocol.ids import (
    GOVERNANCE,
    LEDGER,
    LIFELINE,
    MANAGEMENT_CANISTER,
    REGISTRY,
    ROOT,
    Principal,
)

F = TypeVar("F", bound=Callable[..., Any])


class Later:
    """Returned by a method whose answer comes from one of its reply methods."""


LATER: Final = Later()


class Refuse(Exception):
    """Raised by a method to reject the call with a message (reject code 4); writes are dropped."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back from another canister."""

    reply: bytes | None
    """Candid-encoded results; None when the call was rejected."""
    reject_code: int = 0
    reject_message: str = ""

    @property
    def ok(self) -> bool:
        return self.reply is not None


class Context(Protocol):
    """What a method can do besides computing."""

    caller: Principal
    self_id: Principal
    time_ns: int
    """Time of the block, the same for all messages in it."""

    def table(self, name: str) -> TableHandle: ...
    def call(
        self,
        target: Principal,
        method: str,
        arg: bytes,
        *,
        on_reply: str,
        context: bytes = b"",
    ) -> None:
        """Send a message after this method has succeeded."""

    def set_certified_data(self, data: bytes) -> None:
        """Set the (at most 32) bytes that the subnet certifies for this canister."""

    def set_timer(self, at_ns: int) -> None:
        """Run the `@timer` method in the first block at or after this time; 0 unsets it."""

    def certificate(self) -> bytes | None:
        """Return the certificate of the certified data; only in queries."""

    def is_controller(self, principal: Principal) -> bool: ...
    def log(self, text: str) -> None: ...


def _mark(kind: str) -> Callable[[F], F]:
    def mark(function: F) -> F:
        function.canister_entry = kind  # type: ignore[attr-defined]
        return function

    return mark


update = _mark("update")
"""An update method, named as in the .did."""
query = _mark("query")
"""A query method; callable as an update as well."""
raw_query = _mark("raw_query")
"""A query outside Candid: (ctx, bytes) -> bytes, for interfaces of the IC that are protobuf."""
init = _mark("init")
post_upgrade = _mark("post_upgrade")
migrate = _mark("migrate")
"""Moves the rows of a table whose declaration an upgrade changes: a function named as the table,
(old row) -> new row, a list of new rows, or None to drop the row."""
timer = _mark("timer")
reply = _mark("reply")
"""A reply method: (ctx, outcome, context bytes) -> result or LATER."""


def encode(types: str, *values: Any) -> bytes:
    """Encode Candid values; `types` as in a .did, such as "(record { a : nat64 }, text)"."""
    interface = _types(types)
    return _candid.encode(interface.methods["f"].args, values, interface)


def decode(types: str, data: bytes) -> list[Any]:
    interface = _types(types)
    return _candid.decode(interface.methods["f"].args, data, interface)


_parsed: dict[str, _candid.Interface] = {}


def _types(text: str) -> _candid.Interface:
    found = _parsed.get(text)
    if found is None:
        found = _parsed[text] = _candid.parse(f"service : {{ f : {text} -> () }}")
    return found


def account_identifier(owner: Principal, subaccount: bytes = bytes(32)) -> bytes:
    """Return a ledger account: CRC-32 and SHA-224 of the owner and a 32-byte subaccount."""
    import hashlib
    import zlib

    digest = hashlib.sha224(b"\x0aaccount-id" + bytes(owner) + subaccount).digest()
    return zlib.crc32(digest).to_bytes(4, "big") + digest


__all__ = [
    "GOVERNANCE",
    "LATER",
    "LEDGER",
    "LIFELINE",
    "MANAGEMENT_CANISTER",
    "REGISTRY",
    "ROOT",
    "Context",
    "Later",
    "Outcome",
    "Principal",
    "Refuse",
    "Rejected",
    "account_identifier",
    "ballots",
    "decode",
    "encode",
    "evidence",
    "hash_tree",
    "init",
    "leb128",
    "messages",
    "migrate",
    "post_upgrade",
    "query",
    "raw_query",
    "reply",
    "sha256",
    "timer",
    "update",
    "verify_der",
    "verify_ed25519",
]
