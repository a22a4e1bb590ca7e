"""Candid types and interfaces as values."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

PRIMITIVES: dict[str, int] = {
    "null": -1,
    "bool": -2,
    "nat": -3,
    "int": -4,
    "nat8": -5,
    "nat16": -6,
    "nat32": -7,
    "nat64": -8,
    "int8": -9,
    "int16": -10,
    "int32": -11,
    "int64": -12,
    "float32": -13,
    "float64": -14,
    "text": -15,
    "reserved": -16,
    "empty": -17,
    "principal": -24,
}
"""Name of each primitive type and its code on the wire."""


@dataclass(frozen=True, slots=True)
class Prim:
    name: str


@dataclass(frozen=True, slots=True)
class Opt:
    inner: Type


@dataclass(frozen=True, slots=True)
class Vec:
    inner: Type


@dataclass(frozen=True, slots=True)
class Field:
    id: int
    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Record:
    fields: tuple[Field, ...]
    """In ascending order of id."""


@dataclass(frozen=True, slots=True)
class Variant:
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """A named type of an interface; `Environment.resolve` follows it."""

    name: str


@dataclass(frozen=True, slots=True)
class Func:
    args: tuple[Type, ...]
    results: tuple[Type, ...]
    modes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Service:
    methods: tuple[tuple[str, Func], ...]


PLANS_MAX = 512
PLAN_HEAD_BYTES_MAX = 4096

_Plan = tuple[Any, bytes, Any]
"""The types, the bytes that precede values of them, and what the codec made of both."""

Type = Prim | Opt | Vec | Record | Variant | Ref | Func | Service


def field_id(name: str) -> int:
    """Return the hash that names a field on the wire."""
    value = 0
    for byte in name.encode():
        value = (value * 223 + byte) & 0xFFFFFFFF
    return value


@dataclass(frozen=True, slots=True)
class Method:
    args: tuple[Type, ...]
    results: tuple[Type, ...]
    mode: str
    """update, query or oneway"""


@dataclass(slots=True)
class Interface:
    """A parsed .did file: its named types, its methods and the arguments of its installation."""

    types: dict[str, Type] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    init: tuple[Type, ...] = ()
    source: str = ""
    encoders: dict[int, _Plan] = field(default_factory=dict, repr=False, compare=False)
    decoders: dict[int, _Plan] = field(default_factory=dict, repr=False, compare=False)
    """What the codec worked out for tuples of types, by `id`."""

    def remember(
        self, plans: dict[int, _Plan], types: tuple[Type, ...], head: bytes, made: Any
    ) -> None:
        """Keep what was worked out; a plan holds its types, so that no other gets their `id`."""
        if len(plans) >= PLANS_MAX or len(head) > PLAN_HEAD_BYTES_MAX:
            return
        plans[id(types)] = (types, head, made)

    def resolve(self, type_: Type) -> Type:
        """Follow names until a structural type is found."""
        for _ in range(64):
            if not isinstance(type_, Ref):
                return type_
            type_ = self.types[type_.name]
        raise ValueError("a Candid type is defined as itself")


# --- what both directions of the binary format go by --------------------------------------------

MAGIC = b"DIDL"
DEPTH_MAX = 96
FIXED = {
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
"""Numbers of a fixed width."""
BLOB = Vec(Prim("nat8"))
NO_NAMES = Interface()


def kind_of(type_: Type) -> str:
    """Return what a type is called in an error."""
    return type_.name if isinstance(type_, Prim) else type(type_).__name__.lower()
