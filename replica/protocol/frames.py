"""What replicas put around what they send each other: one byte of kind, canonical records.

An artifact has the tag of its run before it (`artifacts.run_tag`).
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import canonical
from replica.protocol.errors import LimitExceeded
from replica.protocol.signed import SIGNED_BYTES_MAX, Question, Signed

FRAME_BYTES_MAX = 8 << 20
HEAD_BYTES = 5
"""Of a frame: its length in four bytes, and its kind."""

ARTIFACT, INGRESS, ADVERT, ASK, REQUEST, RESPONSE, SIGNED_REQUEST, SIGNED_RESPONSE = range(1, 9)

ADVERTS_MAX = 16
REQUEST_BYTES_MAX = 4096
"""Adverts, questions and requests are small."""
SIGNED_RESPONSE_BYTES_MAX = SIGNED_BYTES_MAX + 64


@dataclass(frozen=True, slots=True)
class Advert:
    """Checkpoints this peer can serve: (height, root), `ADVERTS_MAX` at most."""

    states: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for what a peer holds of these kinds (indices into `artifacts.KINDS`) and heights."""

    kinds: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Ask for a part of a checkpoint: kind `meta`, `sub` (index) or `chunk` (index)."""

    number: int
    height: int
    root: bytes
    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class StateResponse:
    number: int
    data: bytes | None
    """None: this peer does not have it."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """Ask for what a peer holds that the asking node signed; see `consensus.old_copy`."""

    number: int
    question: Question


@dataclass(frozen=True, slots=True)
class SignedResponse:
    number: int
    answer: Signed | None
    """None: this peer is in another run."""


def read_signed(body: bytes) -> SignedResponse:
    """Raises: Malformed, LimitExceeded when it is more than `Signed` allows."""
    if len(body) > SIGNED_RESPONSE_BYTES_MAX:
        raise LimitExceeded(f"an answer of {len(body)} bytes")
    response = canonical.decode(SignedResponse, body)
    if response.answer is not None:
        response.answer.check()
    return response


def frame(kind: int, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + bytes([kind]) + body


def record_frame(kind: int, record: object) -> bytes:
    return frame(kind, canonical.encode(record))
