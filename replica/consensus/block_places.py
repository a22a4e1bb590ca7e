"""The places of blocks that wait: two a maker and height, and what two of them prove.

A block that n - f members are known to have signed for has a place whatever else is here: so
equivocators can't keep it out. Two blocks prove that their maker equivocates, wherever they lead:
else one that filled its places with orphans at some nodes could split the members by a good block,
which these don't take and the others prefer.
"""

from __future__ import annotations

from replica.consensus.chain import Chain
from replica.consensus.pool import Pool
from replica.protocol import artifacts
from replica.protocol.artifacts import BlockProposal, EquivocationProof
from replica.protocol.ids import NodeId

BLOCKS_MAX = 2
"""Blocks of one maker and height: two are evidence."""


def equivocation_proof(
    like: BlockProposal, one: tuple[bytes, bytes], two: tuple[bytes, bytes]
) -> EquivocationProof:
    """Return the proof of two blocks (hash, signature) of the maker, height and run of `like`."""
    return EquivocationProof(like.epoch, like.height, like.block.run, like.maker, *one, *two)


class BlockPlaces:
    def __init__(self, chain: Chain, pool: Pool) -> None:
        self._chain, self._pool = chain, pool
        self._seen: dict[int, dict[NodeId, dict[bytes, bytes]]] = {}
        """Signatures by the hashes of blocks that had a place, by height and maker: also of those
        that were found to be bad."""

    def take(self, proposal: BlockProposal, now_ns: int) -> bool:
        """Whether a block is one of its maker's first two, or is known to be notarized.

        `proposal`: of this run, and signed by its maker.
        """
        pool, height, maker = self._pool, proposal.height, proposal.maker
        hash_ = artifacts.block_hash(proposal.block)
        seen = self._seen_at(height).setdefault(maker, {})
        for known in pool.validated.owned(BlockProposal, height, maker):
            seen[artifacts.block_hash(known.block)] = known.signature
        if hash_ in seen:
            return True
        if len(seen) >= BLOCKS_MAX and not pool.is_proven(height, hash_):
            return False
        seen[hash_] = proposal.signature
        if len(seen) == BLOCKS_MAX:
            self._prove(proposal, seen, now_ns)
        return True

    def _prove(self, proposal: BlockProposal, signatures: dict[bytes, bytes], now_ns: int) -> None:
        """Have the proof judged as if it had come. No quota bears it: there is one a place."""
        proof = equivocation_proof(proposal, *signatures.items())
        if not self._pool.validated.owned(EquivocationProof, proof.height, proof.maker):
            self._pool.unvalidated.insert(proof, now_ns)

    def _seen_at(self, height: int) -> dict[NodeId, dict[bytes, bytes]]:
        if height not in self._seen:
            finalized = self._chain.finalized_height
            for old in [h for h in self._seen if h <= finalized]:
                del self._seen[old]
        return self._seen.setdefault(height, {})
