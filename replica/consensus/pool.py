"""The artifact pool: what is known to be valid, and what came from peers and waits for a verdict.

Components read it and return mutations; `apply` is the only writer. Bounds: one entry per content,
at most `PER_HEIGHT_MAX` unvalidated artifacts of one kind and height, and none further than
`LOOKAHEAD` heights above the notarized tip (see the driver).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from replica.protocol.artifacts import Artifact
from replica.protocol.ids import Height

K = TypeVar("K")

PER_HEIGHT_MAX = 128


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
    artifact: Artifact
    reason: str


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
    | RemoveValidated
    | PurgeBelow
)


class Section:
    """Artifacts by kind and height, in order of arrival."""

    def __init__(self) -> None:
        self._kinds: dict[type, dict[int, dict[Any, int]]] = {}
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
        if not entries:
            del heights[height]
        self.touched.add(type(artifact))
        return True

    def __contains__(self, artifact: Artifact) -> bool:
        entries = self._kinds.get(type(artifact), {}).get(artifact.height)
        return entries is not None and artifact in entries

    def at(self, kind: type[K], height: int) -> list[K]:
        entries = self._kinds.get(kind, {}).get(height)
        return list(entries) if entries else []

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
            for h in [h for h in heights if h < height]:
                gone.extend(heights.pop(h))  # enables nothing: nobody has to look again
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
    invalid: tuple[tuple[Artifact, str], ...]


class Pool:
    def __init__(self) -> None:
        self.validated: Section = Section()
        self.unvalidated: Section = Section()

    def count_at(self, kind: type, height: int) -> int:
        return self.validated.count_at(kind, height) + self.unvalidated.count_at(kind, height)

    def insert_unvalidated(self, artifact: Artifact, now_ns: int) -> bool:
        """Admit an artifact from a peer; False when it is known or its height is crowded."""
        if artifact in self.validated:
            return False
        if self.unvalidated.count_at(type(artifact), artifact.height) >= PER_HEIGHT_MAX:
            return False
        return self.unvalidated.insert(artifact, now_ns)

    def apply(self, mutations: Iterable[Mutation], now_ns: int) -> Changes:
        added: list[Artifact] = []
        removed: list[Artifact] = []
        invalid: list[tuple[Artifact, str]] = []
        for mutation in mutations:
            if isinstance(mutation, PurgeBelow):
                if mutation.validated:
                    removed += self.validated.purge_below(mutation.height, mutation.kinds)
                if mutation.unvalidated:
                    self.unvalidated.purge_below(mutation.height, mutation.kinds)
                continue
            artifact = mutation.artifact
            if isinstance(mutation, AddValidated | MoveToValidated):
                self.unvalidated.remove(artifact)
                if self.validated.insert(artifact, now_ns):
                    added.append(artifact)
            elif isinstance(mutation, RemoveValidated):
                if self.validated.remove(artifact):
                    removed.append(artifact)
            else:
                self.unvalidated.remove(artifact)
                if isinstance(mutation, HandleInvalid):
                    invalid.append((artifact, mutation.reason))
        return Changes(tuple(added), tuple(removed), tuple(invalid))
