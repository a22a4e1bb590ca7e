"""Protobuf messages of the IC (`ic.proto`, generated) and the one way to parse them."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from replica.protocol.errors import Malformed

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message. Raises: Malformed."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise Malformed(f"not a {kind.__name__}: {error}") from error
    return message


def serialize(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
