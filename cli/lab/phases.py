"""The phase clock of a drill: names, seconds, and a live line a phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Phases:
    say: Callable[[str], None]
    now_s: Callable[[], float]
    done: list[tuple[str, float, str]] = field(default_factory=list)
    """Name, seconds, what was seen."""
    on_phase: Callable[[str], None] = lambda _: None
    witness: Callable[[], str] = lambda: ""
    """What is noted at the end of every phase besides."""

    @contextmanager
    def phase(self, name: str) -> Iterator[list[str]]:
        """Time a phase; what the body appends to the list is shown beside it."""
        notes: list[str] = []
        start = self.now_s()
        self.on_phase(name)
        yield notes
        seconds = self.now_s() - start
        seen = self.witness()
        text = "; ".join([*notes, seen] if seen else notes)
        self.done.append((name, seconds, text))
        self.say(f"  {name:<18} {seconds:6.1f} s   {text}")

    def to_plain(self) -> list[dict[str, object]]:
        return [{"name": n, "seconds": round(s, 3)} for n, s, _ in self.done]
