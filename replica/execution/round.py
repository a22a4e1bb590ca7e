"""One round: a batch goes in, the next snapshot comes out.

Requests enter mailboxes, timers ring, a deterministic scheduler lets canisters take turns until the
round's budget is spent. Everything here is a function of (snapshot, rows, batch, policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from replica.abi import v1
from replica.consensus.delivery import Batch
from replica.execution import python_runtime as python
from replica.execution.errors import Refused
from replica.execution.ingress import decode_cached
from replica.execution.management import INTERFACE, Management, Policy
from replica.execution.metering import Meter
from replica.protocol import candid, cup, envelope
from replica.protocol.crypto.dkg import HIGH, LOW, KeyRequest, KeyResult
from replica.protocol.errors import MachineFault, Rejected, Unavailable
from replica.protocol.ids import MANAGEMENT_CANISTER, CanisterId, Principal, SubnetId
from replica.protocol.messages import serialize
from replica.state.records import (
    INBOX_MAX,
    PROCESSING,
    RECEIVED,
    REJECTED,
    REPLIED,
    RUNNING,
    STOPPED,
    STOPPING,
    Callback,
    CallContext,
    FromCanister,
    FromTimer,
    FromUser,
    IngressStatus,
    Message,
    Origin,
    Request,
    Response,
)
from replica.state.rows import Layer, RowStore
from replica.state.state import BlockState, Snapshot

ROUND_STEPS_MAX = 20_000_000
STOP_TIMEOUT_NS = 300 * 10**9
PRUNE_EVERY_NS = 10 * 10**9
MESSAGE_BASE_STEPS = 2_000
"""Charged for every message besides its own steps, so that a round also bounds their number."""


@dataclass
class RoundResult:
    snapshot: Snapshot
    rows: Layer
    touched_requests: Sequence[bytes] = ()
    """Ids of the requests whose status changed."""
    reshaped: bool = False
    """Whether tables may have come or gone."""
    moved_rows: int = 0
    """Rows that upgrades moved."""
    executed: list[tuple[CanisterId, str]] = field(default_factory=list)
    """Canister and method, in order of execution."""
    logs: list[tuple[CanisterId, str]] = field(default_factory=list)


class Round:
    def __init__(
        self,
        before: Snapshot,
        below: RowStore,
        batch: Batch,
        policy: Policy,
        steps_max: int = ROUND_STEPS_MAX,
    ) -> None:
        self.state = BlockState.begin(before, below, batch.time_ns, batch.epoch)
        self.batch, self.policy = batch, policy
        self.left = steps_max
        self.reshaped, self.moved_rows = False, 0
        self.executed: list[tuple[CanisterId, str]] = []
        self.logs: list[tuple[CanisterId, str]] = []

    def run(self) -> RoundResult:
        self._prune_ingress()
        self._expire_stops()
        self._hand_out_keys()
        for raw in self.batch.ingress:
            self._induct(raw)
        self._ring_timers()
        self._schedule()
        snapshot = self.state.finish(self.batch.height)
        return self._result(snapshot)

    def _result(self, snapshot: Snapshot) -> RoundResult:
        return RoundResult(
            snapshot,
            self.state.rows,
            tuple(self.state.touched_ingress),
            self.reshaped,
            self.moved_rows,
            self.executed,
            self.logs,
        )

    # -- entering

    def _prune_ingress(self) -> None:
        """Forget requests that have expired; looked for now and then by the subnet's time."""
        before = self.state.before.system.time_ns
        if self.state.time_ns // PRUNE_EVERY_NS == before // PRUNE_EVERY_NS:
            return
        for id_, status in list(self.state.ingress.items()):
            if status.expiry_ns < self.state.time_ns and status.status in (REPLIED, REJECTED):
                self.state.set_ingress(id_, None)

    def _expire_stops(self) -> None:
        """Tell those who waited too long for a canister to stop; it goes on stopping."""
        for id_ in sorted(self.state.canisters):
            canister = self.state.canisters[id_]
            late = [
                w
                for w in canister.stop_waiters
                if w.since_ns + STOP_TIMEOUT_NS <= self.state.time_ns
            ]
            if not late:
                continue
            kept = tuple([w for w in canister.stop_waiters if w not in late])
            self.state.change(id_, stop_waiters=kept)
            for waiter in late:
                text = f"{id_} did not stop within {STOP_TIMEOUT_NS // 10**9} s: calls are open"
                self._reject(waiter.origin, "IC0519", text)

    def _hand_out_keys(self) -> None:
        """Answer those for whose nodes keys were dealt, or could not be."""
        for result in self.batch.keys:
            for call in [c for c in self.state.key_calls if c.request.number == result.number]:
                kept = tuple([c for c in self.state.key_calls if c is not call])
                self.state.key_calls = kept
                if result.low is None or result.high is None:
                    text = "too few nodes dealt: no keys were made; try again"
                    self._reject(call.origin, "IC0504", text)
                    continue
                self._respond(call.origin, self._keys_plain(call.request, result))

    def _keys_plain(self, request: KeyRequest, result: KeyResult) -> bytes:
        subnet, height = SubnetId(self.state.before.system.subnet), self.batch.height
        fields: dict[str, Any] = {}
        for name, transcript, tag in (("low", result.low, LOW), ("high", result.high, HIGH)):
            assert transcript is not None, "checked by the caller"
            record = cup.transcript_to_record(
                transcript, subnet, height, tag, request.registry_version
            )
            fields[f"{name}_threshold_transcript_record"] = serialize(record)
            fields["subnet_threshold_public_key"] = transcript.public_key
        results = INTERFACE.methods["setup_initial_dkg"].results
        return candid.encode(results, [fields], INTERFACE)

    def _induct(self, raw: bytes) -> None:
        try:
            request = decode_cached(raw, self.batch.time_ns)
        except Rejected:
            return  # judged by n - f nodes at another time: expired meanwhile
        if request.kind != "call" or request.request_id in self.state.ingress:
            return
        self.state.set_ingress(
            request.request_id,
            IngressStatus(request.ingress_expiry_ns, request.sender, request.canister_id, RECEIVED),
        )
        origin = FromUser(request.request_id)
        message = Request(request.sender, origin, request.method, request.arg)
        self._send(request.canister_id, message)

    def _ring_timers(self) -> None:
        for id_ in sorted(self.state.canisters):
            canister = self.state.canisters[id_]
            if 0 < canister.timer_ns <= self.state.time_ns and canister.status == RUNNING:
                self.state.change(id_, timer_ns=0)
                self._send(id_, Request(MANAGEMENT_CANISTER, FromTimer(), "", b""))

    def _send(self, target: CanisterId, message: Request) -> None:
        """Put a request into a mailbox, or answer it at once when it can't be."""
        if target == MANAGEMENT_CANISTER:
            self._manage(message)
            return
        canister = self.state.canisters.get(target)
        if canister is None:
            self._reject(message.origin, "IC0301", f"there is no canister {target}")
        elif canister.status != RUNNING:
            code = "IC0508" if canister.status == STOPPED else "IC0509"
            self._reject(message.origin, code, f"{target} is {canister.status}")
        elif not canister.bundle:
            self._reject(message.origin, "IC0537", f"{target} has no code")
        elif len(self.state.inbox(target)) >= INBOX_MAX:
            self._reject(message.origin, "IC0201", f"the mailbox of {target} is full")
        else:
            self.state.inbox(target).append(message)

    def _manage(self, message: Request) -> None:
        self.state.put_inboxes_back()
        layer = Layer(self.state.rows)
        saved, touched = dict(self.state.canisters), dict(self.state.touched)
        management = Management(self.state, self.policy, layer, message.sender)
        try:
            reply = management.execute(message.method, message.arg, message.origin)
        except Refused as refusal:
            self.state.canisters, self.state.touched = saved, touched
            self.state.take_out_inboxes()
            self.left -= MESSAGE_BASE_STEPS + management.effort.steps
            self._reject(message.origin, refusal.error_code, str(refusal))
            return
        self.state.take_out_inboxes()
        layer.merge_into(self.state.rows)
        self.reshaped = True
        self.left -= MESSAGE_BASE_STEPS + management.effort.steps
        self.moved_rows += management.effort.moved
        for origin, code, text in management.rejections:
            self._reject(origin, code, text)
        self.executed.append((MANAGEMENT_CANISTER, message.method))
        if reply is not None:
            self._respond(message.origin, reply)
        elif isinstance(message.origin, FromUser):
            self._mark_processing(message.origin)

    # -- scheduling

    def _schedule(self) -> None:
        """Let canisters with messages take turns, going on where the last round stopped."""
        self.state.take_out_inboxes()
        while self.left > 0:
            waiting = self.state.waiting()
            if not waiting:
                return
            following = [
                i for i in waiting if int.from_bytes(i[:8], "big") >= self.state.next_canister
            ]
            chosen = (following or waiting)[0]
            self.state.next_canister = int.from_bytes(chosen[:8], "big") + 1
            self._run_one(chosen)

    def _run_one(self, id_: CanisterId) -> None:
        message = self.state.inbox(id_).popleft()
        if isinstance(message, Request):
            self._run_request(id_, message)
        else:
            self._run_response(id_, message)
        self._settle_stopping(id_)

    def _context(
        self, id_: CanisterId, caller: Principal, *, read_only: bool
    ) -> tuple[python.Program, python.InvocationContext]:
        canister = self.state.canisters[id_]
        loaded = python.program(canister.bundle)
        context = python.InvocationContext(
            loaded,
            canister,
            caller,
            self.state.time_ns,
            Layer(self.state.rows),
            Meter(python.STEPS_MAX),
            read_only=read_only,
        )
        return loaded, context

    def _run_request(self, id_: CanisterId, message: Request) -> None:
        canister = self.state.canisters[id_]
        loaded = python.program(canister.bundle)
        is_timer = isinstance(message.origin, FromTimer)
        arguments: list[Any] = []
        if is_timer:
            kind = "timer"
            if ("timer", "") not in loaded.entries:
                return
        else:
            found = python.entry_of(loaded, message.method, query_only=False)
            if found is None:
                text = f"{id_} has no method {message.method[:60]}"
                self._reject(message.origin, "IC0536", text)
                return
            kind = found
            try:
                arguments = python.decode_arguments(loaded, kind, message.method, message.arg)
            except Rejected as error:
                self._reject(message.origin, "IC0503", f"{message.method}: {error}")
                return
        method = python.method_of(loaded, message.method)
        loaded, context = self._context(id_, message.sender, read_only="query" in kind)
        result = python.run(context, loaded, kind, message.method, tuple(arguments), method)
        self._account(id_, message.method or "timer", result)
        if result.trap or result.rejected is not None:
            self._fail(message.origin, result)
            return
        if result.later and not result.calls:
            self._reject(message.origin, "IC0506", f"{id_} did not reply")
            return
        self._commit(id_, context)
        number = 0
        if result.later:
            number = self._open_context(id_, message, len(result.calls))
            if isinstance(message.origin, FromUser):
                self._mark_processing(message.origin)
        elif result.reply is not None:
            self._respond(message.origin, result.reply)
        self._call_out(id_, number, result.calls)

    def _run_response(self, id_: CanisterId, message: Response) -> None:
        canister = self.state.canisters[id_]
        callback = canister.callbacks.get(message.callback)
        if callback is None or not canister.bundle:
            return
        callbacks = {n: c for n, c in canister.callbacks.items() if n != message.callback}
        self.state.change(id_, callbacks=callbacks)
        opened = canister.contexts.get(callback.call_context)
        caller = opened.caller if opened else id_
        loaded, context = self._context(id_, caller, read_only=False)
        method = python.method_of(loaded, opened.method) if opened else None
        outcome = v1.Outcome(message.reply, message.reject_code, message.reject_message)
        if ("reply", callback.reply_method) not in loaded.entries:
            result = python.Result(trap=f"the bundle has no reply method {callback.reply_method}")
        else:
            arguments = (outcome, callback.context)
            result = python.run(context, loaded, "reply", callback.reply_method, arguments, method)
        self._account(id_, callback.reply_method, result)
        failed = bool(result.trap) or result.rejected is not None
        calls = [] if failed else result.calls
        if not failed:
            self._commit(id_, context)
        if opened is not None:
            self._after_response(id_, callback.call_context, opened, result, len(calls))
        self._call_out(id_, callback.call_context, calls)

    def _after_response(
        self, id_: CanisterId, number: int, opened: CallContext, result: python.Result, new: int
    ) -> None:
        outstanding = opened.outstanding - 1 + new
        waits = result.later or ((result.trap or result.rejected) and outstanding > 0)
        contexts = dict(self.state.canisters[id_].contexts)
        if waits and outstanding > 0:
            contexts[number] = replace(opened, outstanding=outstanding)
            self.state.change(id_, contexts=contexts)
            return
        contexts.pop(number)
        self.state.change(id_, contexts=contexts)
        if result.trap or result.rejected is not None:
            self._fail(opened.origin, result)
        elif result.reply is not None:
            self._respond(opened.origin, result.reply)
        else:
            self._reject(opened.origin, "IC0506", f"{id_} did not reply")

    def _account(self, id_: CanisterId, method: str, result: python.Result) -> None:
        self.left -= MESSAGE_BASE_STEPS + result.steps
        self.executed.append((id_, method))
        self.logs += [(id_, line) for line in result.logs]
        if result.trap:
            self.logs.append((id_, f"{method} trapped: {result.trap}"))

    def _commit(self, id_: CanisterId, context: python.InvocationContext) -> None:
        context._layer.merge_into(self.state.rows)
        result, canister = context.result, self.state.canisters[id_]
        self.state.change(
            id_,
            version=canister.version + 1,
            certified_data=canister.certified_data
            if result.certified_data is None
            else result.certified_data,
            timer_ns=canister.timer_ns if result.timer_ns is None else result.timer_ns,
        )

    def _open_context(self, id_: CanisterId, message: Request, outstanding: int) -> int:
        canister = self.state.canisters[id_]
        number = canister.next_id
        opened = CallContext(message.origin, message.sender, message.method, outstanding)
        self.state.change(id_, contexts={**canister.contexts, number: opened}, next_id=number + 1)
        return number

    def _call_out(self, id_: CanisterId, number: int, calls: list[python.CallOut]) -> None:
        for call in calls:
            canister = self.state.canisters[id_]
            callback = Callback(number, call.reply_method, call.context)
            self.state.change(
                id_,
                callbacks={**canister.callbacks, canister.next_id: callback},
                next_id=canister.next_id + 1,
            )
            origin = FromCanister(id_, canister.next_id)
            self._send(call.target, Request(id_, origin, call.method, call.arg))

    def _settle_stopping(self, id_: CanisterId) -> None:
        canister = self.state.canisters.get(id_)
        if canister is None or canister.status != STOPPING or canister.contexts:
            return
        self.state.change(id_, status=STOPPED, stop_waiters=())
        for waiter in canister.stop_waiters:
            self._respond(waiter.origin, candid.encode([], []))

    # -- answering

    def _fail(self, origin: Origin, result: python.Result) -> None:
        if result.trap:
            self._reject(origin, "IC0502", result.trap)
        else:
            self._reject(origin, "IC0406", result.rejected or "")

    def _respond(self, origin: Origin, reply: bytes) -> None:
        if isinstance(origin, FromUser):
            self._finish_ingress(origin, status=REPLIED, reply=reply)
        elif isinstance(origin, FromCanister):
            self._answer(origin, Response(origin.callback, reply, 0, ""))

    def _reject(self, origin: Origin, error_code: str, text: str) -> None:
        code = int(error_code[3])
        if isinstance(origin, FromUser):
            self._finish_ingress(
                origin,
                status=REJECTED,
                reject_code=code,
                reject_message=text,
                error_code=error_code,
            )
        elif isinstance(origin, FromCanister):
            self._answer(origin, Response(origin.callback, None, code, text))

    def _answer(self, origin: FromCanister, response: Message) -> None:
        if origin.canister in self.state.canisters:
            self.state.inbox(origin.canister).append(response)

    def _mark_processing(self, origin: FromUser) -> None:
        status = self.state.ingress[origin.request_id]
        self.state.set_ingress(origin.request_id, replace(status, status=PROCESSING))

    def _finish_ingress(self, origin: FromUser, **fields: Any) -> None:
        status = self.state.ingress.get(origin.request_id)
        if status is not None:
            self.state.set_ingress(origin.request_id, replace(status, **fields))


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    reply: bytes | None
    reject_code: int = 0
    reject_message: str = ""
    error_code: str = ""


def query(
    snapshot: Snapshot, rows: RowStore, request: envelope.Request, certificate: bytes | None
) -> QueryAnswer:
    """Answer a query from one snapshot and the rows of the same height.

    Raises: Unavailable when this node can't read or compute it; nothing else is wrong then.
    """
    try:
        return _query(snapshot, rows, request, certificate)
    except MachineFault as fault:
        raise Unavailable(f"this node can't answer, ask another one: {fault}") from fault


def _query(
    snapshot: Snapshot, rows: RowStore, request: envelope.Request, certificate: bytes | None
) -> QueryAnswer:
    canister = snapshot.canisters.get(request.canister_id)
    if canister is None:
        return QueryAnswer(None, 3, f"there is no canister {request.canister_id}", "IC0301")
    if canister.status != RUNNING or not canister.bundle:
        return QueryAnswer(None, 5, f"{canister.id} is stopped or has no code", "IC0508")
    loaded = python.program(canister.bundle)
    kind = python.entry_of(loaded, request.method, query_only=True)
    if kind is None:
        return QueryAnswer(None, 5, f"no query method {request.method[:60]}", "IC0536")
    context = python.InvocationContext(
        loaded,
        canister,
        request.sender,
        snapshot.system.time_ns,
        Layer(rows),
        Meter(python.STEPS_MAX),
        read_only=True,
        certificate=certificate,
    )
    try:
        arguments = python.decode_arguments(loaded, kind, request.method, request.arg)
    except Rejected as error:
        return QueryAnswer(None, 5, f"{request.method}: {error}", "IC0503")
    method = python.method_of(loaded, request.method)
    result = python.run(context, loaded, kind, request.method, tuple(arguments), method)
    if result.trap:
        return QueryAnswer(None, 5, result.trap, "IC0502")
    if result.rejected is not None or result.reply is None:
        return QueryAnswer(None, 4, result.rejected or "did not reply", "IC0406")
    return QueryAnswer(result.reply)
