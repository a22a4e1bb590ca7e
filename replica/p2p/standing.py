"""A peer's standing: what it sent that was wrong or led to nothing, and what follows for it.

Pure: the transport tells the time. What is wrong by itself adds to a score that time takes down
again; above one limit the peer is read from slowly, above another it is disconnected and refused,
longer each time. What leads to nothing (late, known, no place) has a budget, which only ever slows:
honest peers repeat themselves when they come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from replica.p2p import wire

SCORE_A_SECOND = 0.5
"""So much of the score time takes away."""
SCORE_SLOWED, SCORE_DISCONNECTED = 10.0, 50.0
FAULT_BYTES = 1 << 16
"""A fault counts one, and one more for so many bytes: they had to be read and decoded."""
SLOWED_S = 0.05
"""Pause before each frame of a peer whose score is high: what it sends costs next to nothing."""
BARRED_S_MIN, BARRED_S_MAX = 1.0, 60.0
FORGIVEN_S = 300.0
"""After so long without being disconnected a peer is barred for the shortest time again."""
DIALS_A_SECOND, DIALS_BURST = 1.0, 32.0
"""A peer that is up dials once; one that is cut off again and again every two seconds at last, and
five times in the first two."""
PAUSE_S_MAX = 2.0
"""As long as the largest frame takes at the rate of bytes that may lead to nothing."""
LOG_S = 60.0


@dataclass
class Bucket:
    """An allowance of so much a second, saved up to a burst; who overdraws it has to pause."""

    rate: float
    burst: float
    level: float = field(init=False)
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def take(self, amount: float, now_s: float) -> float:
        """Return for how many seconds whoever took it has to pause."""
        level = self.level
        if now_s > self.at_s:
            level += (now_s - self.at_s) * self.rate
            if level > self.burst:
                level = self.burst
        self.at_s = now_s
        self.level = level = level - amount
        return 0.0 if level >= 0 else -level / self.rate


def _useless() -> tuple[Bucket, Bucket]:
    """What may lead to nothing: frames and bytes.

    In a subnet of 40 at 25 heights a second a peer sends some 16 artifacts a height, 400 a second,
    of which at worst all but its six shares are known already; blocks are passed on only to who has
    not shown to have them. Coming back it offers an interval of 500 heights, some 8,000 artifacts.
    """
    return Bucket(1_000, 16_000), Bucket(4 << 20, 64 << 20)


def _frames() -> dict[int, Bucket]:
    """What a peer may send at all, by kind of frame, in frames a second.

    Artifacts: four times what a peer of a subnet of 40 sends (see `_useless`), and an interval at
    once. Requests of users: more than a subnet executes, all entering at one node. Adverts: two a
    second are sent. Parts of checkpoints, of up to a megabyte: as fast as they can be encrypted.
    Questions, also about what a node signed: one a second, and at once when it connects.
    """
    return {
        wire.ARTIFACT: Bucket(1_600, 16_000),
        wire.INGRESS: Bucket(4_000, 8_000),
        wire.ADVERT: Bucket(8, 16),
        wire.REQUEST: Bucket(100, 1_000),
        wire.ASK: Bucket(1, 2),
        wire.SIGNED_REQUEST: Bucket(1, 4),
    }


@dataclass
class Standing:
    """What one peer did, and how it is to be read from."""

    score: float = 0.0
    faults: int = 0
    useless: int = 0
    """Frames that led to nothing."""
    slowed: int = 0
    """Frames before which reading paused."""
    disconnections: int = 0
    refused_dials: int = 0
    """Connections that it opened beyond `DIALS_A_SECOND`."""
    barred_until_s: float = 0.0
    _at_s: float = 0.0
    _barred_s: float = 0.0
    _useless: tuple[Bucket, Bucket] = field(default_factory=_useless)
    _frames: dict[int, Bucket] = field(default_factory=_frames)
    _dials: Bucket = field(default_factory=lambda: Bucket(DIALS_A_SECOND, DIALS_BURST))

    def dial(self, now_s: float) -> bool:
        """Note that it opened a connection; return whether that is read from."""
        if self._dials.take(1, now_s) == 0.0:
            return True
        self._dials.level += 1  # nothing was taken: it may come back as soon as it waits
        self.refused_dials += 1
        return False

    def fault(self, size_bytes: int, now_s: float) -> bool:
        """Note what was wrong by itself; return whether the peer is to be disconnected."""
        self._fade(now_s)
        self.faults += 1
        self.score += 1 + size_bytes / FAULT_BYTES
        if self.score < SCORE_DISCONNECTED:
            return False
        is_forgiven = now_s - self.barred_until_s > FORGIVEN_S
        barred_s = BARRED_S_MIN if is_forgiven else 2 * self._barred_s
        self._barred_s = min(max(barred_s, BARRED_S_MIN), BARRED_S_MAX)
        self.barred_until_s = now_s + self._barred_s
        self.score = SCORE_DISCONNECTED / 2
        self.disconnections += 1
        return True

    def frame(self, kind: int, now_s: float) -> float:
        """Note a frame; return for how many seconds to pause."""
        bucket = self._frames.get(kind)
        pause_s = bucket.take(1, now_s) if bucket is not None else 0.0
        if self.score:
            self._fade(now_s)
            pause_s = max(pause_s, SLOWED_S if self.score >= SCORE_SLOWED else 0.0)
        return self._paused(pause_s) if pause_s else 0.0

    def nothing(self, size_bytes: int, now_s: float) -> float:
        """Note a frame that led to nothing; return for how many seconds to pause."""
        self.useless += 1
        frames, size = self._useless
        return self._paused(max(frames.take(1, now_s), size.take(size_bytes, now_s)))

    def is_barred(self, now_s: float) -> bool:
        return now_s < self.barred_until_s

    def plain(self, now_s: float) -> dict[str, float | int]:
        """Return what operators read at /_/status."""
        self._fade(now_s)
        return {
            "score": round(self.score, 1),
            "faults": self.faults,
            "useless_frames": self.useless,
            "slowed_frames": self.slowed,
            "disconnections": self.disconnections,
            "refused_dials": self.refused_dials,
            "refused_for_s": round(max(0.0, self.barred_until_s - now_s), 1),
        }

    def _paused(self, pause_s: float) -> float:
        self.slowed += pause_s > 0
        return min(pause_s, PAUSE_S_MAX)

    def _fade(self, now_s: float) -> None:
        passed = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        self.score = max(0.0, self.score - passed * SCORE_A_SECOND)


class Ledger:
    """The standings of all peers, kept when they reconnect, and what is logged about them."""

    def __init__(self) -> None:
        self._peers: dict[bytes, Standing] = {}
        self._lines: dict[tuple[bytes, str], list[float]] = {}
        """By peer and subject: when it was last logged, and how often it happened since."""

    def of(self, peer: bytes) -> Standing:
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = Standing()
        return found

    def line(self, peer: bytes, subject: str, text: str, now_s: float) -> str | None:
        """Return what to log of something that happened; None: it was logged lately.

        `subject`: of a fixed set, so that what a peer sends can't make lines.
        """
        known = self._lines.get((peer, subject))
        if known is not None and now_s - known[0] < LOG_S:
            known[1] += 1
            return None
        more = f" ({known[1]:.0f} more since)" if known is not None and known[1] else ""
        self._lines[peer, subject] = [now_s, 0]
        return text + more
