"""What the drill on disks takes for a contradiction, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.lab.disks.witness import Witness
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    CertificationShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
)
from replica.protocol.ids import Epoch, Height, NodeId, Principal
from replica.runtime import journal
from replica.runtime.journal import Journal

A, B = NodeId(Principal(b"a" * 29)), NodeId(Principal(b"b" * 29))
ONE, OTHER = b"1" * 32, b"2" * 32
FIRST, NINTH = Epoch(1), Height(9)


def notarizes(block: bytes, height: Height = NINTH) -> Artifact:
    return NotarizationShare(FIRST, height, block, A, b"")


def finalizes(block: bytes, epoch: Epoch = FIRST) -> Artifact:
    return FinalizationShare(epoch, NINTH, block, A, b"")


def certifies(root: bytes) -> Artifact:
    return CertificationShare(FIRST, NINTH, root, b"", A, b"")


class Pool:
    """A node's journal of one run, and what a witness sees of it."""

    def __init__(self, folder: Path, witness: Witness, name: str = "pool-1-0-r", node: NodeId = B):
        self.path, self.witness, self.node = folder / f"{name}.journal", witness, node
        self.journal = Journal(self.path)

    def append(self, *said: Artifact) -> None:
        self.journal.append([artifacts.encode(a) for a in said])
        self.look()

    def rewrite(self, *said: Artifact) -> None:
        self.journal.rewrite([artifacts.encode(a) for a in said])
        self.look()

    def look(self, *, at_rest: bool = False) -> None:
        self.witness.take(self.path, self.node, journal.read(self.path), at_rest=at_rest)


@pytest.mark.parametrize(
    "said",
    [
        [finalizes(ONE), finalizes(OTHER)],
        [certifies(ONE), certifies(OTHER)],
        [notarizes(ONE), notarizes(OTHER), finalizes(ONE)],
        [notarizes(OTHER), finalizes(ONE)],
        [Notarization(FIRST, NINTH, OTHER, (B, A), b""), finalizes(ONE)],
        [notarizes(OTHER), Finalization(FIRST, NINTH, ONE, (A,), b"")],
    ],
)
def test_what_no_honest_node_signs_is_a_contradiction(
    tmp_path: Path, said: Sequence[Artifact]
) -> None:
    witness = Witness()
    pool = Pool(tmp_path, witness)
    for artifact in said:
        pool.append(artifact)
    assert [s.signer for s in witness.contradictions()] == [A]


@pytest.mark.parametrize(
    "said",
    [
        [notarizes(ONE), notarizes(OTHER)],
        [notarizes(ONE), finalizes(ONE), finalizes(ONE)],
        [notarizes(OTHER, Height(8)), finalizes(ONE)],
        [finalizes(ONE), finalizes(OTHER, Epoch(2))],
    ],
)
def test_what_honest_nodes_sign_is_none(tmp_path: Path, said: Sequence[Artifact]) -> None:
    witness = Witness()
    Pool(tmp_path, witness).append(*said)
    assert not witness.contradictions()


def test_each_run_is_judged_by_itself(tmp_path: Path) -> None:
    witness = Witness()
    Pool(tmp_path, witness).append(finalizes(ONE))
    Pool(tmp_path, witness, "pool-1-100-s").append(finalizes(OTHER))
    assert not witness.contradictions()


def test_what_a_node_may_not_have_synced_binds_it_only_once_it_is_known_to_be(
    tmp_path: Path,
) -> None:
    """A power cut may take the last batch of its own journal, and the node signs another block."""
    witness = Witness()
    pool = Pool(tmp_path, witness, node=A)
    pool.append(finalizes(ONE))
    pool.rewrite()  # the disk came back without it
    pool.append(finalizes(OTHER))
    pool.append(certifies(ONE))
    assert not witness.contradictions()
    pool.append(finalizes(ONE))
    pool.look(at_rest=True)
    assert witness.contradictions()


def test_what_a_file_written_anew_still_holds_was_synced(tmp_path: Path) -> None:
    witness = Witness()
    pool = Pool(tmp_path, witness, node=A)
    pool.append(finalizes(ONE))
    pool.rewrite(finalizes(ONE))
    pool.rewrite()
    pool.append(finalizes(OTHER))
    pool.append(certifies(ONE))
    assert witness.contradictions()
