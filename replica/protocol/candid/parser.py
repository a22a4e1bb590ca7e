"""Parser of .did files (no imports): types, service, init arguments.

Source: the Candid specification, "Core grammar".
"""

from __future__ import annotations

import re

from replica.protocol.candid.types import (
    PRIMITIVES,
    Field,
    Func,
    Interface,
    Method,
    Opt,
    Prim,
    Record,
    Ref,
    Service,
    Type,
    Variant,
    Vec,
    field_id,
)
from replica.protocol.errors import Malformed

_TOKEN = re.compile(
    r"\s+|//[^\n]*|/\*.*?\*/|(?P<arrow>->)|(?P<string>\"[^\"]*\")"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>[0-9][0-9_]*)|(?P<sign>[{}();:,=])",
    re.DOTALL,
)
NESTING_MAX = 64


def parse(source: str) -> Interface:
    """Parse an interface. Raises: Malformed, with the offending token."""
    return _Parser(source).interface()


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens: list[str] = []
        position = 0
        while position < len(source):
            match = _TOKEN.match(source, position)
            if match is None:
                raise Malformed(f".did: unexpected {source[position : position + 20]!r}")
            if match.lastgroup:
                self.tokens.append(match.group())
            position = match.end()
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, wanted: str) -> None:
        token = self.next()
        if token != wanted:
            raise Malformed(f".did: expected {wanted!r}, found {token!r}")

    def accept(self, wanted: str) -> bool:
        if self.peek() == wanted:
            self.position += 1
            return True
        return False

    def interface(self) -> Interface:
        found = Interface(source=self.source)
        while self.peek():
            keyword = self.next()
            if keyword == "type":
                name = self.next()
                self.expect("=")
                found.types[name] = self.type()
            elif keyword == "service":
                self._service(found)
            else:
                raise Malformed(f".did: expected type or service, found {keyword!r}")
            self.accept(";")
        self._check_names(found)
        return found

    def _check_names(self, found: Interface) -> None:
        for index, token in enumerate(self.tokens):
            if token == ":" and index + 1 < len(self.tokens):
                name = self.tokens[index + 1]
                known = name in PRIMITIVES or name in found.types or name in _KEYWORDS
                if name[0].isalpha() and not known:
                    raise Malformed(f".did: unknown type {name}")

    def _service(self, found: Interface) -> None:
        if self.peek() not in (":", "{"):
            self.next()
        self.expect(":")
        if self.peek() == "(":
            found.init = self._tuple()
            self.expect("->")
        for name, func in self._methods():
            mode = next((m for m in func.modes if m in ("query", "oneway")), "update")
            found.methods[name] = Method(func.args, func.results, mode)

    def _methods(self) -> list[tuple[str, Func]]:
        methods = []
        self.expect("{")
        while not self.accept("}"):
            name = self.next().strip('"')
            self.expect(":")
            methods.append((name, self._func()))
            self.accept(";")
        return methods

    def _func(self) -> Func:
        args = self._tuple()
        self.expect("->")
        results = self._tuple()
        modes = []
        while self.peek() in ("query", "composite_query", "oneway"):
            modes.append(self.next())
        return Func(args, results, tuple(modes))

    def _tuple(self) -> tuple[Type, ...]:
        self.expect("(")
        items: list[Type] = []
        while not self.accept(")"):
            if self.position + 1 < len(self.tokens) and self.tokens[self.position + 1] == ":":
                self.position += 2  # a named argument: the name is for people
            items.append(self.type())
            self.accept(",")
        return tuple(items)

    def type(self) -> Type:
        self.depth += 1
        if self.depth > NESTING_MAX:
            raise Malformed(".did: types nested too deeply")
        try:
            return self._type()
        finally:
            self.depth -= 1

    def _type(self) -> Type:
        word = self.next()
        if word in PRIMITIVES:
            return Prim(word)
        if word == "blob":
            return Vec(Prim("nat8"))
        if word == "opt":
            return Opt(self.type())
        if word == "vec":
            return Vec(self.type())
        if word == "record":
            return Record(self._fields(positional=True))
        if word == "variant":
            return Variant(self._fields(positional=False))
        if word == "func":
            return self._func()
        if word == "service":
            return Service(tuple(self._methods()))
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word):
            raise Malformed(f".did: expected a type, found {word!r}")
        return Ref(word)

    def _fields(self, *, positional: bool) -> tuple[Field, ...]:
        self.expect("{")
        fields: list[Field] = []
        following = 0
        while not self.accept("}"):
            token = self.peek()
            after = self.tokens[self.position + 1] if self.position + 1 < len(self.tokens) else ""
            if after == ":":
                self.position += 2
                name = token.strip('"')
                number = int(token.replace("_", "")) if token[0].isdigit() else field_id(name)
                fields.append(Field(number, name, self.type()))
                following = number + 1
            elif positional:
                fields.append(Field(following, str(following), self.type()))
                following += 1
            else:
                self.position += 1
                name = token.strip('"')
                fields.append(Field(field_id(name), name, Prim("null")))
            self.accept(";")
        ordered = sorted(fields, key=lambda f: f.id)
        if any(a.id == b.id for a, b in zip(ordered, ordered[1:])):
            raise Malformed(".did: two fields with one id")
        return tuple(ordered)


_KEYWORDS = {"opt", "vec", "record", "variant", "func", "service", "blob"}
