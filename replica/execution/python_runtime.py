"""Runs Python bundles: private loading per hash, metering, one message at a time.

Code is loaded from the bundle in the state, never from what happens to be importable. Every
function entry and loop turn costs a step (counted by calls that loading weaves into the code); a
message that exceeds its budget traps at the same step on every node.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from replica.abi import bundle as bundles
from replica.abi import v1
from replica.abi.tables import RowAccess, TableHandle
from replica.protocol import candid
from replica.protocol.errors import Rejected
from replica.protocol.ids import CanisterId, Principal
from replica.state.placement import Placed, tables_of
from replica.state.records import Canister
from replica.state.rows import Layer

STEPS_MAX = 5_000_000
"""Steps of one message; an install may take ten times as many."""
DEPTH_MAX = 120
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


class BudgetExhausted(BaseException):
    """Out of steps or too deep; not an Exception, so canister code can't catch it."""


class Meter:
    def __init__(self, steps_max: int) -> None:
        self.left = steps_max
        self.depth = 0

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise BudgetExhausted("the message exhausted its step budget")

    def enter(self) -> None:
        self.spend()
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise BudgetExhausted(f"calls nested deeper than {DEPTH_MAX}")

    def leave(self) -> None:
        self.depth -= 1


class _MeterSlot:
    """Where woven code finds the meter of the message that runs."""

    meter = Meter(0)


_BOUNDED: dict[type, str] = {
    ast.Pow: "_bounded_pow",
    ast.LShift: "_bounded_shift",
    ast.Mult: "_bounded_mul",
}


class _Weaver(ast.NodeTransformer):
    """Adds a step to every function entry and loop turn."""

    def _call(self, name: str, node: ast.AST) -> ast.stmt:
        made = ast.Expr(ast.Call(ast.Name(name, ast.Load()), [], []))
        return ast.fix_missing_locations(ast.copy_location(made, node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if _yields(node):
            marker = ast.Name("_metered_generator", ast.Load())
            node.decorator_list.append(ast.fix_missing_locations(ast.copy_location(marker, node)))
            return node
        guarded = ast.Try(node.body, [], [], [self._call("_meter_leave", node)])
        node.body = [
            self._call("_meter_enter", node),
            ast.fix_missing_locations(ast.copy_location(guarded, node)),
        ]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.generic_visit(node)
        nothing = ast.arguments([], [], None, [], [], None, [])
        body = ast.Lambda(nothing, node.body)
        node.body = ast.Call(ast.Name("_metered_run", ast.Load()), [body], [])
        return ast.fix_missing_locations(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """What a builtin consumes in one go is counted before or while it does."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in _GREEDY and node.args:
            first = node.args[0]
            compares = node.func.id in ("max", "min") and len(node.args) > 1
            if not compares and not isinstance(first, ast.Starred):
                made = ast.Call(ast.Name("_metered", ast.Load()), [first], [])
                node.args[0] = ast.fix_missing_locations(ast.copy_location(made, first))
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, self._call("_meter_spend", node))
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, self._call("_meter_spend", node))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        tick = ast.Call(ast.Name("_meter_tick", ast.Load()), [], [])
        node.ifs.insert(0, ast.fix_missing_locations(ast.copy_location(tick, node.target)))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Powers, shifts and repetitions can make huge values out of small ones: bound them."""
        self.generic_visit(node)
        function = _BOUNDED.get(type(node.op))
        if function is None:
            return node
        made = ast.Call(ast.Name(function, ast.Load()), [node.left, node.right], [])
        return ast.fix_missing_locations(ast.copy_location(made, node))

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """The same for `x *= y`; the rules of bundles allow it on plain names only."""
        self.generic_visit(node)
        function = _BOUNDED.get(type(node.op))
        if function is None or not isinstance(node.target, ast.Name):
            return node
        value = ast.Name(node.target.id, ast.Load())
        call = ast.Call(ast.Name(function, ast.Load()), [value, node.value], [])
        made = ast.Assign([node.target], call)
        return ast.fix_missing_locations(ast.copy_location(made, node))


def _yields(function: ast.FunctionDef) -> bool:
    """Whether a function is a generator itself, not only one inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


_GREEDY = frozenset("all any bytearray bytes dict list max min sorted sum tuple".split())
"""Builtins that consume their argument whole."""

BITS_MAX = 1 << 20
ITEMS_MAX = 1 << 20


def _bounded_pow(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, int) and exponent < 0:
        raise ValueError("a negative power would be a float")
    if isinstance(base, int) and isinstance(exponent, int):
        if base.bit_length() * exponent > BITS_MAX:
            raise BudgetExhausted("a number grew beyond a million bits")
    return base**exponent


def _bounded_shift(value: Any, count: Any) -> Any:
    if isinstance(value, int) and isinstance(count, int):
        if value.bit_length() + count > BITS_MAX:
            raise BudgetExhausted("a number grew beyond a million bits")
    return value << count


def _bounded_mul(left: Any, right: Any) -> Any:
    for items, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(items, str | bytes | list | tuple | bytearray):
            if len(items) * count > ITEMS_MAX:
                raise BudgetExhausted("a value grew beyond a million items")
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > BITS_MAX:
            raise BudgetExhausted("a number grew beyond a million bits")
    return left * right


class Program:
    """The loaded code of one bundle: its entry points by kind and name."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        self._modules: dict[str, dict[str, Any]] = {}
        self.slot = _MeterSlot()
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
        tree = _Weaver().visit(bundles.check(path, source))
        namespace: dict[str, Any] = {
            "__name__": f"canister.{name}".rstrip("."),
            "__builtins__": self._builtins(name),
            "_meter_spend": lambda: self.slot.meter.spend(),
            "_meter_enter": lambda: self.slot.meter.enter(),
            "_meter_leave": lambda: self.slot.meter.leave(),
            "_meter_tick": self._tick,
            "_metered": self._metered,
            "_metered_run": self._metered_run,
            "_metered_generator": self._metered_generator,
            "_bounded_pow": _bounded_pow,
            "_bounded_shift": _bounded_shift,
            "_bounded_mul": _bounded_mul,
        }
        self._modules[name] = namespace
        self.slot.meter = Meter(STEPS_MAX)
        exec(compile(tree, path, "exec"), namespace)
        return namespace

    def _tick(self) -> bool:
        self.slot.meter.spend()
        return True

    def _metered(self, value: Any) -> Any:
        """Count what a builtin is about to consume: by length, or item by item."""
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            if value > ITEMS_MAX:
                raise BudgetExhausted("a value grew beyond a million items")
            return value
        if isinstance(value, str | bytes | bytearray | list | tuple | dict):
            self.slot.meter.spend(len(value) // 16)
            return value
        return self._counted(value) if hasattr(value, "__iter__") else value

    def _counted(self, items: Any) -> Any:
        for item in items:
            self.slot.meter.spend()
            yield item

    def _metered_run(self, body: Callable[[], Any]) -> Any:
        self.slot.meter.enter()
        try:
            return body()
        finally:
            self.slot.meter.leave()

    def _metered_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def start(*arguments: Any, **named: Any) -> _MeteredGenerator:
            return _MeteredGenerator(function(*arguments, **named), self.slot)

        return start

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


class _MeteredGenerator:
    """A generator of canister code: each of its turns is a step and counts as a nested call."""

    def __init__(self, inner: Any, slot: _MeterSlot) -> None:
        self._inner, self._slot = inner, slot

    def __iter__(self) -> _MeteredGenerator:
        return self

    def __next__(self) -> Any:
        meter = self._slot.meter
        meter.enter()
        try:
            return next(self._inner)
        finally:
            meter.leave()


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
        found = _programs[read.module_hash] = Program(read)
    return found


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

    def table(self, name: str) -> TableHandle:
        for placed in tables_of(self._canister):
            if placed.table.name == name:
                return handle(placed, self._layer, self._meter, read_only=self._read_only)
        raise Trap(f"the bundle declares no table {name}")

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

    guard(loaded, context._meter, result, action)
    return result


def guard(loaded: Program, meter: Meter, result: Result, action: Callable[[], None]) -> None:
    """Run canister code metered; what goes wrong is noted in the result."""
    loaded.slot.meter = meter
    before = meter.left
    try:
        action()
    except v1.Refuse as refusal:
        result.rejected = str(refusal)
    except (BudgetExhausted, Rejected) as error:
        result.trap = f"{type(error).__name__}: {error}"
    except (MemoryError, RecursionError):
        raise  # the node's own limits: crash rather than decide differently from the others
    except Exception as error:
        result.trap = f"{type(error).__name__}: {error}"
    result.steps += before - max(meter.left, 0)


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
