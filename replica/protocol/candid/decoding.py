"""Bytes to Candid values, against an expected type with the rules of subtyping.

Values are as in `encoding`. Fields nobody expects are skipped; an `opt` whose content doesn't fit
becomes None, as the specification demands.
Every length is bounded by the bytes at hand and by a budget, so no message can ask for much work.

Source: the Candid specification, "Binary format", "Deserialisation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replica.protocol.candid.types import (
    DEPTH_MAX,
    FIXED,
    MAGIC,
    NO_NAMES,
    PRIMITIVES,
    Field,
    Func,
    Interface,
    Opt,
    Prim,
    Record,
    Service,
    Type,
    Variant,
    Vec,
    kind_of,
)
from replica.protocol.errors import LimitExceeded, Malformed, ReprisError
from replica.protocol.ids import Principal

TABLE_MAX = 4096
ITEMS_MAX = 4_000_000
"""Values that one decoding may touch, skipped and empty ones included."""
NUMBER_BYTES_MAX = 1024

_CODES = {code: name for name, code in PRIMITIVES.items()}


class _Mismatch(ReprisError):
    """The value does not fit the expected type; an enclosing `opt` turns this into None."""


def decode(types: Sequence[Type], data: bytes, names: Interface = NO_NAMES) -> list[Any]:
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
            raise _Mismatch(f"expected {kind_of(expected)}, found {wire}")
        kind, content = wire
        if isinstance(expected, Vec) and kind == "vec":
            return self._vec(content, expected)
        if isinstance(expected, Record) and kind == "record":
            return self._record(content, expected.fields)
        if isinstance(expected, Variant) and kind == "variant":
            return self._variant(content, expected.fields)
        if isinstance(expected, Func | Service) and kind in ("func", "service"):
            return self._reference_value(kind)
        raise _Mismatch(f"expected {kind_of(expected)}, found {kind}")

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
        fixed = FIXED.get(name)
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
    decoder = _Decoder(data, NO_NAMES)
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
