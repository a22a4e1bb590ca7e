"""What the nodes of a subnet have signed, as their pools' journals show, and what contradicts it.

A journal is looked at while its node runs and after its disk came back. What it holds of other
nodes was sent by them. What it holds of its own node may have been sent once it is synced: that is
when a later batch follows it, when it was written anew, or when the disk came back with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cli.lab.layout import SubnetEntry
from cli.lab.statements import BLOCK, CERTIFICATION, FINALIZATION, NOTARIZATION, PACKAGE, signed
from replica.protocol import artifacts
from replica.protocol.artifacts import Artifact
from replica.protocol.errors import Malformed
from replica.protocol.ids import NodeId
from replica.runtime import journal
from replica.runtime.journal_format import Found

HEIGHTS_KEPT = 2_000
"""Below the newest; pools hold no more than a few intervals, so nothing is said of others again."""
BINDING = (BLOCK, FINALIZATION, CERTIFICATION, PACKAGE)
"""Of these a signer makes one a height; several blocks may be notarized, unless one is final."""


class Statement(NamedTuple):
    """What a signature is about, apart from its content."""

    epoch: int
    run: str
    height: int
    signer: NodeId
    kind: str


Said = tuple[Statement, bytes]


def statements(artifact: Artifact, run: str) -> list[Said]:
    """Return what an artifact of a run's pool proves to have been signed: statements, contents."""
    at = (artifact.epoch, run, artifact.height)
    return [(Statement(*at, signer, kind), content) for signer, kind, content in signed(artifact)]


@dataclass
class _Looked:
    """What the last look at a journal found."""

    salt: bytes = b""
    """Of the file: one that was written anew has another."""
    batches: int = 0
    records: frozenset[bytes] = frozenset()
    unsure: list[tuple[bytes, Said]] = field(default_factory=list)
    """Of its own node, in what may be its last batch, with the record each is in."""


class Witness:
    def __init__(self) -> None:
        self.said: dict[Statement, set[bytes]] = {}
        self._looked: dict[Path, _Looked] = {}
        self.newest = 0

    def look(self, subnet: SubnetEntry, *, at_rest: bool = False) -> None:
        """Read all journals of a subnet's pools. `at_rest`: no node runs, the disk is all there is.

        Raises: Malformed for a journal that is damaged.
        """
        for node in subnet.nodes:
            for path in sorted((node.folder / "data").glob("pool-*.journal")):
                try:
                    found = journal.read(path)
                except FileNotFoundError:  # it went meanwhile, with its run
                    continue
                if found.damage:
                    raise Malformed(f"{path}: {found.damage}")
                self.take(path, NodeId(node.id), found, at_rest=at_rest)
        self._forget()

    def take(self, path: Path, node: NodeId, found: Found, *, at_rest: bool) -> None:
        """Take in what one look at a node's journal found."""
        before = self._looked.get(path, _Looked())
        now = _Looked(found.chain.salt, found.chain.sequence, frozenset(found.records))
        if not at_rest:
            now.unsure = self._settle(before, now)
        for record in found.records:
            if record not in before.records or at_rest:
                self._take_record(record, path, node, now, at_rest)
        self._looked[path] = now

    def _settle(self, before: _Looked, now: _Looked) -> list[tuple[bytes, Said]]:
        """Take over what is known to be synced by now; return what still is not."""
        if now.salt == before.salt and now.batches == before.batches:
            return before.unsure
        for record, said in before.unsure:
            if now.salt == before.salt or record in now.records:
                self.add([said])
        return []

    def _take_record(
        self, record: bytes, path: Path, node: NodeId, now: _Looked, at_rest: bool
    ) -> None:
        for statement, content in statements(artifacts.decode(record), path.stem):
            self.newest = max(self.newest, statement.height)
            if statement.signer == node and not at_rest:
                now.unsure.append((record, (statement, content)))
            else:
                self.add([(statement, content)])

    def add(self, said: Iterable[Said]) -> None:
        for statement, content in said:
            self.said.setdefault(statement, set()).add(content)

    def _forget(self) -> None:
        floor = self.newest - HEIGHTS_KEPT
        self.said = {s: c for s, c in self.said.items() if s.height >= floor}

    def contradictions(self) -> list[Statement]:
        """Return what was said in two ways: each is a signature that an honest node never makes."""
        return [
            s for s, contents in sorted(self.said.items()) if self._is_contradicted(s, contents)
        ]

    def _is_contradicted(self, statement: Statement, contents: set[bytes]) -> bool:
        if statement.kind in BINDING and len(contents) > 1:
            return True
        final = self.said.get(statement._replace(kind=FINALIZATION), set())
        return statement.kind == NOTARIZATION and bool(final) and bool(contents - final)
