"""Candid values: encode by type, decode against an expected type with the rules of subtyping.

Values: records are dicts by field name, variants one-entry dicts, `opt` is None or the value,
`blob` is bytes, principals are `Principal`. Fields nobody expects are skipped; an `opt` whose
content doesn't fit becomes None, as the specification demands.
Every length is bounded by the bytes at hand and by a budget, so no message can ask for much work.

Source: the Candid specification, "Binary format", "Deserialisation".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from replica.protocol.candid.types import (
    PRIMITIVES,
    Field,
    Func,
    Interface,
    Opt,
    Prim,
    Record,
    Ref,
    Service,
    Type,
    Variant,
    Vec,
)
from replica.protocol.errors import LimitExceeded, Malformed, ReprisError
from replica.protocol.ids import Principal

MAGIC = b"DIDL"
TABLE_MAX = 4096
DEPTH_MAX = 96
ITEMS_MAX = 4_000_000
"""Values that one decoding may touch, skipped and empty ones included."""
NUMBER_BYTES_MAX = 1024

_CODES = {code: name for name, code in PRIMITIVES.items()}
_FIXED = {
    "nat8": struct.Struct("<B"),
    "nat16": struct.Struct("<H"),
    "nat32": struct.Struct("<I"),
    "nat64": struct.Struct("<Q"),
    "int8": struct.Struct("<b"),
    "int16": struct.Struct("<h"),
    "int32": struct.Struct("<i"),
    "int64": struct.Struct("<q"),
    "float32": struct.Struct("<f"),
    "float64": struct.Struct("<d"),
}
_BLOB = Vec(Prim("nat8"))
_NO_NAMES = Interface()


class _Mismatch(ReprisError):
    """The value does not fit the expected type; an enclosing `opt` turns this into None."""


# --- encoding --------------------------------------------------------------------------------


def encode(types: Sequence[Type], values: Sequence[Any], names: Interface = _NO_NAMES) -> bytes:
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
    name = _name(type_)

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
    fixed = _FIXED.get(name)
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


def _name(type_: Type) -> str:
    return type_.name if isinstance(type_, Prim) else type(type_).__name__.lower()


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


# --- decoding --------------------------------------------------------------------------------


def decode(types: Sequence[Type], data: bytes, names: Interface = _NO_NAMES) -> list[Any]:
    """Decode a message as values of the expected types.

    Raises: Malformed for bytes that are not Candid or do not fit, LimitExceeded.
    """
    decoder = _Decoder(data, names)
    try:
        return decoder.message(types)
    except _Mismatch as error:
        raise Malformed(f"Candid: {error}") from error


class _Decoder:
    def __init__(self, data: bytes, names: Interface) -> None:
        self.data = data
        self.names = names
        self.position = 0
        self.items = 0
        self.depth = 0
        self.table: list[Any] = []

    def message(self, types: Sequence[Type]) -> list[Any]:
        wires = self._head(types)
        values = []
        for index, expected in enumerate(types):
            if index < len(wires):
                values.append(self.value(wires[index], expected))
            else:
                values.append(self._missing(expected, f"argument {index}"))
        for wire in wires[len(types) :]:
            self.skip(wire)
        if self.position != len(self.data):
            raise Malformed("Candid: bytes after the message")
        return values

    def _head(self, types: Sequence[Type]) -> list[Any]:
        """Read what precedes the values; who calls one method sends the same each time."""
        wires: list[Any]
        known = self.names.decoders.get(id(types))
        if known is not None and self.data.startswith(known[1]):
            self.position, (self.table, wires, self.items) = len(known[1]), known[2]
            return wires
        wires = self.read_head()
        if isinstance(types, tuple):
            found = (self.table, wires, self.items)
            self.names.remember(self.names.decoders, types, self.data[: self.position], found)
        return wires

    def read_head(self) -> list[Any]:
        if self.data[:4] != MAGIC:
            raise Malformed("Candid: the message does not start with DIDL")
        self.position = 4
        self._read_table()
        return [self._type_reference() for _ in range(self._length())]

    # -- primitives of reading

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise Malformed("Candid: the message is cut short")
        raw = self.data[self.position : end]
        self.position = end
        return raw

    def _unsigned(self, bytes_max: int = NUMBER_BYTES_MAX) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            if byte < 0x80 and not shift:
                return byte
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > 7 * bytes_max:
                raise LimitExceeded("Candid: a number is too long")

    def _signed(self, bytes_max: int = NUMBER_BYTES_MAX) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value - (1 << shift) if byte & 0x40 else value
            if shift > 7 * bytes_max:
                raise LimitExceeded("Candid: a number is too long")

    def _length(self) -> int:
        value = self._unsigned(5)
        if value > len(self.data):
            raise Malformed("Candid: a length exceeds the message")
        return value

    def _spend(self, count: int = 1) -> None:
        self.items += count
        if self.items > ITEMS_MAX:
            raise LimitExceeded(f"Candid: more than {ITEMS_MAX} values")

    # -- the type table

    def _read_table(self) -> None:
        count = self._length()
        if count > TABLE_MAX:
            raise LimitExceeded(f"Candid: more than {TABLE_MAX} types")
        self.table = [None] * count
        for index in range(count):
            self.table[index] = self._definition()

    def _type_reference(self) -> Any:
        code = self._signed(5)
        if code >= 0:
            if code >= len(self.table):
                raise Malformed("Candid: reference to a type that is not in the table")
            return code
        if code not in _CODES:
            raise Malformed(f"Candid: unknown type code {code}")
        return _CODES[code]

    def _definition(self) -> Any:
        code = self._signed(5)
        if code in (-18, -19):
            return ("opt" if code == -18 else "vec", self._type_reference())
        if code in (-20, -21):
            fields: list[tuple[int, Any]] = []
            for _ in range(self._length()):
                self._spend()
                number = self._unsigned(5)
                if number > 0xFFFFFFFF or (fields and number <= fields[-1][0]):
                    raise Malformed("Candid: field ids out of order")
                fields.append((number, self._type_reference()))
            return ("record" if code == -20 else "variant", fields)
        if code == -22:
            for _ in range(2):
                for _ in range(self._length()):
                    self._spend()
                    self._type_reference()
            self._take(self._length())
            return ("func", None)
        if code == -23:
            for _ in range(self._length()):
                self._spend()
                self._take(self._length())
                self._type_reference()
            return ("service", None)
        raise Malformed(f"Candid: unknown type constructor {code}")

    def _wire(self, wire: Any) -> Any:
        return self.table[wire] if isinstance(wire, int) else wire

    # -- values

    def _missing(self, expected: Type, what: str) -> Any:
        resolved = self.names.resolve(expected)
        if isinstance(resolved, Opt) or resolved in (Prim("null"), Prim("reserved")):
            return None
        raise _Mismatch(f"{what} is missing")

    def value(self, wire: Any, expected: Type) -> Any:
        self._spend()
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise LimitExceeded(f"Candid: values nested deeper than {DEPTH_MAX}")
        try:
            return self._value(self._wire(wire), self.names.resolve(expected))
        finally:
            self.depth -= 1

    def _value(self, wire: Any, expected: Type) -> Any:
        if isinstance(expected, Prim) and expected.name == "reserved":
            self._skip(wire)
            return None
        if isinstance(expected, Opt):
            return self._opt(wire, expected.inner)
        if isinstance(expected, Prim):
            return self._primitive(wire, expected.name)
        if isinstance(wire, str):
            raise _Mismatch(f"expected {_name(expected)}, found {wire}")
        kind, content = wire
        if isinstance(expected, Vec) and kind == "vec":
            return self._vec(content, expected)
        if isinstance(expected, Record) and kind == "record":
            return self._record(content, expected.fields)
        if isinstance(expected, Variant) and kind == "variant":
            return self._variant(content, expected.fields)
        if isinstance(expected, Func | Service) and kind in ("func", "service"):
            return self._reference_value(kind)
        raise _Mismatch(f"expected {_name(expected)}, found {kind}")

    def _opt(self, wire: Any, inner: Type) -> Any:
        if wire in ("null", "reserved"):
            return None
        start = self.position
        if isinstance(wire, tuple) and wire[0] == "opt":
            flag = self._take(1)[0]
            if flag > 1:
                raise Malformed("Candid: an opt's flag is neither 0 nor 1")
            if not flag:
                return None
            start, content = self.position, wire[1]
        else:
            if isinstance(self.names.resolve(inner), Opt):
                self._skip(wire)
                return None
            content = wire
        depth = self.depth
        try:
            if isinstance(content, tuple):
                return self._value(content, self.names.resolve(inner))
            return self.value(content, inner)
        except _Mismatch:
            self.position, self.depth = start, depth
            if isinstance(content, tuple):
                self._skip(content)
            else:
                self.skip(content)
            return None

    def _primitive(self, wire: Any, name: str) -> Any:
        if wire == "nat" and name == "int":
            return self._unsigned()
        if wire != name:
            found = wire if isinstance(wire, str) else wire[0]
            raise _Mismatch(f"expected {name}, found {found}")
        fixed = _FIXED.get(name)
        if fixed is not None:
            return fixed.unpack(self._take(fixed.size))[0]
        if name == "bool":
            raw = self._take(1)[0]
            if raw > 1:
                raise Malformed("Candid: a bool is neither 0 nor 1")
            return raw == 1
        if name == "nat":
            return self._unsigned()
        if name == "int":
            return self._signed()
        if name == "text":
            try:
                return self._take(self._length()).decode()
            except UnicodeDecodeError as error:
                raise Malformed("Candid: text is not UTF-8") from error
        if name == "principal":
            if self._take(1) != b"\1":
                raise Malformed("Candid: opaque references are not supported")
            return Principal(self._take(self._length()))
        if name == "null":
            return None
        raise _Mismatch("a value of type empty")

    def _vec(self, content: Any, expected: Vec) -> Any:
        count = self._unsigned(5)
        inner = self.names.resolve(expected.inner)
        if inner == Prim("nat8") and content == "nat8":
            return self._take(count)
        self._spend(count)
        return [self.value(content, inner) for _ in range(count)]

    def _record(self, wire_fields: list[tuple[int, Any]], fields: Sequence[Field]) -> Any:
        out: dict[str, Any] = {}
        position = 0
        for number, wire in wire_fields:
            while position < len(fields) and fields[position].id < number:
                missing = fields[position]
                out[missing.name] = self._missing(missing.type, f"field {missing.name}")
                position += 1
            if position < len(fields) and fields[position].id == number:
                out[fields[position].name] = self.value(wire, fields[position].type)
                position += 1
            else:
                self.skip(wire)
        for f in fields[position:]:
            out[f.name] = self._missing(f.type, f"field {f.name}")
        return out

    def _variant(self, wire_fields: list[tuple[int, Any]], fields: Sequence[Field]) -> Any:
        index = self._unsigned(5)
        if index >= len(wire_fields):
            raise Malformed("Candid: a variant's index is out of range")
        number, wire = wire_fields[index]
        for f in fields:
            if f.id == number:
                return {f.name: self.value(wire, f.type)}
        raise _Mismatch("a case of a variant that is not known here")

    def _reference_value(self, kind: str) -> Any:
        if kind == "func" and self._take(1) != b"\1":
            raise Malformed("Candid: opaque references are not supported")
        if self._take(1) != b"\1":
            raise Malformed("Candid: opaque references are not supported")
        principal = Principal(self._take(self._length()))
        if kind == "service":
            return principal
        return (principal, self._take(self._length()).decode("utf-8", "replace"))

    # -- skipping

    def skip(self, wire: Any) -> None:
        self._spend()
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise LimitExceeded(f"Candid: values nested deeper than {DEPTH_MAX}")
        self._skip(self._wire(wire))
        self.depth -= 1

    def _skip(self, wire: Any) -> None:
        if isinstance(wire, str):
            if wire not in ("null", "reserved"):
                self._primitive(wire, wire)
            return
        kind, content = wire
        if kind == "opt":
            if self._take(1) == b"\1":
                self.skip(content)
        elif kind == "vec":
            count = self._unsigned(5)
            if content == "nat8":
                self._take(count)
            else:
                self._spend(count)
                for _ in range(count):
                    self.skip(content)
        elif kind == "record":
            for _, wire_field in content:
                self.skip(wire_field)
        elif kind == "variant":
            index = self._unsigned(5)
            if index >= len(content):
                raise Malformed("Candid: a variant's index is out of range")
            self.skip(content[index][1])
        else:
            self._reference_value(kind)


def decode_any(data: bytes) -> list[Any]:
    """Decode without an expected type, for people: unknown field names appear as their ids."""
    decoder = _Decoder(data, _NO_NAMES)
    wires = decoder.read_head()
    values = [decoder.value(w, _as_expected(decoder.table, w, 0)) for w in wires]
    if decoder.position != len(data):
        raise Malformed("Candid: bytes after the message")
    return values


def _as_expected(table: list[Any], wire: Any, depth: int) -> Type:
    if isinstance(wire, str):
        return Prim(wire)
    if depth > 12:
        return Prim("reserved")
    kind, content = table[wire]
    if kind == "opt":
        return Opt(_as_expected(table, content, depth + 1))
    if kind == "vec":
        return Vec(_as_expected(table, content, depth + 1))
    if kind in ("record", "variant"):
        fields = [Field(n, str(n), _as_expected(table, w, depth + 1)) for n, w in content]
        return Record(tuple(fields)) if kind == "record" else Variant(tuple(fields))
    return Func((), (), ()) if kind == "func" else Service(())
