"""What a peer need not be sent: what it has shown to hold.

Every share goes to every peer at once, so peers combine them at about the same time as we do. What
can be combined, and blocks of others, are therefore passed on a little later, and only to peers
that have not shown by then that they have them: by sending them, or by signing what presupposes
them. Nothing is withheld for good: who shows nothing is sent everything.
"""

from __future__ import annotations

from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BeaconShare,
    BlockProposal,
    CertificationShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.ids import NodeId

LAZY_NS = 100_000_000
BLOCKS_MAX = 1024
_COMBINED = (Notarization, Finalization, Beacon, Tape)


def is_lazy(artifact: Artifact, node: NodeId) -> bool:
    """Return whether an artifact is passed on later, if at all."""
    if isinstance(artifact, BlockProposal):
        return artifact.maker != node
    return isinstance(artifact, _COMBINED)


class Evidence:
    """What one peer has shown to hold."""

    def __init__(self) -> None:
        self._beacon = self._finalized = self._executed = -1
        self._blocks: dict[bytes, bool] = {}
        """Blocks it has; True: with their notarization."""

    def note(self, artifact: Artifact) -> None:
        """Take in what the peer sent."""
        height = artifact.height
        if isinstance(artifact, NotarizationShare):
            self._note_block(artifact.block, notarized=False)
            self._beacon = max(self._beacon, height - 1)
        elif isinstance(artifact, FinalizationShare | Notarization):
            self._note_block(artifact.block, notarized=True)
        elif isinstance(artifact, BlockProposal):
            self._note_block(artifacts.block_hash(artifact.block), notarized=False)
        elif isinstance(artifact, BeaconShare):
            self._beacon = max(self._beacon, height - 1)
        elif isinstance(artifact, Beacon):
            self._beacon = max(self._beacon, height)
        elif isinstance(artifact, TapeShare):
            self._finalized = max(self._finalized, height - 1)
        elif isinstance(artifact, Finalization):
            self._finalized = max(self._finalized, height)
        elif isinstance(artifact, CertificationShare):
            self._executed = max(self._executed, height)
            self._finalized = max(self._finalized, height)

    def _note_block(self, block: bytes, *, notarized: bool) -> None:
        if len(self._blocks) >= BLOCKS_MAX:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[block] = self._blocks.get(block, False) or notarized

    def covers(self, artifact: Artifact) -> bool:
        """Return whether the peer is known to hold this already."""
        if isinstance(artifact, BlockProposal):
            return artifacts.block_hash(artifact.block) in self._blocks
        if isinstance(artifact, Notarization):
            return self._blocks.get(artifact.block, False)
        if isinstance(artifact, Beacon):
            return artifact.height <= self._beacon
        if isinstance(artifact, Tape):
            return artifact.height <= self._executed
        return isinstance(artifact, Finalization) and artifact.height <= self._finalized
