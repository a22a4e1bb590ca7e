"""Old copies: a node whose disk went back in time finds out, and signs nothing against its word.

A snapshot put back, a backup, a lost disk: what such a node signed since is not in its journal. Its
peers hold it. So a node that starts asks them for what it signed in this run above its finalized
height. What is genuine, and neither in its journal nor signed since it started, proves that it is
an old copy. It waits for the answers of as many as make a quorum with it: whatever block its
signature helped to notarize, one of these has signed for as well. Until then it signs nothing. An
old copy signs nothing until a catch-up package lies so far above all that it was shown that
whatever else it signed lies below.

Nothing of this is kept: a restart asks again. A subnet of one can't know; and an old copy counts
among the f: where others of them lie to it, more than f may be faulty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replica.consensus.effects import AskSigned, BadAnswer, Effect, FoundOld
from replica.consensus.reader import GAP_MAX, NEVER, Reader
from replica.consensus.signed import (
    UNPROVEN,
    Item,
    Mark,
    fault_of,
    items,
    mark_in,
    mark_of,
    own_mark,
)
from replica.protocol.artifacts import Artifact
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, NodeId
from replica.protocol.signed import Question, Signed

PAUSE_NS = 1_000_000_000
"""Between two questions to a peer that has not answered."""
FAULTS_MAX = 8
"""So much of an answer may be wrong before the rest is let be: each costs a verification."""
MARKS_MAX = 4096
"""Own signatures remembered; some four a height, so of a thousand heights."""
MARGIN = GAP_MAX
"""No node signs further above what others have certified, which is no higher than they can show."""


@dataclass
class OldCopyWatch:
    """What a replica knows of its own past; pure, and told the time."""

    reader: Reader
    """Of the pool of consensus."""
    shown: Height | None = None
    """The highest height at which it was shown to have signed what it doesn't know of."""
    is_waiting: bool = True
    """Whether too few peers have answered."""
    _above: Height = field(init=False)
    """What it signed at this height or below can't be contradicted any more."""
    _known: set[Mark] = field(default_factory=set)
    """What it signed above that, by its journal or in this life."""
    _news: list[Effect] = field(default_factory=list)
    """What is to be told."""
    _asked: dict[NodeId, int] = field(default_factory=dict)
    """When each peer that has not answered was asked last."""
    _answered: set[NodeId] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._above = self.reader.chain.finalized_height

    def restored(self, artifacts: Iterable[Artifact]) -> None:
        """Note what the journal held; the chain stands on it already."""
        self._above = self.reader.chain.finalized_height
        marks = (own_mark(a, self.reader.node) for a in artifacts if a.height > self._above)
        self._known.update(m for m in marks if m is not None)

    # -- what follows

    @property
    def until(self) -> Height | None:
        """The height above which a package has to lie before an old copy signs; None: it is none.

        What was shown in this life counts as long as it lives, as does a package above it.
        """
        if self.shown is None:
            return None
        until = Height(self.shown + MARGIN)
        return until if self.reader.chain.cup.height <= until else None

    def count(self) -> None:
        """See whether enough have answered, by who is a member now."""
        if self.is_waiting:
            self.is_waiting = self._missing() != 0

    @property
    def is_silent(self) -> bool:
        """Whether nothing of consensus may be signed."""
        return self.is_waiting or self.until is not None

    def _missing(self) -> int | None:
        """Return how many more answers it takes; None while the members are not known."""
        chain = self.reader.chain
        try:
            settings = self.reader.settings_at(chain.finalized_height + 1)
        except Unavailable:
            return None
        heard = self._answered | {self.reader.node}
        return max(0, settings.quorum - len(heard.intersection(settings.members)))

    def describe(self) -> str:
        """Return what operators read of it."""
        if self.until is not None:
            return f"old copy: silent until a CUP above {self.until}"
        if not self.is_waiting:
            return "yes"
        missing, answers = self._missing(), len(self._answered)
        if missing is None:
            return f"waiting for answers ({answers}; members are not known yet)"
        return f"waiting for answers ({answers} of {answers + missing})"

    # -- asking

    def effects(self, peers: Callable[[], Iterable[NodeId]], now_ns: int) -> list[Effect]:
        """Return what is to be told, and who is to be asked; `peers`: who can be."""
        news, self._news = self._news, []
        if not self.is_waiting:
            return news
        asked = [p for p in sorted(peers()) if p not in self._answered and self._is_due(p, now_ns)]
        self._asked.update(dict.fromkeys(asked, now_ns))
        question = Question(self.reader.chain.cup.epoch, self.reader.run, self._above)
        return news + [AskSigned(p, question) for p in asked]

    def _is_due(self, peer: NodeId, now_ns: int) -> bool:
        last = self._asked.get(peer)
        return last is None or now_ns >= last + PAUSE_NS

    def wake_ns(self) -> int:
        """Return when there is something to do again."""
        if self._news:
            return 0
        if not self.is_waiting:
            return NEVER
        last = [t for p, t in self._asked.items() if p not in self._answered]
        return min(last, default=NEVER - PAUSE_NS) + PAUSE_NS

    def connected(self, peer: NodeId) -> None:
        """A peer can be reached now: it is asked at once."""
        self._asked.pop(peer, None)

    # -- what it is told

    def answered(self, peer: NodeId, answer: Signed) -> None:
        """Take what a peer shows."""
        if peer not in self._asked or peer in self._answered:
            return
        self._answered.add(peer)
        faults: list[str] = []
        for item in items(answer):
            if len(faults) >= FAULTS_MAX:
                break
            if self._is_news(mark := mark_of(item)):
                faults += self._judge(item, mark)
        self._news += [BadAnswer(peer, f) for f in faults if f][:1]

    def _judge(self, item: Item, mark: Mark) -> list[str]:
        """Return the fault of something that is shown; none: it is genuine, and proves us old."""
        try:
            fault = fault_of(self.reader, item)
        except Unavailable:
            return [UNPROVEN]
        if fault is None:
            self._prove(mark)
            return []
        return [fault and f"{type(item).__name__} of {item.height}: {fault}"]

    def made(self, artifacts: Iterable[Artifact]) -> None:
        """Note what this replica signs."""
        marks = (own_mark(a, self.reader.node) for a in artifacts)
        self._known.update(m for m in marks if m is not None)
        if len(self._known) > MARKS_MAX:
            self._forget()

    def look(self, artifacts: Iterable[Artifact]) -> None:
        """Look at what was found to be valid: it may be this node's own and unknown to it."""
        for artifact in artifacts:
            mark = mark_in(artifact, self.reader.node)
            if mark is not None and self._is_news(mark):
                self._prove(mark)

    def _is_news(self, mark: Mark) -> bool:
        height = mark[1]
        if height <= self._above or (self.shown is not None and height <= self.shown):
            return False
        return mark not in self._known

    def _prove(self, mark: Mark) -> None:
        self.shown = Height(mark[1])
        self._news = [n for n in self._news if not isinstance(n, FoundOld)]
        self._news.append(FoundOld(self.shown, Height(self.shown + MARGIN)))

    def _forget(self) -> None:
        """Let the lower half of what was signed go, and with it whatever is shown of that."""
        heights = sorted(h for _, h, _ in self._known)
        self._above = Height(heights[len(heights) // 2])
        self._known = {m for m in self._known if m[1] > self._above}
