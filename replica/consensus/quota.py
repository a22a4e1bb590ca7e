"""Quotas: what each peer may have waiting here, in bytes and in number.

An artifact that several peers sent is charged to each of them, so no peer's quota ever costs
another's artifacts a place. A full quota gives up what lies farthest above, which matters last.
"""

from __future__ import annotations

from collections.abc import Hashable

from replica.protocol.artifacts import Artifact
from replica.protocol.ids import NodeId

PEER_BYTES_MAX = 64 << 20
"""Ten blocks of the largest size: more than lies between two peers that get on."""
PEER_COUNT_MAX = 4096
"""An honest peer of a subnet of 40 has some 15 artifacts a height (six shares, six that carry the
subnet's signature, blocks) within 80 heights, and 480 dealings and complaints of six keys."""

Slot = Hashable


class Quota:
    """What one peer has waiting here."""

    def __init__(self) -> None:
        self.bytes = 0
        self.count = 0
        self._heights: dict[int, dict[Artifact, tuple[int, Slot]]] = {}
        """Sizes and slots, by height: heights are few (see `horizon.LOOKAHEAD`)."""
        self._slots: dict[Slot, list[Artifact]] = {}

    def add(self, artifact: Artifact, size_bytes: int, slot: Slot) -> None:
        self._heights.setdefault(artifact.height, {})[artifact] = (size_bytes, slot)
        self._slots.setdefault(slot, []).append(artifact)
        self.bytes += size_bytes
        self.count += 1

    def remove(self, artifact: Artifact) -> None:
        entries = self._heights[artifact.height]
        size_bytes, slot = entries.pop(artifact)
        if not entries:
            del self._heights[artifact.height]
        in_slot = self._slots[slot]
        in_slot.remove(artifact)
        if not in_slot:
            del self._slots[slot]
        self.bytes -= size_bytes
        self.count -= 1

    def has_room(self, size_bytes: int) -> bool:
        return self.bytes + size_bytes <= PEER_BYTES_MAX and self.count < PEER_COUNT_MAX

    def in_slot(self, slot: Slot) -> list[Artifact]:
        """Return what this peer has in one of its slots, oldest first."""
        return self._slots.get(slot, [])

    def farthest(self) -> Artifact | None:
        """Return the newest of what lies highest; None: nothing is here."""
        if not self._heights:
            return None
        return next(reversed(self._heights[max(self._heights)]))


class Quotas:
    """The quotas of all peers, and who sent what waits."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, Quota] = {}
        self._senders: dict[Artifact, list[NodeId]] = {}

    def of(self, peer: NodeId) -> Quota:
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = Quota()
        return found

    def held_bytes(self, peer: NodeId) -> int:
        found = self._peers.get(peer)
        return 0 if found is None else found.bytes

    def senders(self, artifact: Artifact) -> tuple[NodeId, ...]:
        """Return who sent a waiting artifact, first come first."""
        return tuple(self._senders.get(artifact, ()))

    def charge(self, peer: NodeId, artifact: Artifact, size_bytes: int, slot: Slot) -> None:
        self._senders.setdefault(artifact, []).append(peer)
        self.of(peer).add(artifact, size_bytes, slot)

    def discharge(self, peer: NodeId, artifact: Artifact) -> bool:
        """Take an artifact off a peer's quota; return whether it is charged to nobody any more."""
        senders = self._senders.get(artifact)
        if senders is None or peer not in senders:
            return False
        senders.remove(peer)
        self._peers[peer].remove(artifact)
        if senders:
            return False
        del self._senders[artifact]
        return True

    def release(self, artifact: Artifact) -> None:
        """Take an artifact off everybody's quota."""
        for peer in self._senders.pop(artifact, ()):
            quota = self._peers[peer]
            quota.remove(artifact)
            if not quota.count:
                del self._peers[peer]
