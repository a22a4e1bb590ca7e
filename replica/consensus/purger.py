"""Purger: forgets what can no longer matter, some heights at a time."""

from __future__ import annotations

from replica.consensus.pool import Mutation, PurgeBelow
from replica.consensus.reader import CHAIN_LENGTH_MIN, Reader
from replica.protocol.artifacts import (
    Beacon,
    BeaconShare,
    BlockProposal,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.ids import Height

LONG_LIVED = (BlockProposal, Notarization, Finalization, Beacon, Tape)
ROUND = (NotarizationShare, FinalizationShare, EquivocationProof)


SLACK = 8
"""Heights that pile up before a kind is purged: each purge costs more than keeping them."""
STRIDE = 4
"""Heights after which the purger looks again."""


def make(reader: Reader) -> list[Mutation]:
    chain, pool = reader.chain, reader.pool
    finalized, cup = chain.finalized_height, chain.cup.height
    executed = reader.context.state.latest_height
    progress = (
        *(h // STRIDE for h in (finalized, executed, chain.beacon_height)),
        cup,
        chain.summary_at(finalized).height,
    )
    if progress == chain.purged_at:
        return []  # what has become old since then is hardly worth a look
    kept = max(CHAIN_LENGTH_MIN, chain.cup.summary.interval_length + 1)
    wanted = [
        (Height(cup - kept), LONG_LIVED, True, True),
        (Height(finalized + 1), ROUND, True, False),
        (Height(min(finalized, executed) + 1), (TapeShare,), True, False),
        (cup, (Cup,), True, False),
        (Height(cup + 1), (CupShare,), True, True),
        (Height(cup + 1), (Cup,), False, True),
        (Height(finalized + 1), (*ROUND, Finalization, Notarization, BlockProposal), False, True),
        (Height(executed + 1), (Tape, TapeShare), False, True),
        (chain.summary_at(finalized).height, (DkgDealing, DkgComplaint), True, True),
        (Height(chain.beacon_height + 1), (Beacon,), False, True),
        (Height(chain.beacon_height + 1), (BeaconShare,), True, True),
    ]
    out: list[Mutation] = []
    for height, kinds, validated, unvalidated in wanted:
        sections = [
            s for s, on in ((pool.validated, validated), (pool.unvalidated, unvalidated)) if on
        ]
        if any(s.has_below(height - SLACK, kinds) for s in sections):
            out.append(PurgeBelow(height, kinds, validated, unvalidated))
    if not out:
        chain.purged_at = progress
    return out
