"""What the nodes of a subnet say of themselves, and what moved between two looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.lab.layout import NodeEntry

HEIGHTS = ("notarized_height", "finalized_height", "certified_height")


@dataclass(frozen=True)
class NodeReport:
    node: NodeEntry
    status: dict[str, Any] | None
    """What it answers at /_/status; None: it does not answer."""
    at_s: float = 0.0
    """When it was asked, by a clock that never jumps."""


@dataclass(frozen=True)
class Movement:
    """How a subnet's heights changed between two looks: (before, after) each."""

    notarized: tuple[int, int]
    finalized: tuple[int, int]
    certified: tuple[int, int]
    is_any: bool
    """Whether any height of any node grew."""

    @property
    def is_certifying(self) -> bool:
        return self.certified[1] > self.certified[0]

    @property
    def is_making_blocks(self) -> bool:
        return self.notarized[1] > self.notarized[0] or self.finalized[1] > self.finalized[0]


def movement(before: Sequence[NodeReport], after: Sequence[NodeReport]) -> Movement:
    """Compare two looks. A node that answers only once tells nothing of whether it moved."""
    notarized, finalized, certified = (
        (highest(before, name), highest(after, name)) for name in HEIGHTS
    )
    earlier = {r.node.id: r.status for r in before if r.status}
    grew = any(
        r.status[name] > earlier[r.node.id][name]
        for r in after
        if r.status and r.node.id in earlier
        for name in HEIGHTS
    )
    return Movement(notarized, finalized, certified, grew)


def highest(reports: Sequence[NodeReport], name: str) -> int:
    """Return the greatest of a height that any node says."""
    return max((int(r.status[name]) for r in reports if r.status), default=0)


def certified_height(reports: Sequence[NodeReport]) -> int:
    return highest(reports, "certified_height")


def idle_reason(status: dict[str, Any]) -> str:
    """Return why a node that answers signs no blocks with users' requests; "": it does."""
    if status.get("signing", "yes") != "yes":
        return str(status["signing"])
    if status["status"] == "halted":
        return "is halted, or has promised to sign nothing more"
    return str(status.get("short_of_space", ""))


def is_signing(report: NodeReport) -> bool:
    """Whether a node takes part in consensus: a full disk's empty blocks count."""
    status = report.status
    if status is None or status["status"] == "halted":
        return False
    waits = "answers reads only" in str(status.get("short_of_space", ""))
    return bool(status.get("signing", "yes") == "yes" and not waits)
