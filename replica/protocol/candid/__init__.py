"""Candid: the interface language of canisters. Types, .did parser, the binary format."""

from replica.protocol.candid.decoding import decode, decode_any
from replica.protocol.candid.encoding import encode
from replica.protocol.candid.parser import parse
from replica.protocol.candid.types import Interface, Method, Type

__all__ = ["Interface", "Method", "Type", "decode", "decode_any", "encode", "parse"]
