"""Rows of a benchmark: a figure beside a peer or a bound measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    unit: str
    peer: str = ""
    """What the figure is compared with."""
    peer_value: float | None = None
    ratio: float | None = None
    """Of the value to the peer's."""
    target: str = ""
    met: bool | None = None
    note: str = ""


def render(rows: Sequence[Row]) -> str:
    head = ("NAME", "VALUE", "UNIT", "PEER", "PEER VALUE", "RATIO", "TARGET", "MET", "NOTE")
    cells = [
        (
            r.name,
            _number(r.value),
            r.unit,
            r.peer,
            _number(r.peer_value),
            _number(r.ratio),
            r.target,
            {True: "yes", False: "NO", None: ""}[r.met],
            r.note,
        )
        for r in rows
    ]
    widths = [max(len(x) for x in column) for column in zip(head, *cells)]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in (head, *cells)
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
