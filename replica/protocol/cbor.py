"""Strict CBOR: the library does the work, this wrapper refuses what the IC refuses.

`cbor2` ignores trailing bytes, turns tags into Python objects and accepts indefinite lengths; a
signature or a hash must never depend on any of these.
"""

from __future__ import annotations

import io
from typing import Any

import cbor2

from replica.protocol.errors import Malformed

SELF_DESCRIBED = b"\xd9\xd9\xf7"
DEPTH_MAX = 128


def dumps(value: Any, *, tagged: bool = False) -> bytes:
    """Encode canonically (shortest forms, sorted keys); with `tagged`, behind tag 55799."""
    body = cbor2.dumps(value, canonical=True)
    return SELF_DESCRIBED + body if tagged else body


def _refuse(*_: object) -> Any:
    raise Malformed("CBOR tags are not allowed here")


# Every tag that the library would turn into a Python object on its own.
_INTERPRETED = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43000)
_SEMANTICS: dict[int, Any] = {**dict.fromkeys(_INTERPRETED, _refuse), 55799: _refuse}


def loads(data: bytes, *, tagged: bool | None = None, bytes_max: int = 16 << 20) -> Any:
    """Decode one item that fills the whole buffer.

    `tagged`: True demands tag 55799, False refuses it, None takes either.
    Raises: Malformed for anything else: leftovers, other tags, indefinite lengths, depth > 128.
    """
    if len(data) > bytes_max:
        raise Malformed(f"CBOR of {len(data)} bytes; at most {bytes_max} are read")
    has_tag = data.startswith(SELF_DESCRIBED)
    if tagged is not None and has_tag != tagged:
        raise Malformed("CBOR tag 55799 " + ("is missing" if tagged else "is not allowed here"))
    stream = io.BytesIO(data[3:] if has_tag else data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse,
            allow_indefinite=False,
            max_depth=DEPTH_MAX,
            allow_duplicate_keys=False,
            semantic_decoders=_SEMANTICS,
        ).decode()
    except Malformed:
        raise
    except Exception as error:  # the library raises many kinds for bad input
        raise Malformed(f"not CBOR: {error}") from error
    if stream.tell() != len(stream.getvalue()):
        raise Malformed("bytes after the CBOR item")
    return value
