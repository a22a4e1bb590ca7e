"""The orchestrator's choice: a pure function from what is known to what to do, in order.

The highest CUP wins; on ties a peer's beats the registry's beats the local one. A signed CUP comes
from anywhere, an unsigned one only from the registry. Source: reference/recovery.md §1.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol.cup import CatchUpPackage


@dataclass(frozen=True)
class Facts:
    """All that a decision rests on."""

    is_member: bool
    local_cup: CatchUpPackage | None
    registry_cup: CatchUpPackage | None
    peer_cup: CatchUpPackage | None
    """Highest threshold-signed CUP among peers; already verified."""
    replica_running: bool
    running_version: str | None
    running_cup_epoch: int | None
    """Epoch of the CUP that the running replica was started with."""
    running_run_start: int | None
    """Where the run began that this CUP starts or goes on with: a replica knows that one only."""
    wanted_version: str | None
    """Release of the subnet at the chosen CUP's registry version."""
    wanted_is_here: bool
    """Whether that release was downloaded and verified."""
    recalled_versions: tuple[str, ...]
    restart_not_before_ns: int
    """Crash loops back off until then."""
    now_ns: int


@dataclass(frozen=True)
class StoreCup:
    package: CatchUpPackage


@dataclass(frozen=True)
class StopReplica:
    reason: str


@dataclass(frozen=True)
class StartReplica:
    version: str


@dataclass(frozen=True)
class Report:
    text: str


Action = StoreCup | StopReplica | StartReplica | Report


def choose_cup(facts: Facts) -> CatchUpPackage | None:
    """Return the CUP this node should act on."""
    best: CatchUpPackage | None = None
    for candidate in (facts.local_cup, facts.registry_cup, facts.peer_cup):
        if candidate is not None and (best is None or candidate.height >= best.height):
            best = candidate
    return best


def decide(facts: Facts) -> list[Action]:
    """Return what to do now; empty when all is as it should be."""
    if not facts.is_member:
        return [StopReplica("the node is no member of any subnet")] if facts.replica_running else []
    chosen = choose_cup(facts)
    if chosen is None:
        return [Report("no catch-up package is known yet")]
    actions: list[Action] = []
    local = facts.local_cup
    is_new = local is None or chosen.height > local.height
    is_rebuilt = (
        local is not None
        and chosen.height == local.height
        and not chosen.is_signed
        and chosen.encode() != local.encode()
    )
    if is_new or is_rebuilt:
        actions.append(StoreCup(chosen))
    running = facts.replica_running
    if running and facts.running_cup_epoch != chosen.epoch:
        actions.append(StopReplica(f"the registry holds a recovery CUP at {chosen.height}"))
        running = False
    version = facts.wanted_version
    if version is None or version in facts.recalled_versions:
        actions.append(Report(f"the release {version} is unknown or recalled: not started"))
        return actions
    if not facts.wanted_is_here and (not running or facts.running_version != version):
        actions.append(Report(f"the release {version[:12]} is not here yet: downloading it"))
        return actions  # a replica of the release before goes on serving
    if running and facts.running_version != version:
        actions.append(StopReplica(f"the subnet moves to release {version}"))
        running = False
    if running and facts.running_run_start != chosen.run_start:
        actions.append(StopReplica(f"the release begins another run at {chosen.run_start}"))
        running = False
    if not running:
        if facts.now_ns >= facts.restart_not_before_ns:
            actions.append(StartReplica(version))
        else:
            actions.append(Report("the replica keeps crashing: waiting before the next start"))
    return actions
