"""What a crash, or a change of plans, leaves in a node's data: removed by the names it was given.

Whatever has another name is somebody's, and stays: an operator's copy, lost+found.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

POOL = re.compile(r"pool-\d+-[^/.]*\.journal")
POOL_ASIDE = re.compile(rf"{POOL.pattern}\.new")
SYNC = re.compile(r"sync-[0-9a-f]{16}")
ROOT = re.compile(r"[0-9a-f]{16}\.root\.new")
CHECKPOINT = re.compile(r"[0-9a-f]{16}")
REPLAYS = ("replay", "replay.order")
DIVERGED = "diverged_checkpoints"


def remove(paths: list[Path]) -> list[str]:
    """Remove files and folders; return their names."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [p.name for p in paths]


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in names if pattern.fullmatch(p.name)]


def sweep_unfinished(data: Path) -> list[str]:
    """Remove what a replica was writing aside when it ended. Only while none runs."""
    return remove(_named(data, POOL_ASIDE) + _named(data / "checkpoints", ROOT))


def sweep_pools(data: Path, current: Path) -> list[str]:
    """Remove the pools of epochs and releases that are over: all but this one."""
    return remove([p for p in _named(data, POOL) if p != current])


def sweep_syncs(data: Path, state_hash: bytes) -> list[str]:
    """Remove what was fetched of states that nobody asks for any more: all but this one."""
    current = f"sync-{state_hash.hex()[:16]}"
    return remove([p for p in _named(data, SYNC) if p.name != current])


def sweep_replays(data: Path) -> list[str]:
    """Remove what a replay left whose orchestrator was killed."""
    return remove([data / name for name in REPLAYS if (data / name).exists()])


def sweep_diverged(data: Path, below: int) -> list[str]:
    """Remove the checkpoints of a diverged state once all of them are below a height.

    They are kept to be looked at; only the newest divergence is.
    """
    folder = data / DIVERGED
    heights = [int(p.name, 16) for p in _named(folder, CHECKPOINT)]
    return remove([folder]) if folder.is_dir() and max(heights, default=0) < below else []
