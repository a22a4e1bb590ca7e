"""Reading frames from a peer, whose lengths are bounded; what they hold is in `protocol.frames`."""

from __future__ import annotations

import asyncio

from replica.protocol.errors import LimitExceeded, Malformed
from replica.protocol.frames import (
    ADVERT,
    ADVERTS_MAX,
    ARTIFACT,
    ASK,
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    INGRESS,
    REQUEST,
    REQUEST_BYTES_MAX,
    RESPONSE,
    SIGNED_REQUEST,
    SIGNED_RESPONSE,
    SIGNED_RESPONSE_BYTES_MAX,
    Advert,
    Ask,
    SignedRequest,
    SignedResponse,
    StateRequest,
    StateResponse,
    frame,
    read_signed,
    record_frame,
)


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Raises: LimitExceeded, Malformed, asyncio.IncompleteReadError."""
    head = await reader.readexactly(HEAD_BYTES)
    length = int.from_bytes(head[:4], "big")
    if length > FRAME_BYTES_MAX:
        raise LimitExceeded(f"a frame of {length} bytes")
    if not ARTIFACT <= head[4] <= SIGNED_RESPONSE:
        raise Malformed(f"a frame of unknown kind {head[4]}")
    return head[4], await reader.readexactly(length)


__all__ = [
    "ADVERT",
    "ADVERTS_MAX",
    "ARTIFACT",
    "ASK",
    "FRAME_BYTES_MAX",
    "INGRESS",
    "REQUEST",
    "REQUEST_BYTES_MAX",
    "RESPONSE",
    "SIGNED_REQUEST",
    "SIGNED_RESPONSE",
    "SIGNED_RESPONSE_BYTES_MAX",
    "Advert",
    "Ask",
    "SignedRequest",
    "SignedResponse",
    "StateRequest",
    "StateResponse",
    "frame",
    "read_frame",
    "read_signed",
    "record_frame",
]
