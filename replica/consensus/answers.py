"""What peers are sent of what is valid here: when they connect, and when they ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replica.consensus.pool import Pool
from replica.protocol.artifacts import KINDS, SHARES, Artifact, BlockProposal, Cup, encode
from replica.protocol.ids import NodeId

ANSWER_BYTES_MAX = 8 << 20
"""What a peer is sent for one question, one artifact more at most."""


def is_gossiped(artifact: Artifact, node: NodeId) -> bool:
    """Full artifacts are passed on by everyone, shares by their signer."""
    return not isinstance(artifact, SHARES) or artifact.signer == node


def offered(pool: Pool, certifications: Pool, node: NodeId) -> list[Artifact]:
    """Return all that a newly connected peer should be sent, the CUP first."""
    rest = [a for a in pool.validated if not isinstance(a, Cup)]
    rest.sort(key=lambda a: a.height)
    both = [*pool.validated.of_kind(Cup), *rest, *certifications.validated]
    return [a for a in both if is_gossiped(a, node)]


def answer(
    pools: Sequence[Pool], node: NodeId, kinds: Sequence[int], first: int, last: int
) -> list[Artifact]:
    """Return what a peer that asks is sent: of these kinds (indices) and heights, lowest first.

    Blocks come after all else, as far as `ANSWER_BYTES_MAX` goes: who lacks more asks again.
    """
    found = [
        a
        for kind in [KINDS[k] for k in sorted(set(kinds)) if 0 <= k < len(KINDS)]
        for pool in pools
        for height in pool.validated.heights(kind)
        if first <= height <= last
        for a in pool.validated.at(kind, height)
        if is_gossiped(a, node)
    ]
    found.sort(key=lambda a: (isinstance(a, BlockProposal), a.height))
    return list(_within(found, ANSWER_BYTES_MAX))


def _within(artifacts: Iterable[Artifact], bytes_max: int) -> Iterable[Artifact]:
    size_bytes = 0
    for artifact in artifacts:
        if size_bytes >= bytes_max:
            return
        size_bytes += len(encode(artifact))
        yield artifact
