"""Candid values to bytes, by type.

Values: records are dicts by field name, variants one-entry dicts, `opt` is None or the value,
`blob` is bytes, principals are `Principal`.

Source: the Candid specification, "Binary format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from replica.protocol.candid.types import (
    DEPTH_MAX,
    FIXED,
    MAGIC,
    NO_NAMES,
    PRIMITIVES,
    Func,
    Interface,
    Opt,
    Prim,
    Record,
    Ref,
    Type,
    Variant,
    Vec,
    kind_of,
)
from replica.protocol.errors import LimitExceeded, Malformed


def encode(types: Sequence[Type], values: Sequence[Any], names: Interface = NO_NAMES) -> bytes:
    """Encode one value per type. Raises: Malformed when a value does not fit its type."""
    if len(types) != len(values):
        raise Malformed(f"expected {len(types)} values, got {len(values)}")
    head, writers = _plan(types, names)
    out = _Out(head)
    for write, value in zip(writers, values):
        write(value, out)
    return bytes(out)


_Write = Callable[[Any, "_Out"], None]


class _Out(bytearray):
    depth = 0
    """How many named types the value being written is inside of."""


def _plan(types: Sequence[Type], names: Interface) -> tuple[bytes, list[_Write]]:
    """Return what precedes values of these types, and how to write each; kept for tuples.

    The types of a method are one object for as long as its interface is loaded, so that object
    stands for them: hashing what it holds would take as long as encoding.
    """
    known = names.encoders.get(id(types))
    if known is not None:
        return known[1], known[2]
    table = _Table(names)
    references = b"".join([table.reference(t) for t in types])
    definitions = _uleb(len(table.rows)) + b"".join(table.rows)
    head = MAGIC + definitions + _uleb(len(types)) + references
    writers = [_writer(t, names) for t in types]
    if isinstance(types, tuple):
        names.remember(names.encoders, types, head, writers)
    return head, writers


class _Table:
    """The type table of a message that is being made."""

    def __init__(self, names: Interface) -> None:
        self.names = names
        self.rows: list[bytes] = []
        self.indices: dict[Type, int] = {}

    def reference(self, type_: Type) -> bytes:
        """Return a type's mention: a primitive's code or an index in the table."""
        resolved = self.names.resolve(type_)
        if isinstance(resolved, Prim):
            return _sleb(PRIMITIVES[resolved.name])
        key = type_ if isinstance(type_, Ref) else resolved
        index = self.indices.get(key)
        if index is None:
            index = self.indices[key] = len(self.rows)
            self.rows.append(b"")
            self.rows[index] = self._definition(resolved)
        return _sleb(index)

    def _definition(self, type_: Type) -> bytes:
        if isinstance(type_, Opt):
            return _sleb(-18) + self.reference(type_.inner)
        if isinstance(type_, Vec):
            return _sleb(-19) + self.reference(type_.inner)
        if isinstance(type_, Record | Variant):
            code = -20 if isinstance(type_, Record) else -21
            fields = [_uleb(f.id) + self.reference(f.type) for f in type_.fields]
            return _sleb(code) + _uleb(len(fields)) + b"".join(fields)
        if isinstance(type_, Func):
            args = b"".join([self.reference(t) for t in type_.args])
            results = b"".join([self.reference(t) for t in type_.results])
            modes = bytes([{"query": 1, "oneway": 2, "composite_query": 3}[m] for m in type_.modes])
            return b"".join(
                [
                    _sleb(-22),
                    _uleb(len(type_.args)),
                    args,
                    _uleb(len(type_.results)),
                    results,
                    _uleb(len(modes)),
                    modes,
                ]
            )
        raise Malformed("this Candid type can't be encoded")


def _writer(type_: Type, names: Interface) -> _Write:
    """Return a function that writes values of a type; the types are walked here, once."""
    if isinstance(type_, Ref):
        return _named_writer(type_.name, names)
    if isinstance(type_, Prim):
        write = _primitive_writer(type_.name)
    elif isinstance(type_, Opt):
        write = _opt_writer(_writer(type_.inner, names))
    elif isinstance(type_, Vec):
        is_blob = names.resolve(type_.inner) == Prim("nat8")
        write = _write_blob if is_blob else _vec_writer(_writer(type_.inner, names))
    elif isinstance(type_, Record):
        write = _record_writer(type_, names)
    elif isinstance(type_, Variant):
        write = _variant_writer(type_, names)
    elif isinstance(type_, Func):
        write = _write_func
    else:
        raise Malformed("this Candid value can't be encoded")
    name = kind_of(type_)

    def checked(value: Any, out: _Out) -> None:
        try:
            write(value, out)
        except (struct.error, AttributeError, TypeError, KeyError) as error:
            raise Malformed(f"{value!r:.80} is not a Candid {name}: {error}") from error

    return checked


def _named_writer(name: str, names: Interface) -> _Write:
    """Named types may hold themselves: looked up when met, and how deep they nest is bounded."""
    made: list[_Write] = []

    def write(value: Any, out: _Out) -> None:
        if not made:
            made.append(_writer(names.resolve(Ref(name)), names))
        out.depth += 1
        if out.depth > DEPTH_MAX:
            raise LimitExceeded(f"Candid: values nested deeper than {DEPTH_MAX}")
        made[0](value, out)
        out.depth -= 1

    return write


def _opt_writer(inner: _Write) -> _Write:
    def write(value: Any, out: _Out) -> None:
        if value is None:
            out.append(0)
        else:
            out.append(1)
            inner(value, out)

    return write


def _vec_writer(inner: _Write) -> _Write:
    def write(value: Any, out: _Out) -> None:
        out += _uleb(len(value))
        for item in value:
            inner(item, out)

    return write


def _record_writer(type_: Record, names: Interface) -> _Write:
    parts = [
        (f.name, isinstance(names.resolve(f.type), Opt), _writer(f.type, names))
        for f in type_.fields
    ]

    def write(value: Any, out: _Out) -> None:
        for name, is_optional, inner in parts:
            inner(value.get(name) if is_optional else value[name], out)

    return write


def _variant_writer(type_: Variant, names: Interface) -> _Write:
    cases = {f.name: (_uleb(i), _writer(f.type, names)) for i, f in enumerate(type_.fields)}

    def write(value: Any, out: _Out) -> None:
        if len(value) != 1:
            raise Malformed(f"{value!r:.80} is not a Candid variant: it has one case")
        ((name, inner),) = value.items()
        if name not in cases:
            raise Malformed(f"the variant has no case {name}")
        index, write_case = cases[name]
        out += index
        write_case(inner, out)

    return write


def _primitive_writer(name: str) -> _Write:
    fixed = FIXED.get(name)
    if fixed is None:
        return _WRITERS[name]
    pack = fixed.pack

    def write(value: Any, out: _Out) -> None:
        out += pack(value)

    return write


def _write_blob(value: Any, out: _Out) -> None:
    out += _uleb(len(value))
    out += bytes(value)


def _write_func(value: Any, out: _Out) -> None:
    principal, method = value
    out += b"\1\1" + _uleb(len(principal)) + principal
    out += _uleb(len(method.encode())) + method.encode()


def _write_bool(value: Any, out: _Out) -> None:
    out.append(1 if value else 0)


def _write_nat(value: Any, out: _Out) -> None:
    if value < 0:
        raise Malformed("a nat can't be negative")
    out += _uleb(value)


def _write_int(value: Any, out: _Out) -> None:
    out += _sleb(value)


def _write_text(value: Any, out: _Out) -> None:
    raw = value.encode()
    out += _uleb(len(raw))
    out += raw


def _write_principal(value: Any, out: _Out) -> None:
    out += b"\1" + _uleb(len(value)) + bytes(value)


def _write_nothing(value: Any, out: _Out) -> None:
    pass


def _write_empty(value: Any, out: _Out) -> None:
    raise Malformed("there is no value of type empty")


_WRITERS: dict[str, _Write] = {
    "bool": _write_bool,
    "nat": _write_nat,
    "int": _write_int,
    "text": _write_text,
    "principal": _write_principal,
    "null": _write_nothing,
    "reserved": _write_nothing,
    "empty": _write_empty,
}


_SHORT = [bytes([value]) for value in range(128)]


def _uleb(value: int) -> bytes:
    if 0 <= value < 128:
        return _SHORT[value]
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40)
        out.append(byte if done else byte | 0x80)
        if done:
            return bytes(out)
