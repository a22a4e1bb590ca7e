"""The horizon: between which heights an artifact can matter, kind by kind.

Below, all is decided; above, nothing can be judged yet: neither who signs is known, nor what it
would follow.
"""

from __future__ import annotations

from replica.consensus.asking import ANY_HEIGHT
from replica.consensus.reader import GAP_MAX, Reader
from replica.protocol.artifacts import (
    Beacon,
    BeaconShare,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
    Tape,
    TapeShare,
)

LOOKAHEAD = GAP_MAX + 10
"""What lies further above the notarized tip is refused and asked for later: an honest node is at
most `GAP_MAX` above what is certified, and ten heights are on their way."""


class Horizon:
    def __init__(self, reader: Reader) -> None:
        self._reader, self._chain = reader, reader.chain

    def late_until(self, kind: type) -> int:
        """Return the highest height of a kind at which nothing can matter any more."""
        chain = self._chain
        cup_height, state = chain.cup.height, self._reader.context.state
        if kind in (Beacon, BeaconShare):
            return max(chain.beacon_height, cup_height)
        if kind in (Tape, TapeShare):
            return max(state.latest_height, cup_height)
        if kind in (Certification, CertificationShare):
            return max(state.certified_height, cup_height)
        if kind in (Cup, CupShare):
            return cup_height
        if kind in (DkgDealing, DkgComplaint):
            return chain.summary_at(chain.finalized_height).height - 1
        return max(chain.finalized_height, cup_height)

    def is_late(self, kind: type, height: int) -> bool:
        if height <= self.late_until(kind):
            return True
        return kind in (Tape, TapeShare) and height in self._chain.tapes

    def top(self, kind: type) -> int:
        """Return the highest height of a kind that can be judged, or will be soon."""
        chain = self._chain
        newest = chain.summary_at(chain.finalized_height)
        if kind is Cup:
            return ANY_HEIGHT
        if kind in (DkgDealing, DkgComplaint):
            return newest.next_start
        return min(newest.known_until, chain.notarized_height + LOOKAHEAD)

    def is_beyond(self, kind: type, height: int) -> bool:
        if height > self.top(kind):
            return True
        if kind not in (DkgDealing, DkgComplaint):
            return False
        newest = self._chain.summary_at(self._chain.finalized_height)
        return height not in (newest.height, newest.next_start)

    def bounds(self, kind: type) -> tuple[int, int]:
        """Return the lowest and highest height of a kind that can be judged now."""
        low, high = self.late_until(kind) + 1, self.top(kind)
        per_height = kind not in (Cup, DkgDealing, DkgComplaint)
        if per_height and low <= high and not self._reader.knows(low):
            return low, low - 1  # a registry version is missing
        return low, high
