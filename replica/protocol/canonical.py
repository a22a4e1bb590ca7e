"""The one encoding of our own records: blocks, artifacts, queues, attestations, journals.

A record is a frozen dataclass; its encoding is the canonical CBOR array of its fields in order.
Decoding is strict: types, lengths and the canonical form itself are checked, so two different byte
strings never decode to one record, and a hash over the bytes is a hash over the record.
Where others' software meets ours (certificates, CUP envelope, registry), this is not used.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from replica.protocol import cbor
from replica.protocol.errors import Malformed

T = TypeVar("T")

ITEMS_MAX = 1 << 20
_INT_MAX = (1 << 64) - 1

_Pack = Callable[[Any], Any]
_packers: dict[Any, tuple[_Pack, _Pack]] = {}


def encode(record: Any) -> bytes:
    """Return the canonical bytes of a record."""
    return cbor.dumps(_codec(type(record))[0](record))


def decode(kind: type[T], data: bytes, *, bytes_max: int = 16 << 20) -> T:
    """Decode a record of exactly this kind.

    Raises: Malformed, also when the bytes are not the canonical encoding of what they decode to.
    """
    plain = cbor.loads(data, tagged=False, bytes_max=bytes_max)
    record = _codec(kind)[1](plain)
    if cbor.dumps(plain) != data:
        raise Malformed(f"{kind.__name__}: not in canonical form")
    return typing.cast(T, record)


def once(record: object, name: str, compute: Callable[[], bytes]) -> bytes:
    """Compute a digest of a frozen record at its first use and keep it beside the fields."""
    found: bytes | None = record.__dict__.get(name)
    if found is None:
        found = record.__dict__[name] = compute()
    return found


def pack(record: Any) -> Any:
    """Return a record as plain lists, integers and bytes, to be nested in another encoding."""
    return _codec(type(record))[0](record)


def unpack(kind: type[T], plain: Any) -> T:
    """Undo `pack`. Raises: Malformed."""
    return typing.cast(T, _codec(kind)[1](plain))


def _codec(kind: Any) -> tuple[_Pack, _Pack]:
    found = _packers.get(kind)
    if found is None:
        # A placeholder lets a record refer to itself.
        _packers[kind] = (lambda v: _packers[kind][0](v), lambda v: _packers[kind][1](v))
        found = _packers[kind] = _build(kind)
    return found


def _build(kind: Any) -> tuple[_Pack, _Pack]:
    if hasattr(kind, "__supertype__"):  # a NewType
        return _codec(kind.__supertype__)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_record(kind)
    if kind is Any:
        return _same, _same
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        return _build_tuple(arguments)
    if origin is dict:
        return _build_dict(arguments)
    if origin in (types.UnionType, typing.Union):
        return _build_union(arguments)
    if isinstance(kind, type) and issubclass(kind, bool | int | str | bytes):
        return _same, _scalar(kind)
    raise TypeError(f"no canonical encoding for {kind!r}")


def _same(value: Any) -> Any:
    return value


def _scalar(kind: type) -> _Pack:
    base: Any = next(b for b in (bool, int, str, bytes) if issubclass(kind, b))

    def unpack_scalar(value: Any) -> Any:
        if type(value) is not base:
            raise Malformed(f"expected {base.__name__}, found {type(value).__name__}")
        if base is int and not -_INT_MAX <= value <= _INT_MAX:
            raise Malformed("integer beyond 64 bits")
        return value if kind is base else kind(value)

    return unpack_scalar


def _items(value: Any, count: int | None = None) -> list[Any]:
    if type(value) is not list or len(value) > ITEMS_MAX:
        raise Malformed("expected a list")
    if count is not None and len(value) != count:
        raise Malformed(f"expected {count} fields, found {len(value)}")
    return value


def _build_record(kind: type) -> tuple[_Pack, _Pack]:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    codecs = [_codec(hints[name]) for name in names]
    fields = [(name, codec[0]) for name, codec in zip(names, codecs, strict=True)]
    unpackers = [codec[1] for codec in codecs]

    def unpack_record(value: Any) -> Any:
        try:
            items = _items(value, len(unpackers))
            return kind(*[unpack_field(v) for unpack_field, v in zip(unpackers, items)])
        except Malformed as error:
            raise Malformed(f"{kind.__name__}: {error}") from None

    return _compile_pack(fields, [hints[n] for n in names]), _compile_unpack(
        kind, [hints[n] for n in names], unpack_record
    )


def _compile_pack(fields: list[tuple[str, _Pack]], hints: list[Any]) -> _Pack:
    """Return a function made for one record: the most called ones of a replica."""
    names: dict[str, Any] = {}
    parts = []
    for i, ((name, pack), hint) in enumerate(zip(fields, hints)):
        while hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        if pack is not _same:
            names[f"f{i}"] = pack
            parts.append(f"f{i}(v.{name})")
        elif isinstance(hint, type) and issubclass(hint, bytes) and hint is not bytes:
            parts.append(f"bytes(v.{name})")  # the library looks long at types it doesn't know
        else:
            parts.append(f"v.{name}")
    return typing.cast(_Pack, eval(f"lambda v: [{', '.join(parts)}]", names))


def _compile_unpack(kind: type, hints: list[Any], slowly: _Pack) -> _Pack:
    """Return an unpacker for one record that gives what it doesn't like to the careful one."""
    names: dict[str, Any] = {"kind": kind, "slowly": slowly, "M": _INT_MAX}
    checks, values = [f"type(v) is list and len(v) == {len(hints)}"], []
    for i, hint in enumerate(hints):
        while hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        names[f"t{i}"], names[f"f{i}"] = hint, _codec(hint)[1]
        if hint in (int, str, bytes, bool):
            checks.append(f"type(v[{i}]) is t{i}")
            if hint is int:
                checks.append(f"-M <= v[{i}] <= M")
            values.append(f"v[{i}]")
        elif isinstance(hint, type) and issubclass(hint, bytes):
            checks.append(f"type(v[{i}]) is bytes")
            names[f"t{i}"] = lru_cache(maxsize=4096)(hint)  # few ids, met all the time
            values.append(f"t{i}(v[{i}])")
        else:
            values.append(f"f{i}(v[{i}])")
    source = (
        "def unpack(v):\n"
        f"    if {' and '.join(checks)}:\n"
        "        try:\n"
        f"            return kind({', '.join(values)})\n"
        "        except Malformed:\n"
        "            return slowly(v)\n"
        "    return slowly(v)\n"
    )
    names["Malformed"] = Malformed
    exec(source, names)
    return typing.cast(_Pack, names["unpack"])


def _build_tuple(arguments: tuple[Any, ...]) -> tuple[_Pack, _Pack]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        pack_item, unpack_item = _codec(arguments[0])
        return (
            lambda v: [pack_item(x) for x in v],
            lambda v: tuple([unpack_item(x) for x in _items(v)]),
        )
    codecs = [_codec(a) for a in arguments]
    return (
        lambda v: [c[0](x) for c, x in zip(codecs, v, strict=True)],
        lambda v: tuple([c[1](x) for c, x in zip(codecs, _items(v, len(codecs)))]),
    )


def _build_dict(arguments: tuple[Any, ...]) -> tuple[_Pack, _Pack]:
    pairs = tuple[arguments[0], arguments[1]]  # type: ignore[valid-type]
    pack_pair, unpack_pair = _codec(pairs)

    def unpack_dict(value: Any) -> Any:
        items = [unpack_pair(x) for x in _items(value)]
        if any(a[0] >= b[0] for a, b in zip(items, items[1:])):
            raise Malformed("map keys out of order")
        return dict(items)

    return lambda v: [pack_pair(x) for x in sorted(v.items())], unpack_dict


def _build_union(arguments: tuple[Any, ...]) -> tuple[_Pack, _Pack]:
    options = [a for a in arguments if a is not type(None)]
    optional = len(options) < len(arguments)
    if len(options) == 1:
        pack_one, unpack_one = _codec(options[0])
        return (
            lambda v: None if v is None else pack_one(v),
            lambda v: None if v is None else unpack_one(v),
        )
    codecs = [_codec(o) for o in options]
    index = {o: i for i, o in enumerate(options)}

    def pack_union(value: Any) -> Any:
        if value is None and optional:
            return None
        i = index[type(value)]
        return [i, codecs[i][0](value)]

    def unpack_union(value: Any) -> Any:
        if value is None and optional:
            return None
        i, inner = _items(value, 2)
        if type(i) is not int or not 0 <= i < len(codecs):
            raise Malformed("unknown kind of record")
        return codecs[i][1](inner)

    return pack_union, unpack_union
