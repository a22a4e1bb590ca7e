"""Who contradicted himself, out of the journals that nodes had."""

from __future__ import annotations

from pathlib import Path

from cli.lab.statements import Collected, Statements
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
)
from replica.protocol.ids import Epoch, Height, NodeId, Principal
from replica.runtime.journal import Journal

ONE, TWO = (NodeId(Principal(bytes([i]) * 29)) for i in (1, 2))
A, B = b"a" * 32, b"b" * 32


def notarized(block: bytes, node: NodeId = ONE) -> NotarizationShare:
    return NotarizationShare(Epoch(1), Height(7), block, node, b"s")


def final(block: bytes, node: NodeId = ONE) -> FinalizationShare:
    return FinalizationShare(Epoch(1), Height(7), block, node, b"s")


def told(*signed: Artifact) -> list[str]:
    found = Statements()
    for artifact in signed:
        found.note("pool-1-0-v1", artifact)
    return [what for _, _, what in found.contradictions([ONE])]


def test_two_notarized_blocks_contradict_nothing() -> None:
    assert told(notarized(A), notarized(B), notarized(A)) == []
    assert told(notarized(A), final(A), final(A)) == []


def test_a_finalization_beside_another_blocks_notarization_is_a_contradiction() -> None:
    assert told(notarized(A), notarized(B), final(A)) == ["finalized a block and notarized another"]


def test_two_finalizations_are_a_contradiction() -> None:
    assert told(final(A), final(B)) == ["finalized 2 blocks"]


def test_full_ones_speak_for_whom_they_name() -> None:
    aggregate = Notarization(Epoch(1), Height(7), B, (ONE, TWO), b"s")
    assert told(aggregate, final(A)) == ["finalized a block and notarized another"]
    assert told(Finalization(Epoch(1), Height(7), A, (TWO,), b"s"), final(B)) == []


def test_another_runs_statements_contradict_nothing() -> None:
    found = Statements()
    found.note("pool-1-0-v1", final(A))
    found.note("pool-1-100-v2", final(B))
    assert found.contradictions([ONE]) == []


def test_journals_are_kept_when_nodes_unlink_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = data / "pool-1-0-v1.journal"
    collected = Collected(tmp_path / "journals")
    for block in (A, B):
        journal = Journal(path)
        journal.append([artifacts.encode(final(block))])
        collected.collect("app-0", data)
        collected.collect("app-0", data)
        path.unlink()
    found = collected.statements()
    assert [what for _, _, what in found.contradictions([ONE])] == ["finalized 2 blocks"]
