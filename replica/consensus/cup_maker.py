"""CUP maker: signs the state of a finished interval."""

from __future__ import annotations

from replica.consensus.aggregator import content_at
from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader, Status
from replica.protocol import cup
from replica.protocol.artifacts import CupShare, Summary
from replica.protocol.ids import Height


def make(reader: Reader) -> list[Mutation]:
    """Sign the newest finalized summary whose state is certified for all that may still need it.

    A halting subnet need not wait for that: its last blocks all carry an older certified height.
    Nor is it the newest summary then: heights go on, but what is executed ends where it halts.
    One that stands still for its next release still signs: else it would never leave.
    """
    if reader.is_barred:
        return []
    chain = reader.chain
    certified = chain.finalized_tip.block.context.certified_height
    for height in chain.summary_heights():
        if certified < height and reader.status is Status.RUNNING:
            continue
        content = content_at(reader, height)
        if content is not None:
            return _share(reader, height, content)
    return []


def _share(reader: Reader, height: int, content: bytes) -> list[Mutation]:
    entry = reader.chain.finalized_block(height)
    assert entry is not None and isinstance(entry.payload, Summary)
    if reader.has_signed(CupShare, height):
        return []
    secret = reader.share_of(entry.payload.high)
    if secret is None:
        return []
    signature = reader.context.scheme.sign_threshold(secret, cup.signed_message(content))
    share = CupShare(
        reader.chain.cup.epoch, Height(height), cup.content_hash(content), reader.node, signature
    )
    return [AddValidated(share)]
