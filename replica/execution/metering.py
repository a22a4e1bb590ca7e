"""Metering: what loading weaves into canister code so that it stops at the same step everywhere.

Every function entry and loop turn costs a step. Functions, lambdas and generators count as nested
calls; builtins that consume their argument whole are counted item by item; powers, shifts and
repetitions are bounded. Exhaustion is no Exception, so canister code can't catch it.

Neither can it catch what is wrong with this node alone: the first statement of every `except` and
`finally` raises that again, and notes it, as `__exit__` may still hold it back.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from replica.protocol.errors import MachineFault

DEPTH_MAX = 120


class BudgetExhausted(BaseException):
    """Out of steps or too deep; not an Exception, so canister code can't catch it."""


UNCATCHABLE = (BudgetExhausted, MachineFault, MemoryError, RecursionError)
"""The last two are the host's: limits of canisters' own are lower, and the same everywhere."""


class Meter:
    def __init__(self, steps_max: int) -> None:
        self.left = steps_max
        self.depth = 0
        self.uncatchable: BaseException | None = None
        """What canister code met first of what it can't catch, whether or not it did."""

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


_BOUNDED: dict[type, str] = {
    ast.Pow: "_bounded_pow",
    ast.LShift: "_bounded_shift",
    ast.Mult: "_bounded_mul",
}


class Weaver(ast.NodeTransformer):
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

    def visit_Try(self, node: ast.Try) -> ast.AST:
        self.generic_visit(node)
        for handler in node.handlers:
            handler.body.insert(0, self._call("_meter_caught", handler))
        if node.finalbody:
            node.finalbody.insert(0, self._call("_meter_caught", node))
        return node

    def visit_TryStar(self, node: ast.TryStar) -> ast.AST:
        """Of bundles that former releases took."""
        return self.visit_Try(node)  # type: ignore[arg-type]

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        watched = ast.Try(node.body, [], [], [self._call("_meter_caught", node)])
        node.body = [ast.fix_missing_locations(ast.copy_location(watched, node))]
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


class Host:
    """What woven code calls; holds the meter of the message that runs."""

    def __init__(self) -> None:
        self.meter = Meter(0)

    def names(self) -> dict[str, Any]:
        """Return the names that woven code refers to."""
        return {
            "_meter_spend": lambda: self.meter.spend(),
            "_meter_enter": lambda: self.meter.enter(),
            "_meter_leave": lambda: self.meter.leave(),
            "_meter_tick": self.tick,
            "_meter_caught": self.caught,
            "_metered": self.metered,
            "_metered_run": self.run,
            "_metered_generator": self.generator,
            "_bounded_pow": _bounded_pow,
            "_bounded_shift": _bounded_shift,
            "_bounded_mul": _bounded_mul,
        }

    def caught(self) -> None:
        """Let go on upwards what canister code must not hold back."""
        error = sys.exc_info()[1]
        if isinstance(error, BaseExceptionGroup):
            error = error.subgroup(UNCATCHABLE)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, UNCATCHABLE):
            if self.meter.uncatchable is None:
                self.meter.uncatchable = error
            raise error

    def tick(self) -> bool:
        self.meter.spend()
        return True

    def metered(self, value: Any) -> Any:
        """Count what a builtin is about to consume: by length, or item by item."""
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            if value > ITEMS_MAX:
                raise BudgetExhausted("a value grew beyond a million items")
            return value
        if isinstance(value, str | bytes | bytearray | list | tuple | dict):
            self.meter.spend(len(value) // 16)
            return value
        return self.counted(value) if hasattr(value, "__iter__") else value

    def counted(self, items: Any) -> Any:
        for item in items:
            self.meter.spend()
            yield item

    def run(self, body: Callable[[], Any]) -> Any:
        self.meter.enter()
        try:
            return body()
        finally:
            self.meter.leave()

    def generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def start(*arguments: Any, **named: Any) -> _MeteredGenerator:
            return _MeteredGenerator(function(*arguments, **named), self)

        return start


class _MeteredGenerator:
    """A generator of canister code: each of its turns is a step and counts as a nested call."""

    def __init__(self, inner: Any, host: Host) -> None:
        self._inner, self._host = inner, host

    def __iter__(self) -> _MeteredGenerator:
        return self

    def __next__(self) -> Any:
        meter = self._host.meter
        meter.enter()
        try:
            return next(self._inner)
        finally:
            meter.leave()
