"""The records of replicated state: canisters, their queues and open calls, ingress history.

Immutable: execution replaces them. Canonical encoding makes them hashable and storable.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from replica.protocol.crypto.dkg import KeyRequest
from replica.protocol.ids import CanisterId, Principal

RUNNING, STOPPING, STOPPED = "running", "stopping", "stopped"


@dataclass(frozen=True, slots=True)
class FromUser:
    """The call came in a block."""

    request_id: bytes


@dataclass(frozen=True, slots=True)
class FromCanister:
    """The call came from a canister of this subnet, which waits for it under a number."""

    canister: CanisterId
    callback: int


@dataclass(frozen=True, slots=True)
class FromTimer:
    """The subnet called by itself; nobody waits."""


Origin = FromUser | FromCanister | FromTimer


@dataclass(frozen=True, slots=True)
class Request:
    sender: Principal
    origin: Origin
    method: str
    arg: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """Answer to a call that the receiving canister made."""

    callback: int
    reply: bytes | None
    reject_code: int
    reject_message: str


Message = Request | Response


@dataclass(frozen=True, slots=True)
class CallContext:
    """A call that this canister has not answered yet."""

    origin: Origin
    caller: Principal
    method: str
    """The method called: its result types are those of the answer."""
    outstanding: int
    """Calls made on its behalf that are still open."""


@dataclass(frozen=True, slots=True)
class Callback:
    """A call that this canister made and waits for."""

    call_context: int
    reply_method: str
    context: bytes


@dataclass(frozen=True, slots=True)
class StopWaiter:
    """Somebody waits until the canister has stopped."""

    origin: Origin
    since_ns: int


@dataclass(frozen=True, slots=True)
class CanisterSnapshot:
    """A canister as it was: its code here, its rows in tables named by `number`."""

    number: int
    taken_ns: int
    bundle: bytes
    certified_data: bytes
    timer_ns: int

    def id_of(self, canister: CanisterId) -> bytes:
        return self.number.to_bytes(8, "big") + bytes(canister)


@dataclass(frozen=True, slots=True)
class Canister:
    id: CanisterId
    controllers: tuple[Principal, ...]
    status: str = RUNNING
    bundle: bytes = b""
    """The installed zip; empty: no code."""
    certified_data: bytes = b""
    version: int = 0
    timer_ns: int = 0
    inbox: tuple[Message, ...] = ()
    contexts: dict[int, CallContext] = None  # type: ignore[assignment]
    callbacks: dict[int, Callback] = None  # type: ignore[assignment]
    next_id: int = 1
    """Numbers call contexts and callbacks."""
    stop_waiters: tuple[StopWaiter, ...] = ()
    generations: dict[str, int] = None  # type: ignore[assignment]
    """Generation of each table whose declaration or content was replaced; absent: 0."""
    snapshots: tuple[CanisterSnapshot, ...] = ()
    next_snapshot: int = 1

    def __post_init__(self) -> None:
        if self.generations is None:
            object.__setattr__(self, "generations", {})
        if self.contexts is None:
            object.__setattr__(self, "contexts", {})
        if self.callbacks is None:
            object.__setattr__(self, "callbacks", {})


_FIELDS = tuple([f.name for f in fields(Canister)])
_values = attrgetter(*_FIELDS)


def changed_canister(canister: Canister, changes: dict[str, object]) -> Canister:
    """Return what `dataclasses.replace` does, which asks about every field each time."""
    values: dict[str, Any] = dict(zip(_FIELDS, _values(canister)))
    values.update(changes)
    return Canister(**values)


INBOX_MAX = 500

RECEIVED, PROCESSING, REPLIED, REJECTED = "received", "processing", "replied", "rejected"


@dataclass(frozen=True, slots=True)
class IngressStatus:
    """What became of a user's request; kept until its expiry has passed."""

    expiry_ns: int
    sender: Principal
    receiver: CanisterId
    status: str
    reply: bytes = b""
    reject_code: int = 0
    reject_message: str = ""
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class KeyCall:
    """Somebody waits until the subnet has dealt keys for others' nodes."""

    request: KeyRequest
    origin: Origin


@dataclass(frozen=True, slots=True)
class System:
    """The state's own record: everything that is no canister and no row. Holds no height."""

    time_ns: int
    epoch: int
    digest: bytes
    """Chain over all changes since genesis: two states are equal iff this is."""
    next_canister: int
    """Where the scheduler goes on in the order of canister ids."""
    subnet: Principal
    key_calls: tuple[KeyCall, ...] = ()
    next_key_request: int = 1
