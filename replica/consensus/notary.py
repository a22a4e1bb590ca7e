"""Notary: signs the best blocks of the round, each after its rank's delay."""

from __future__ import annotations

from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader, Status
from replica.protocol import artifacts
from replica.protocol.artifacts import BlockProposal, NotarizationShare


def make(reader: Reader) -> list[Mutation]:
    if reader.status is Status.HALTED:
        return []
    chain = reader.chain
    height = chain.notarized_height + 1
    proposals = reader.proposals_at(height)
    start = reader.round_start_ns(height) if proposals else None
    if start is None:
        return []
    if reader.node not in reader.settings_at(height).members:
        return []
    out = reader.disqualified(height)
    candidates = [p for p in proposals if p.maker not in out]
    if not candidates:
        return []
    rank = min(p.block.rank for p in candidates)
    delay = reader.notary_delay_ns(rank, height)
    if delay is None or not reader.is_due(start + delay):
        return []
    return [
        AddValidated(_share(reader, p))
        for p in candidates
        if p.block.rank == rank and not _signed(reader, p)
    ]


def _signed(reader: Reader, proposal: BlockProposal) -> bool:
    hash_ = artifacts.block_hash(proposal.block)
    shares = reader.pool.validated.at(NotarizationShare, proposal.height)
    return any(s.signer == reader.node and s.block == hash_ for s in shares)


def _share(reader: Reader, proposal: BlockProposal) -> NotarizationShare:
    hash_ = artifacts.block_hash(proposal.block)
    message = artifacts.notarization_message(
        reader.subnet, proposal.epoch, reader.run, proposal.height, hash_
    )
    signature = reader.context.scheme.sign_multi(reader.context.keys.committee, message)
    return NotarizationShare(proposal.epoch, proposal.height, hash_, reader.node, signature)
