"""Finalizer: the safety rule.

A node signs for a block only if it is the one notarized block of its height here, and the only one
for which this node ever signed a notarization share there.
"""

from __future__ import annotations

from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader, Status
from replica.protocol import artifacts
from replica.protocol.artifacts import FinalizationShare, NotarizationShare
from replica.protocol.ids import Height


def make(reader: Reader) -> list[Mutation]:
    if reader.status is Status.HALTED:
        return []
    heights = range(reader.chain.finalized_height + 1, reader.chain.notarized_height + 1)
    return [AddValidated(s) for h in heights if (s := _share(reader, h)) is not None]


def _share(reader: Reader, height: int) -> FinalizationShare | None:
    validated, chain = reader.pool.validated, reader.chain
    notarized = chain.notarized.get(height, [])
    if len(notarized) != 1 or notarized[0] not in chain.blocks:
        return None
    if reader.node not in reader.settings_at(height).members:
        return None
    hash_ = notarized[0]
    if reader.has_signed(FinalizationShare, height):
        return None
    mine = [s for s in validated.at(NotarizationShare, height) if s.signer == reader.node]
    if any(s.block != hash_ for s in mine):
        return None
    epoch = chain.cup.epoch
    message = artifacts.finalization_message(
        reader.subnet, epoch, reader.run, Height(height), hash_
    )
    signature = reader.context.scheme.sign_multi(reader.context.keys.committee, message)
    return FinalizationShare(epoch, Height(height), hash_, reader.node, signature)
