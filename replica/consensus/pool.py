"""The artifact pool: what is known to be valid, and what came from peers and waits for a verdict.

Components read it and return mutations; `apply` writes them. What comes from peers gets in by
`door.Door` only, which holds it to its places and to its senders' quotas.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from replica.consensus.quota import Quotas
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    BlockProposal,
    DkgComplaint,
    DkgDealing,
    EquivocationProof,
    Notarization,
)
from replica.protocol.ids import Height, NodeId

K = TypeVar("K")

_OWNERS: dict[type, Callable[[Any], Hashable]] = {
    **dict.fromkeys(SHARES, attrgetter("signer")),
    BlockProposal: attrgetter("maker"),
    EquivocationProof: attrgetter("maker"),
    DkgDealing: attrgetter("tag", "dealer"),
    DkgComplaint: attrgetter("tag", "dealer"),
}


def owner_of(artifact: Artifact) -> Hashable:
    """Return whose word an artifact is, or of whom; None: it has the whole subnet's signature."""
    find = _OWNERS.get(type(artifact))
    return None if find is None else find(artifact)


@dataclass(frozen=True, slots=True)
class AddValidated:
    """An artifact of our own making: durable before it is sent."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class MoveToValidated:
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class RemoveUnvalidated:
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class HandleInvalid:
    """It is wrong by itself (encoding, signature, signer), so it costs whoever sent it.

    What depends on anything else (release, registry, clock, state) is a `RemoveUnvalidated`.
    """

    artifact: Artifact
    reason: str


@dataclass(frozen=True, slots=True)
class Prove:
    """A waiting notarization verifies, though its block is not here: that block is let in."""

    artifact: Notarization


@dataclass(frozen=True, slots=True)
class RemoveValidated:
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class PurgeBelow:
    """Remove validated and unvalidated artifacts of these kinds below a height."""

    height: Height
    kinds: tuple[type, ...]
    validated: bool
    unvalidated: bool


Mutation = (
    AddValidated
    | MoveToValidated
    | RemoveUnvalidated
    | HandleInvalid
    | Prove
    | RemoveValidated
    | PurgeBelow
)


class Section:
    """Artifacts by kind and height, in order of arrival, and by their owners."""

    def __init__(self) -> None:
        self._kinds: dict[type, dict[int, dict[Any, int]]] = {}
        self._owned: dict[type, dict[int, dict[Hashable, list[Any]]]] = {k: {} for k in _OWNERS}
        self.touched: set[type] = set()
        """Kinds that changed since the driver last looked."""
        self._floors: dict[type, int] = {}
        """No height of a kind is below its floor."""

    def insert(self, artifact: Artifact, now_ns: int) -> bool:
        height, kind = artifact.height, type(artifact)
        entries = self._kinds.setdefault(kind, {}).setdefault(height, {})
        count = len(entries)
        entries.setdefault(artifact, now_ns)
        if len(entries) == count:
            return False
        self.touched.add(kind)
        if kind in _OWNERS:
            owners = self._owned[kind].setdefault(height, {})
            owners.setdefault(_OWNERS[kind](artifact), []).append(artifact)
        if height < self._floors.get(kind, height + 1):
            self._floors[kind] = height
        return True

    def remove(self, artifact: Artifact) -> bool:
        heights = self._kinds.get(type(artifact), {})
        height = artifact.height
        entries = heights.get(height)
        if entries is None or artifact not in entries:
            return False
        del entries[artifact]
        kind = type(artifact)
        if kind in _OWNERS:
            self._owned[kind][height][_OWNERS[kind](artifact)].remove(artifact)
        if not entries:
            del heights[height]
            self._owned.get(kind, {}).pop(height, None)
        self.touched.add(kind)
        return True

    def __contains__(self, artifact: Artifact) -> bool:
        entries = self._kinds.get(type(artifact), {}).get(artifact.height)
        return entries is not None and artifact in entries

    def at(self, kind: type[K], height: int) -> list[K]:
        entries = self._kinds.get(kind, {}).get(height)
        return list(entries) if entries else []

    def owned(self, kind: type[K], height: int, owner: Hashable) -> list[K]:
        """Return an owner's artifacts of a kind and height, in order of arrival."""
        owners = self._owned[kind].get(height)
        return owners.get(owner, []) if owners else []

    def has(self, kind: type, height: int) -> bool:
        return height in self._kinds.get(kind, ())

    def count_at(self, kind: type, height: int) -> int:
        return len(self._kinds.get(kind, {}).get(height, ()))

    def time_of(self, artifact: Artifact) -> int:
        return self._kinds[type(artifact)][artifact.height][artifact]

    def first_time_at(self, kind: type, height: int) -> int | None:
        entries = self._kinds.get(kind, {}).get(height)
        return min(entries.values()) if entries else None

    def heights(self, kind: type) -> list[int]:
        heights = self._kinds.get(kind)
        return sorted(heights) if heights else []

    def height_max(self, kind: type) -> int | None:
        heights = self._kinds.get(kind)
        return max(heights) if heights else None

    def of_kind(self, kind: type[K]) -> Iterator[K]:
        for height in self.heights(kind):
            yield from self.at(kind, height)

    def __iter__(self) -> Iterator[Artifact]:
        for kind in list(self._kinds):
            yield from self.of_kind(kind)

    def __len__(self) -> int:
        return sum(len(e) for heights in self._kinds.values() for e in heights.values())

    def purge_below(self, height: int, kinds: Iterable[type]) -> list[Artifact]:
        gone: list[Artifact] = []
        for kind in kinds:
            heights = self._kinds.get(kind)
            if not heights or self._floors[kind] >= height:
                continue
            owned = self._owned.get(kind, {})
            for h in [h for h in heights if h < height]:
                gone.extend(heights.pop(h))  # enables nothing: nobody has to look again
                owned.pop(h, None)
            self._floors[kind] = height
        return gone

    def has_below(self, height: int, kinds: Iterable[type]) -> bool:
        for kind in kinds:
            heights = self._kinds.get(kind)
            if heights and self._floors[kind] < height:
                self._floors[kind] = min(heights)
                if self._floors[kind] < height:
                    return True
        return False


@dataclass(frozen=True, slots=True)
class Changes:
    """What applying mutations did: what must be made durable and sent, and what is withdrawn."""

    added: tuple[Artifact, ...]
    removed: tuple[Artifact, ...]
    invalid: tuple[tuple[Artifact, str, tuple[NodeId, ...]], ...]
    """What was wrong by itself, why, and who had sent it."""
    proven: tuple[tuple[Notarization, tuple[NodeId, ...]], ...]
    """Notarizations of blocks that may not be here, and who had sent them."""


class Pool:
    def __init__(self, quotas: Quotas | None = None) -> None:
        """`quotas`: those of the peers, over all pools of a driver."""
        self.validated: Section = Section()
        self.unvalidated: Section = Section()
        self.quotas = quotas or Quotas()
        self._proven: dict[int, dict[bytes, None]] = {}

    def count_at(self, kind: type, height: int) -> int:
        return self.validated.count_at(kind, height) + self.unvalidated.count_at(kind, height)

    def is_proven(self, height: int, block: bytes) -> bool:
        """Whether a notarization that waits here was found to have n - f signatures."""
        return block in self._proven.get(height, ())

    def discard(self, artifact: Artifact) -> None:
        """Let a waiting artifact go."""
        if self.unvalidated.remove(artifact):
            self.quotas.release(artifact)

    def drop(self, artifact: Artifact, sender: NodeId) -> None:
        """Take a waiting artifact off one peer's quota; it goes when nobody else sent it."""
        if self.quotas.discharge(sender, artifact):
            self.unvalidated.remove(artifact)

    def apply(self, mutations: Iterable[Mutation], now_ns: int) -> Changes:
        added: list[Artifact] = []
        removed: list[Artifact] = []
        invalid: list[tuple[Artifact, str, tuple[NodeId, ...]]] = []
        proven: list[tuple[Notarization, tuple[NodeId, ...]]] = []
        for mutation in mutations:
            if isinstance(mutation, PurgeBelow):
                removed += self._purge(mutation)
                continue
            artifact = mutation.artifact
            if isinstance(mutation, AddValidated | MoveToValidated):
                self.discard(artifact)
                if self.validated.insert(artifact, now_ns):
                    added.append(artifact)
            elif isinstance(mutation, RemoveValidated):
                if self.validated.remove(artifact):
                    removed.append(artifact)
            elif isinstance(mutation, Prove):
                self._prove(mutation.artifact)
                proven.append((mutation.artifact, self.quotas.senders(artifact)))
            else:
                if isinstance(mutation, HandleInvalid):
                    invalid.append((artifact, mutation.reason, self.quotas.senders(artifact)))
                self.discard(artifact)
        return Changes(tuple(added), tuple(removed), tuple(invalid), tuple(proven))

    def _prove(self, artifact: Notarization) -> None:
        self._proven.setdefault(artifact.height, {})[artifact.block] = None
        self.unvalidated.touched.add(Notarization)  # who waits for it looks again

    def _purge(self, mutation: PurgeBelow) -> list[Artifact]:
        """Return what was removed of the validated artifacts."""
        if mutation.unvalidated:
            for artifact in self.unvalidated.purge_below(mutation.height, mutation.kinds):
                self.quotas.release(artifact)
            if Notarization in mutation.kinds:
                for height in [h for h in self._proven if h < mutation.height]:
                    del self._proven[height]
        if mutation.validated:
            return self.validated.purge_below(mutation.height, mutation.kinds)
        return []
