"""The replicated state at one height, and the changes that a block makes to it.

`Snapshot` is immutable and cheap to keep per height: canisters are immutable records, rows are
layers over the database.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from functools import lru_cache

from replica.protocol import canonical, cbor
from replica.protocol.hashing import domain_hash, sha256
from replica.protocol.ids import CanisterId, Height, SubnetId
from replica.state.records import (
    Canister,
    IngressStatus,
    KeyCall,
    Message,
    System,
    changed_canister,
)
from replica.state.rows import Changes, Layer, RowStore


@dataclass(frozen=True)
class Snapshot:
    """All of the state but the rows, after the block of a height."""

    height: Height
    system: System
    canisters: dict[CanisterId, Canister]
    ingress: dict[bytes, IngressStatus]


def genesis(subnet: SubnetId) -> Snapshot:
    system = System(0, 0, bytes(32), 0, subnet)
    return Snapshot(Height(0), system, {}, {})


@dataclass
class BlockState:
    """The state while a block executes: a snapshot being replaced, and the block's rows."""

    before: Snapshot
    rows: Layer
    canisters: dict[CanisterId, Canister] = field(default_factory=dict)
    ingress: dict[bytes, IngressStatus] = field(default_factory=dict)
    time_ns: int = 0
    epoch: int = 0
    next_canister: int = 0
    key_calls: tuple[KeyCall, ...] = ()
    next_key_request: int = 1
    touched: dict[CanisterId, None] = field(default_factory=dict)
    touched_ingress: dict[bytes, None] = field(default_factory=dict)
    _inboxes: dict[CanisterId, deque[Message]] = field(default_factory=dict)
    """Mailboxes being worked on; those of the records are older until `put_inboxes_back`."""

    @classmethod
    def begin(cls, before: Snapshot, below: RowStore, time_ns: int, epoch: int) -> BlockState:
        return cls(
            before,
            Layer(below),
            dict(before.canisters),
            dict(before.ingress),
            time_ns,
            epoch,
            before.system.next_canister,
            before.system.key_calls,
            before.system.next_key_request,
        )

    def set(self, canister: Canister) -> None:
        self.canisters[canister.id] = canister
        self.touched[canister.id] = None

    def change(self, id_: CanisterId, **fields: object) -> Canister:
        changed = changed_canister(self.canisters[id_], fields)
        self.set(changed)
        return changed

    # Mailboxes change with every message: while a block runs they are queues beside the records.

    def inbox(self, id_: CanisterId) -> deque[Message]:
        """Return the messages that wait for a canister, to be changed in place."""
        found = self._inboxes.get(id_)
        if found is None:
            found = self._inboxes[id_] = deque(self.canisters[id_].inbox)
        return found

    def take_out_inboxes(self) -> None:
        for id_, canister in self.canisters.items():
            if canister.inbox:
                self.inbox(id_)

    def waiting(self) -> list[CanisterId]:
        """Return the canisters, in order, in whose mailboxes that were taken out messages wait."""
        return sorted([id_ for id_, inbox in self._inboxes.items() if inbox])

    def put_inboxes_back(self) -> None:
        """Write the mailboxes into the records: others are about to look at these."""
        for id_, inbox in self._inboxes.items():
            messages = tuple(inbox)
            if messages != self.canisters[id_].inbox:
                self.change(id_, inbox=messages)
        self._inboxes.clear()

    def set_ingress(self, request_id: bytes, status: IngressStatus | None) -> None:
        if status is None:
            del self.ingress[request_id]
        else:
            self.ingress[request_id] = status
        self.touched_ingress[request_id] = None

    def finish(self, height: Height) -> Snapshot:
        """Close the block: chain its changes into the digest."""
        self.put_inboxes_back()
        before = self.before.system
        system = replace(
            before,
            time_ns=self.time_ns,
            epoch=self.epoch,
            next_canister=self.next_canister,
            key_calls=self.key_calls,
            next_key_request=self.next_key_request,
            digest=self._digest(before.digest, height),
        )
        return Snapshot(height, system, self.canisters, self.ingress)

    def _digest(self, before: bytes, height: Height) -> bytes:
        canisters = [
            [bytes(i), canonical.encode(_condensed(c)) if (c := self.canisters.get(i)) else None]
            for i in sorted(self.touched)
        ]
        ingress = [
            [i, canonical.encode(s) if (s := self.ingress.get(i)) else None]
            for i in sorted(self.touched_ingress)
        ]
        calls = [canonical.pack(c) for c in self.key_calls]
        head = [height, self.time_ns, self.epoch, self.next_canister, calls, self.next_key_request]
        changed = cbor.dumps([head, canisters, ingress, rows_plain(self.rows.changes)])
        return domain_hash("reprise-state-digest", before, changed)


@lru_cache(maxsize=64)
def _code_hash(bundle: bytes) -> bytes:
    return sha256(bundle) if bundle else b""


def _condensed(canister: Canister) -> Canister:
    """Return a canister with its code replaced by the code's hash."""
    snapshots = tuple([replace(s, bundle=_code_hash(s.bundle)) for s in canister.snapshots])
    return replace(canister, bundle=_code_hash(canister.bundle), snapshots=snapshots)


def rows_plain(changes: Changes) -> list[object]:
    """Return changed rows in a canonical order; index tables are derived and left out."""
    return [[name, sorted(changes[name].items())] for name in sorted(changes) if "#" not in name]
