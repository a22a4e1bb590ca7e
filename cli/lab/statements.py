"""Who signed what, out of the pool journals of all nodes, and who contradicted himself.

An honest node makes one block a height, and whoever signed a finalization has notarized nothing
else there and finalizes nothing else, in one epoch and run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    CertificationShare,
    CupShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
)
from replica.protocol.ids import NodeId
from replica.runtime import journal

BLOCK, NOTARIZATION, FINALIZATION = "block", "notarization", "finalization"
CERTIFICATION, PACKAGE = "certification", "package"

Place = tuple[NodeId, str, int]
"""Signer, run (an epoch's, as a journal's name tells it), height."""


@dataclass
class Statements:
    """Blocks by hash that each signer made, notarized and finalized at each height."""

    by_place: dict[Place, dict[str, set[bytes]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )

    def note(self, run: str, artifact: Artifact) -> None:
        """Take in what an artifact shows that somebody signed."""
        for signer, kind, block in signed(artifact):
            self.by_place[signer, run, artifact.height][kind].add(block)

    def contradictions(self, nodes: Iterable[NodeId]) -> list[tuple[NodeId, int, str]]:
        """Return what these nodes signed that no honest one does: (signer, height, what)."""
        wanted, found = set(nodes), []
        for (signer, _, height), said in sorted(self.by_place.items()):
            if signer in wanted:
                found += [(signer, height, what) for what in _faults(said)]
        return found


def signed(artifact: Artifact) -> Iterator[tuple[NodeId, str, bytes]]:
    """Yield what an artifact shows to have been signed: (signer, kind, content).

    Full ones name their signers.
    """
    match artifact:
        case BlockProposal():
            yield artifact.maker, BLOCK, artifacts.block_hash(artifact.block)
        case NotarizationShare():
            yield artifact.signer, NOTARIZATION, artifact.block
        case FinalizationShare():
            yield artifact.signer, FINALIZATION, artifact.block
        case CertificationShare():
            yield artifact.signer, CERTIFICATION, artifact.root
        case CupShare():
            yield artifact.signer, PACKAGE, artifact.content_hash
        case Notarization():
            yield from ((s, NOTARIZATION, artifact.block) for s in artifact.signers)
        case Finalization():
            yield from ((s, FINALIZATION, artifact.block) for s in artifact.signers)


def _faults(said: dict[str, set[bytes]]) -> Iterator[str]:
    made, notarized, final = (said.get(k, set()) for k in (BLOCK, NOTARIZATION, FINALIZATION))
    if len(made) > 1:
        yield f"made {len(made)} blocks"
    if len(final) > 1:
        yield f"finalized {len(final)} blocks"
    elif final and notarized - final:
        yield "finalized a block and notarized another"


class Collected:
    """Hard links to every pool journal that nodes have had: they unlink them at each package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._known: set[tuple[str, int]] = set()

    def collect(self, node: str, data: Path) -> None:
        """Link what is in a node's folder of data now and was not before."""
        for path in sorted(data.glob("pool-*.journal")):
            try:
                number = path.stat().st_ino
                if (node, number) in self._known:
                    continue
                os.link(path, self.folder / f"{path.stem}~{node}~{number}")
            except FileNotFoundError:
                continue  # it was just replaced: the next look finds what is there now
            self._known.add((node, number))

    def statements(self) -> Statements:
        """Read all of them. What was being written when a node was killed is not read."""
        found = Statements()
        for path in sorted(self.folder.iterdir()):
            run = path.name.split("~")[0]
            for record in journal.read(path).records:
                found.note(run, artifacts.decode(record))
        return found
