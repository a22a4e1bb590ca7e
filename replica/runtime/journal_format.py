"""The bytes of a journal: which batch follows which, and what a crash may have left of the last.

Pure: reads from whatever can be read and sought in. `replica.runtime.journal` has the files.

Layout, big-endian. Header: magic (7 bytes), format u8, salt (8), length of the identity u16, the
identity (UTF-8), check (16). Batch: salt (8), sequence number u64, length of the body u32, check of
the batch before (16; of the header for the first), hash of the body (16), check (16), the body:
each record with its length u32. A check is the hash of all that stands before it in its header or
head; hashes are SHA-256, cut to 16 bytes: what a disk does by chance is missed once in 2^128, and
who chooses records gains nothing by two that share a hash, since nobody else reads the file.

So each batch names the one before it, and that one's whole content. A batch that is missing, there
twice, out of its place or of another journal is seen by its head. A batch is appended only after
the one before it was synced, so an interrupted write explains no more than this: the last batch is
not whole, and nothing comes after it. Whether something does is decided by heads with this
journal's salt and by lengths, never by what records hold: the salt is drawn when the file is
written, so who chooses records can't know it.

What can't be told apart: an interrupted write, and rot in the last batch alone or in its head.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, NamedTuple

from replica.protocol.errors import LimitExceeded, Malformed

MAGIC = b"\x89journl"
"""Begins no journal of format 1: its first byte would be the length of a batch of 2 GiB."""
FORMAT = 2
SALT_BYTES, HASH_BYTES = 8, 16
IDENTITY_BYTES_MAX = 400
"""With it a header fits a sector of 512 bytes."""
_HEADER = struct.Struct(f">{len(MAGIC)}sB{SALT_BYTES}sH")
_HEAD = struct.Struct(f">{SALT_BYTES}sQI{HASH_BYTES}s{HASH_BYTES}s")
HEAD_BYTES = _HEAD.size + HASH_BYTES
BATCH_BYTES_MAX = 64 << 20
"""Of a body. Nothing longer is read, so nothing longer is written."""
RECORD_BYTES_MAX = BATCH_BYTES_MAX - 4
WINDOW_BYTES = 1 << 20
"""So much is looked at at a time for what follows."""


def digest(data: bytes) -> bytes:
    return sha256(data).digest()[:HASH_BYTES]


class Chain(NamedTuple):
    """Where a journal goes on."""

    salt: bytes
    position: int
    """Where the next batch begins."""
    sequence: int
    """Its number, from 0."""
    link: bytes
    """Check of what it follows."""


@dataclass(frozen=True)
class Found:
    """What a journal holds."""

    records: list[bytes]
    chain: Chain
    """After the last whole batch."""
    damage: str
    """What is wrong there; empty: nothing, or an interrupted write."""


# --- headers ---------------------------------------------------------------------------------


def header(identity: str, salt: bytes) -> bytes:
    """Return how a journal begins."""
    text = identity.encode()
    assert len(text) <= IDENTITY_BYTES_MAX and len(salt) == SALT_BYTES
    start = _HEADER.pack(MAGIC, FORMAT, salt, len(text)) + text
    return start + digest(start)


def after_header(raw: bytes, salt: bytes) -> Chain:
    return Chain(salt, len(raw), 0, raw[-HASH_BYTES:])


def read_header(file: BinaryIO) -> tuple[str, Chain] | None:
    """Return a journal's identity, and where its batches begin; None: it has another format.

    Raises: Malformed for a header that is damaged, or of a later format.
    """
    file.seek(0)
    start = file.read(_HEADER.size)
    if not start.startswith(MAGIC):
        return None
    if len(start) < _HEADER.size:
        raise Malformed("its header is cut off")
    _, version, salt, length = _HEADER.unpack(start)
    if version != FORMAT:
        raise Malformed(f"it has format {version}; this release reads formats 1 and {FORMAT}")
    raw = start + file.read(min(length, IDENTITY_BYTES_MAX) + HASH_BYTES)
    if digest(raw[:-HASH_BYTES]) != raw[-HASH_BYTES:]:
        raise Malformed("its header is damaged")
    return raw[_HEADER.size : -HASH_BYTES].decode(), after_header(raw, salt)


# --- writing ---------------------------------------------------------------------------------


def grouped(records: Iterable[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    """Yield records in groups whose bodies have so many bytes; a longer record has its own.

    Raises: LimitExceeded for a record that could not be read back.
    """
    group: list[bytes] = []
    size = 0
    for record in records:
        if len(record) > RECORD_BYTES_MAX:
            raise LimitExceeded(f"a record of {len(record)} bytes: {RECORD_BYTES_MAX} is the most")
        if group and size + 4 + len(record) > bytes_max:
            yield group
            group, size = [], 0
        group.append(record)
        size += 4 + len(record)
    if group:
        yield group


def seal(chain: Chain, records: Iterable[bytes]) -> tuple[bytes, Chain]:
    """Return a batch as it lies in the file, and where the journal goes on after it."""
    body = b"".join([len(r).to_bytes(4, "big") + r for r in records])
    fields = (chain.salt, chain.sequence, len(body), chain.link, digest(body))
    start = _HEAD.pack(*fields)
    check = digest(start)
    end = chain.position + HEAD_BYTES + len(body)
    return start + check + body, Chain(chain.salt, end, chain.sequence + 1, check)


def encode(identity: str, salt: bytes, batches: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield the parts of a whole journal."""
    start = header(identity, salt)
    yield start
    chain = after_header(start, salt)
    for records in batches:
        data, chain = seal(chain, records)
        yield data


# --- reading ---------------------------------------------------------------------------------


def scan(file: BinaryIO, chain: Chain, size: int) -> Found:
    """Read batch after batch of the first `size` bytes: a writer may add more meanwhile."""
    records: list[bytes] = []
    while chain.position < size:
        found = _next(file, chain, size)
        if isinstance(found, str):
            return Found(records, chain, found)
        records += found[0]
        chain = found[1]
    return Found(records, chain, "")


def _next(file: BinaryIO, chain: Chain, size: int) -> tuple[list[bytes], Chain] | str:
    """Return the next batch, or what is wrong with it; empty for an interrupted write."""
    file.seek(chain.position)
    head = file.read(min(HEAD_BYTES, size - chain.position))
    damaged = f"damaged at byte {chain.position}"
    if len(head) < HEAD_BYTES or digest(head[:-HASH_BYTES]) != head[-HASH_BYTES:]:
        return damaged if _follows(file, chain, size) else ""
    salt, sequence, length, link, body_hash = _HEAD.unpack(head[:-HASH_BYTES])
    if salt != chain.salt:
        return f"a batch of another journal at byte {chain.position}"
    if (sequence, link) != (chain.sequence, chain.link):
        return (
            f"batch {sequence} stands where batch {chain.sequence} should, at byte {chain.position}"
        )
    end = chain.position + HEAD_BYTES + length
    if length > BATCH_BYTES_MAX:
        return f"a batch of {length} bytes at byte {chain.position}"
    if end > size:
        return damaged if _follows(file, chain, size) else ""
    body = file.read(length)
    if digest(body) != body_hash:
        return damaged if end < size else ""
    records = split(body)
    if records is None:
        return f"a record leaves the batch at byte {chain.position}"
    return records, Chain(salt, end, sequence + 1, head[-HASH_BYTES:])


def body_bytes(head: bytes) -> int:
    """Return how long the body is that a sound head announces."""
    return int(_HEAD.unpack_from(head)[2])


def split(body: bytes) -> list[bytes] | None:
    """Return the records of a batch; None when its lengths lead out of it."""
    out = []
    start = 0
    while start < len(body):
        begin = start + 4
        start = begin + int.from_bytes(body[start:begin], "big")
        if start > len(body):
            return None
        out.append(body[begin:start])
    return out


def _follows(file: BinaryIO, chain: Chain, size: int) -> bool:
    """Return whether the head of a batch of this journal lies anywhere behind."""
    position = chain.position + 1
    while position < size:
        file.seek(position)
        window = file.read(min(WINDOW_BYTES + HEAD_BYTES, size - position))
        at = window.find(chain.salt)
        while 0 <= at < WINDOW_BYTES:
            head = window[at : at + HEAD_BYTES]
            if len(head) == HEAD_BYTES and digest(head[:-HASH_BYTES]) == head[-HASH_BYTES:]:
                return True
            at = window.find(chain.salt, at + 1)
        position += WINDOW_BYTES
    return False
