"""Journals of format 1, as releases before wrote them: read only, and written anew in format 2.

Layout of a batch: length of the body u32, CRC-32 of these four bytes, CRC-32 of the body, the body:
each record with its length u32. Big-endian. There is no header, and no batch names the one before.
"""

from __future__ import annotations

import zlib

from replica.runtime.journal_format import BATCH_BYTES_MAX, split

HEAD_BYTES = 12
PAGE_BYTES = 4096
"""What disks write as a whole. A page that was never written reads as zeros, or ends the file."""


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def begins(data: bytes) -> bool:
    """Return whether a journal of this format may begin so: any that was ever synced does."""
    return len(data) >= HEAD_BYTES and data[4:8] == _checksum(data[:4])


def scan(data: bytes) -> tuple[list[bytes], int, str]:
    """Return the records of the whole batches at the start, where they end, and what is wrong
    there: empty for the end of an interrupted write."""
    records: list[bytes] = []
    position = 0
    while position < len(data):
        head = data[position : position + HEAD_BYTES]
        length = int.from_bytes(head[:4], "big")
        end = position + HEAD_BYTES + length
        is_head = len(head) == HEAD_BYTES and head[4:8] == _checksum(head[:4])
        if is_head and length > BATCH_BYTES_MAX:
            return records, position, f"a batch of {length} bytes at byte {position}"
        if len(head) < HEAD_BYTES or (is_head and end > len(data)):
            follows = is_head and _batch_follows(data, position)
            return records, position, f"damaged at byte {position}" if follows else ""
        body = data[position + HEAD_BYTES : end] if is_head else b""
        if not is_head or head[8:] != _checksum(body):
            is_last = end == len(data) if is_head else not _batch_follows(data, position)
            is_torn = is_last and _has_hole(data, position)
            return records, position, "" if is_torn else f"damaged at byte {position}"
        found = split(body)
        if found is None:
            return records, position, f"a record leaves the batch at byte {position}"
        records += found
        position = end
    return records, position, ""


def _batch_follows(data: bytes, position: int) -> bool:
    """Return whether a whole batch starts anywhere behind: what comes before it was synced."""
    for start in range(position + 1, len(data) - HEAD_BYTES + 1):
        if data[start + 4 : start + 8] == _checksum(data[start : start + 4]):
            end = start + HEAD_BYTES + int.from_bytes(data[start : start + 4], "big")
            if end <= len(data) and data[start + 8 : start + HEAD_BYTES] == _checksum(
                data[start + HEAD_BYTES : end]
            ):
                return True
    return False


def _has_hole(data: bytes, position: int) -> bool:
    """Return whether a page from there on was never written."""
    while position < len(data):
        end = min(len(data), (position // PAGE_BYTES + 1) * PAGE_BYTES)
        if not any(data[position:end]):
            return True
        position = end
    return False
