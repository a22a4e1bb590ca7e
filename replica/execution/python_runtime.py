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
from typing import Any

from replica.abi import bundle as bundles
from replica.abi import v1
from replica.abi.tables import RowAccess, TableHandle
from replica.protocol import candid
from replica.protocol.errors import Rejected
from replica.protocol.ids import CanisterId, Principal
from replica.state.rows import Layer

STEPS_MAX = 5_000_000
"""Steps of one message; an install may take ten times as many."""
DEPTH_MAX = 120
LOG_BYTES_MAX = 4096
CERTIFIED_DATA_BYTES_MAX = 32

NAMED_KINDS = ("update", "query", "raw_query", "reply")

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
        is_generator = any(isinstance(n, ast.Yield | ast.YieldFrom) for n in ast.walk(node))
        if is_generator:
            node.body.insert(0, self._call("_meter_spend", node))
            return node
        guarded = ast.Try(node.body, [], [], [self._call("_meter_leave", node)])
        node.body = [
            self._call("_meter_enter", node),
            ast.fix_missing_locations(ast.copy_location(guarded, node)),
        ]
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


class _Rows:
    """A canister's tables in a layer that all canisters share."""

    def __init__(self, layer: RowAccess, canister: CanisterId) -> None:
        self.layer, self.prefix = layer, canister.hex() + "/"

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.layer.get(self.prefix + table, key)

    def put(self, table: str, key: bytes, row: bytes | None) -> None:
        self.layer.put(self.prefix + table, key, row)

    def scan(self, table: str, low: bytes, high: bytes | None, *, reverse: bool) -> Any:
        return self.layer.scan(self.prefix + table, low, high, reverse=reverse)


class InvocationContext:
    """The `Context` of the ABI for one message."""

    def __init__(
        self,
        loaded: Program,
        canister: CanisterId,
        controllers: tuple[Principal, ...],
        caller: Principal,
        time_ns: int,
        layer: Layer,
        meter: Meter,
        *,
        read_only: bool,
        certificate: bytes | None = None,
    ) -> None:
        self.caller, self.self_id, self.time_ns = caller, canister, time_ns
        self._program, self._controllers = loaded, controllers
        self._layer, self._meter, self._read_only = layer, meter, read_only
        self._certificate = certificate
        self.result = Result()

    def table(self, name: str) -> TableHandle:
        for table in self._program.bundle.tables:
            if table.name == name:
                rows = _Rows(self._layer, CanisterId(self.self_id))
                spend = self._meter.spend
                return TableHandle(table, rows, spend=spend, read_only=self._read_only)
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
        return principal in self._controllers

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
    result, meter = context.result, context._meter
    entry = loaded.entries[(kind, name)]
    loaded.slot.meter = meter
    before = meter.left
    try:
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
    except v1.Refuse as refusal:
        result.rejected = str(refusal)
    except (BudgetExhausted, Rejected) as error:
        result.trap = f"{type(error).__name__}: {error}"
    except (MemoryError, RecursionError):
        raise  # the node's own limits: crash rather than decide differently from the others
    except Exception as error:
        result.trap = f"{type(error).__name__}: {error}"
    result.steps = before - max(meter.left, 0)
    return result


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
