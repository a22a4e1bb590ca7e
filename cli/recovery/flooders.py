"""Who floods a subnet, judged from what its nodes say of their peers at two times.

A node's word is no proof: how many say so is part of what is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.recovery.reports import NodeReport

HELD_BYTES = 8 << 20
"""So much of an honest peer never waits: the artifacts of some rounds."""
SLOWED_FRAMES = 2
"""One pause is the jitter of a question that is asked once a second."""
USELESS_A_SECOND, USELESS_TIMES = 50.0, 4.0
"""Frames that led to nothing, and how many times those of any other peer: honest ones are alike."""
COUNTED = {
    "faults": "wrong artifacts",
    "disconnections": "disconnections",
    "refused_dials": "refused connections",
}


@dataclass(frozen=True)
class Flooder:
    """One peer and what is said of it."""

    name: str
    told_by: tuple[str, ...]
    """The names of the nodes that say so."""
    deeds: tuple[str, ...]
    """Of the node that says most, with figures."""

    def describe(self, nodes: int) -> str:
        """`nodes`: how many could say so."""
        many = f"{len(self.told_by)} of {nodes} nodes"
        return f"{self.name} floods, say {many} ({', '.join(self.deeds)})"


def flooders(before: Sequence[NodeReport], after: Sequence[NodeReport]) -> list[Flooder]:
    """Return who floods between two looks, who most nodes say so of first."""
    names = {str(r.node.id): r.node.name for r in after}
    earlier = {r.node.id: r for r in before}
    told: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for report in after:
        for peer, deeds in _accused(earlier.get(report.node.id), report).items():
            told[names.get(peer, peer[:5])][report.node.name] = deeds
    found = [
        Flooder(name, tuple(sorted(by)), max(by.values(), key=len)) for name, by in told.items()
    ]
    return sorted(found, key=lambda f: (-len(f.told_by), f.name))


def describe(before: Sequence[NodeReport], after: Sequence[NodeReport]) -> list[str]:
    answering = sum(1 for r in after if r.status)
    return [f.describe(answering) for f in flooders(before, after)]


def _accused(before: NodeReport | None, after: NodeReport) -> dict[str, tuple[str, ...]]:
    """Return what one node holds against which of its peers (ids as text)."""
    now = _standings(after)
    then = _standings(before) if before is not None else {}
    seconds = after.at_s - before.at_s if before is not None else 0.0
    grown = {peer: _grown(then.get(peer, {}), plain) for peer, plain in now.items()}
    useless = {peer: g["useless_frames"] for peer, g in grown.items()}
    found = {}
    for peer, plain in now.items():
        deeds = _deeds(grown[peer], plain)
        others = max((n for p, n in useless.items() if p != peer), default=0)
        if useless[peer] > max(USELESS_A_SECOND * seconds, USELESS_TIMES * others) and seconds:
            deeds.append(f"{useless[peer] / seconds:.0f} useless frames a second")
        if deeds:
            found[peer] = tuple(deeds)
    return found


def _standings(report: NodeReport) -> dict[str, dict[str, Any]]:
    return dict(report.status.get("peer_standings", {})) if report.status else {}


def _grown(then: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    """Return by how much each figure grew; a node that was started anew counts from zero."""
    keys = (*COUNTED, "useless_frames", "slowed_frames")
    fell = any(now.get(k, 0) < then.get(k, 0) for k in keys)
    return {k: now.get(k, 0) - (0 if fell else then.get(k, 0)) for k in keys}


def _deeds(grown: dict[str, float], now: dict[str, Any]) -> list[str]:
    deeds = [f"{grown[k]:.0f} {what}" for k, what in COUNTED.items() if grown[k] > 0]
    if now.get("refused_for_s", 0) > 0:
        deeds.append(f"refused for {now['refused_for_s']} s")
    if grown["slowed_frames"] >= SLOWED_FRAMES:
        deeds.append(f"{grown['slowed_frames']:.0f} frames slowed")
    if now.get("held_bytes", 0) >= HELD_BYTES:
        deeds.append(f"{now['held_bytes'] >> 20} MiB wait")
    return deeds
