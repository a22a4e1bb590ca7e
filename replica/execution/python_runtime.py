"""Runs Python bundles: private loading per hash, metering, one message at a time.

Code is loaded from the bundle in the state, never from what happens to be importable. A message
that exceeds its budget of steps traps at the same step on every node.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replica.abi import bundle as bundles
from replica.abi import v1
from replica.abi.tables import RowAccess, TableHandle
from replica.execution.metering import BudgetExhausted, Host, Meter, Weaver
from replica.protocol import candid
from replica.protocol.errors import MachineFault, Rejected
from replica.protocol.ids import CanisterId, Principal
from replica.state.access import Latch
from replica.state.placement import Placed, tables_of
from replica.state.records import Canister
from replica.state.rows import Layer

STEPS_MAX = 5_000_000
"""Steps of one message; an install may take ten times as many."""
LOG_BYTES_MAX = 4096
CERTIFIED_DATA_BYTES_MAX = 32

NAMED_KINDS = ("update", "query", "raw_query", "reply", "migrate")

_SAFE_BUILTINS = (
    "abs all any bool bytes bytearray callable chr dict divmod enumerate filter "
    "hasattr int isinstance issubclass iter len list map max min next ord pow range "
    "repr reversed round slice sorted str sum tuple zip None True False "
    "ArithmeticError AssertionError Exception IndexError KeyError LookupError "
    "OverflowError StopIteration TypeError ValueError ZeroDivisionError "
    "UnicodeDecodeError NotImplemented staticmethod property __build_class__"
).split()


class Trap(Rejected):
    """The canister's code failed; all that the message did is dropped."""

    code = "trap"


class Program:
    """The loaded code of one bundle: its entry points by kind and name."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        self._modules: dict[str, dict[str, Any]] = {}
        self.host = Host()
        namespace = self._load("")
        for name in sorted(bundle.modules):
            self._load(name)
        self.entries: dict[tuple[str, str], Callable[..., Any]] = {}
        for module in [namespace, *self._modules.values()]:
            for name, value in module.items():
                kind = getattr(value, "canister_entry", None)
                if isinstance(kind, str) and callable(value):
                    key = (kind, name if kind in NAMED_KINDS else "")
                    self.entries[key] = value

    def _load(self, name: str) -> dict[str, Any]:
        found = self._modules.get(name)
        if found is not None:
            return found
        source = self.bundle.modules.get(name)
        if source is None:
            raise Trap(f"the bundle has no module {name}")
        path = (name.replace(".", "/") or "__init__") + ".py"
        tree = Weaver().visit(bundles.check(path, source))
        namespace: dict[str, Any] = {
            "__name__": f"canister.{name}".rstrip("."),
            "__builtins__": self._builtins(name),
            **self.host.names(),
        }
        self._modules[name] = namespace
        self.host.meter = Meter(STEPS_MAX)
        exec(compile(tree, path, "exec"), namespace)
        if self.host.meter.uncatchable is not None:
            raise self.host.meter.uncatchable
        return namespace

    def _builtins(self, module: str) -> dict[str, Any]:
        safe = {n: getattr(builtins, n) for n in _SAFE_BUILTINS}
        safe["__import__"] = lambda *a, **k: self._import(module, *a, **k)
        return safe

    def _import(
        self,
        module: str,
        name: str,
        _globals: Any = None,
        _locals: Any = None,
        names: tuple[str, ...] | None = None,
        level: int = 0,
    ) -> Any:
        """Serve `from .x import y`, `from . import x`, and the ABI; nothing else exists."""
        if level == 0:
            if name == "__future__":
                return __import__(name)
            if name != bundles.ABI:
                raise Trap(f"import of {name}")
            return v1
        parts = module.split(".") if module else []
        base = parts[: max(0, len(parts) - level)]
        target = ".".join([*base, *(name.split(".") if name else [])])
        return _Namespace(self, target, names or ())


class _Namespace:
    """A module of the bundle as the import statement wants it."""

    def __init__(self, program: Program, target: str, names: tuple[str, ...]) -> None:
        source = program._load(target)
        for name in names:
            inner = f"{target}.{name}".lstrip(".")
            if name in source:
                setattr(self, name, source[name])
            else:
                namespace = program._load(inner)
                module = _Frozen()
                module.__dict__.update(namespace)
                setattr(self, name, module)


class _Frozen:
    """A module as a value."""


_programs: dict[bytes, Program] = {}


def program(bundle_bytes: bytes) -> Program:
    """Return the loaded code of a bundle; cached by its hash."""
    read = bundles.read(bundle_bytes)
    found = _programs.get(read.module_hash)
    if found is None:
        found = _programs[read.module_hash] = _load(read)
    return found


def _load(bundle: bundles.Bundle) -> Program:
    """Run a bundle's modules once. Raises: Rejected when they fail."""
    try:
        return Program(bundle)
    except (BudgetExhausted, Rejected) as error:
        raise Trap(f"loading it: {type(error).__name__}: {error}") from error
    except (MemoryError, RecursionError) as error:
        raise MachineFault(f"loading a bundle: {type(error).__name__}") from error
    except Exception as error:
        raise Trap(f"loading it: {type(error).__name__}: {error}") from error


@dataclass
class CallOut:
    target: CanisterId
    method: str
    arg: bytes
    reply_method: str
    context: bytes


@dataclass
class Result:
    """What one message did, to be applied by the scheduler when `trap` is None."""

    reply: bytes | None = None
    """Candid of the answer; None: answered later (or rejected, or trapped)."""
    later: bool = False
    rejected: str | None = None
    trap: str | None = None
    calls: list[CallOut] = field(default_factory=list)
    certified_data: bytes | None = None
    timer_ns: int | None = None
    logs: list[str] = field(default_factory=list)
    steps: int = 0


def handle(placed: Placed, layer: RowAccess, meter: Meter, *, read_only: bool) -> TableHandle:
    """Return metered access to one table."""
    return TableHandle(
        placed.table, layer, spend=meter.spend, read_only=read_only, name=placed.name
    )


class InvocationContext:
    """The `Context` of the ABI for one message."""

    def __init__(
        self,
        loaded: Program,
        canister: Canister,
        caller: Principal,
        time_ns: int,
        layer: Layer,
        meter: Meter,
        *,
        read_only: bool,
        certificate: bytes | None = None,
    ) -> None:
        self.caller, self.self_id, self.time_ns = caller, canister.id, time_ns
        self._program, self._canister = loaded, canister
        self._layer, self._meter, self._read_only = layer, meter, read_only
        self._certificate = certificate
        self.result = Result()
        self._tables: dict[str, Placed] | None = None

    def table(self, name: str) -> TableHandle:
        if self._tables is None:
            self._tables = {p.table.name: p for p in tables_of(self._canister)}
        placed = self._tables.get(name)
        if placed is None:
            raise Trap(f"the bundle declares no table {name}")
        return handle(placed, self._layer, self._meter, read_only=self._read_only)

    def call(
        self,
        target: Principal,
        method: str,
        arg: bytes,
        *,
        on_reply: str,
        context: bytes = b"",
    ) -> None:
        if self._read_only:
            raise Trap("a query can't call other canisters")
        if ("reply", on_reply) not in self._program.entries:
            raise Trap(f"the bundle has no reply method {on_reply}")
        self._meter.spend(50 + len(arg) // 64)
        self.result.calls.append(CallOut(CanisterId(target), method, arg, on_reply, context))

    def set_certified_data(self, data: bytes) -> None:
        if self._read_only or len(data) > CERTIFIED_DATA_BYTES_MAX:
            raise Trap("certified data: at most 32 bytes, and not in a query")
        self.result.certified_data = bytes(data)

    def set_timer(self, at_ns: int) -> None:
        if self._read_only:
            raise Trap("a query can't set a timer")
        self.result.timer_ns = at_ns

    def certificate(self) -> bytes | None:
        return self._certificate

    def is_controller(self, principal: Principal) -> bool:
        return principal in self._canister.controllers

    def log(self, text: str) -> None:
        self.result.logs.append(text[:LOG_BYTES_MAX])


def run(
    context: InvocationContext,
    loaded: Program,
    kind: str,
    name: str,
    arguments: tuple[Any, ...],
    results: candid.Method | None,
) -> Result:
    """Run one entry point; its writes are in the context's layer, to be merged or dropped."""
    entry, result = loaded.entries[(kind, name)], context.result

    def action() -> None:
        value = entry(context, *arguments)
        if isinstance(value, v1.Later):
            result.later = True
        elif kind == "raw_query":
            result.reply = bytes(value)
        elif results is not None:
            values = () if not results.results else (value,)
            if len(results.results) > 1:
                values = tuple(value)
            result.reply = candid.encode(results.results, values, loaded.bundle.interface)

    guard(loaded, context, action)
    return result


def guard(loaded: Program, context: InvocationContext, action: Callable[[], None]) -> None:
    """Run canister code metered; what goes wrong is noted in the context's result.

    Raises: MachineFault for what is wrong with this node alone, whatever the code made of it.
    """
    meter, result, latch = context._meter, context.result, context._layer.latch
    loaded.host.meter = meter
    before = meter.left
    try:
        action()
    except v1.Refuse as refusal:
        result.rejected = str(refusal)
    except (BudgetExhausted, Rejected) as error:
        result.trap = f"{type(error).__name__}: {error}"
    except (MemoryError, RecursionError) as error:
        raise latch.trip("running a canister", error) from error
    except Exception as error:
        result.trap = f"{type(error).__name__}: {error}"
    latch.check()
    _settle(meter, result, latch)
    result.steps += before - max(meter.left, 0)


def _settle(meter: Meter, result: Result, latch: Latch) -> None:
    """See to what the code swallowed although nothing may catch it."""
    swallowed = meter.uncatchable
    if isinstance(swallowed, BudgetExhausted):
        result.trap = f"{type(swallowed).__name__}: {swallowed}"
    elif swallowed is not None:
        raise latch.trip("running a canister", swallowed) from swallowed


def method_of(loaded: Program, name: str) -> candid.Method | None:
    return loaded.bundle.interface.methods.get(name)


def entry_of(loaded: Program, name: str, *, query_only: bool) -> str | None:
    """Return the kind under which a method can be called; queries can be called as updates."""
    kinds = ("query", "raw_query") if query_only else ("update", "query", "raw_query")
    return next((k for k in kinds if (k, name) in loaded.entries), None)


def decode_arguments(loaded: Program, kind: str, name: str, arg: bytes) -> list[Any]:
    """Raises: Rejected when the argument does not fit the .did."""
    if kind == "raw_query":
        return [arg]
    method = loaded.bundle.interface.methods.get(name)
    if method is None:
        raise Trap(f"the .did declares no method {name}")
    return candid.decode(method.args, arg, loaded.bundle.interface)
