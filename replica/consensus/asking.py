"""What is asked of peers again: what was refused from them, and everything when nothing goes on.

What a peer sends once it does not send again by itself. So what had no place when it came is noted
by peer, kind and heights, and asked for when it can matter; and a node that stands still asks every
peer for all that it may lack. A peer is asked at most once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replica.consensus.effects import Ask
from replica.protocol.artifacts import (
    KINDS,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
)
from replica.protocol.ids import NodeId

SECOND = 1_000_000_000
PAUSE_NS = SECOND
"""Between two questions to one peer."""
STANDS_NS_MIN, STANDS_NS_MAX = 2 * SECOND, 10 * SECOND
"""After so long without a new height everybody is asked: half a minute's rounds at the slowest
settings, and short enough that a lost message costs less than the 10 s that clients wait."""
LOOK_NS = SECOND // 20
"""At most so often it is looked whether what was refused can matter by now."""
ANY_HEIGHT = 1 << 62
"""Above all heights."""

_GROUPS: tuple[tuple[type, ...], ...] = (
    tuple(
        k
        for k in KINDS
        if k not in (Cup, CupShare, DkgDealing, DkgComplaint, Certification, CertificationShare)
    ),
    (CertificationShare, Certification),
    (Cup, CupShare),
    (DkgDealing, DkgComplaint),
)
ROUNDS, CERTIFICATIONS, PACKAGES, DEALINGS = range(4)
"""Groups of kinds whose heights lie together: one question is about one of them."""
_GROUP_OF = {kind: i for i, kinds in enumerate(_GROUPS) for kind in kinds}
_INDEX = {kind: i for i, kind in enumerate(KINDS)}

Bounds = Callable[[type], tuple[int, int]]
"""The lowest and highest height of a kind that a node can judge now."""


@dataclass
class _Wish:
    first: int
    last: int
    kinds: dict[type, None] = field(default_factory=dict)


@dataclass
class _Peer:
    wishes: dict[int, _Wish] = field(default_factory=dict)
    """By group; the one that waits longest is first."""
    asked_ns: int = -PAUSE_NS


class Asking:
    """What a node has to ask its peers, and when."""

    def __init__(self, now_ns: int) -> None:
        self._peers: dict[NodeId, _Peer] = {}
        self._progress: tuple[int, ...] = ()
        self._pause_ns = STANDS_NS_MIN
        self._stands_at_ns = now_ns + STANDS_NS_MIN
        self._look_at_ns = now_ns
        self.wake_ns = self._stands_at_ns
        """When it may have something to ask though nothing has come."""

    def want(self, peer: NodeId, kinds: Iterable[type], first: int, last: int) -> None:
        """Note what a peer is to be asked for once it can matter."""
        wishes = self._peers.setdefault(peer, _Peer()).wishes
        for kind in kinds:
            wish = wishes.setdefault(_GROUP_OF[kind], _Wish(first, last))
            wish.first, wish.last = min(wish.first, first), max(wish.last, last)
            wish.kinds[kind] = None

    def want_group(self, peers: Iterable[NodeId], group: int, first: int, last: int) -> None:
        """Note that these peers are to be asked for all kinds of a group."""
        if first <= last:
            for peer in peers:
                self.want(peer, _GROUPS[group], first, last)

    def stands(self, progress: tuple[int, ...], now_ns: int) -> bool:
        """Return whether nothing went on for so long that everybody is to be asked."""
        if progress == self._progress and now_ns < self._stands_at_ns:
            return False
        is_standing = progress == self._progress
        pause_ns = 2 * self._pause_ns if is_standing else STANDS_NS_MIN
        self._progress, self._pause_ns = progress, min(pause_ns, STANDS_NS_MAX)
        self._stands_at_ns = now_ns + self._pause_ns
        self.wake_ns = min(max(self.wake_ns, now_ns), self._stands_at_ns)
        if is_standing:
            self._look_at_ns = now_ns
        return is_standing

    def due(self, peers: Callable[[], frozenset[NodeId]], bounds: Bounds, now_ns: int) -> list[Ask]:
        """Return the questions whose time has come; `peers`: who may be asked."""
        if now_ns < self._look_at_ns:
            self.wake_ns = min(self._stands_at_ns, self._look_at_ns)
            return []
        self.wake_ns = self._stands_at_ns
        if not self._peers:
            return []
        self._look_at_ns = now_ns + LOOK_NS
        here, limits = peers(), _limits(bounds)
        self._peers = {n: p for n, p in self._peers.items() if n in here}
        asks = [self._next(node, peer, limits, now_ns) for node, peer in self._peers.items()]
        self._peers = {
            n: p for n, p in self._peers.items() if p.wishes or now_ns < p.asked_ns + PAUSE_NS
        }
        return [ask for ask in asks if ask is not None]

    def _next(
        self, node: NodeId, peer: _Peer, limits: dict[type, tuple[int, int]], now_ns: int
    ) -> Ask | None:
        """Return what a peer is to be asked now: of what can matter, what waits longest."""
        for group, wish in list(peer.wishes.items()):
            first = max(wish.first, min(limits[k][0] for k in wish.kinds))
            last = min(wish.last, max(limits[k][1] for k in wish.kinds))
            if first > wish.last:
                del peer.wishes[group]
            if first > last:
                continue
            if now_ns < peer.asked_ns + PAUSE_NS:
                self.wake_ns = min(self.wake_ns, peer.asked_ns + PAUSE_NS)
                return None
            del peer.wishes[group]
            if last < wish.last:  # the rest remains wished, behind the others
                peer.wishes[group] = _Wish(last + 1, wish.last, wish.kinds)
            peer.asked_ns = now_ns
            if peer.wishes:
                self.wake_ns = min(self.wake_ns, now_ns + PAUSE_NS)
            return Ask(node, tuple(sorted(_INDEX[k] for k in wish.kinds)), first, last)
        return None


def _limits(bounds: Bounds) -> dict[type, tuple[int, int]]:
    return {kind: bounds(kind) for kind in KINDS}
