"""Candid: the interface language of canisters. Types, .did parser, binary codec."""

from replica.protocol.candid.codec import decode, decode_any, encode
from replica.protocol.candid.parser import parse
from replica.protocol.candid.types import Interface, Method, Type

__all__ = ["Interface", "Method", "Type", "decode", "decode_any", "encode", "parse"]
