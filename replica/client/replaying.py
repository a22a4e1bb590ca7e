"""Running an offline replay as a process of its own, with the release that made the blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from replica.protocol import canonical
from replica.protocol.errors import Malformed, Unavailable
from replica.protocol.nns_recovery import Order

REPLAY_S_MAX = 300


def run(
    release: Path, node: Path, height: int, out: Path, order: Order | None = None
) -> dict[str, Any]:
    """Replay a node's blocks up to a height; see `replica.replay.replay`.

    `release`: folder of the unpacked release. Raises: Unavailable with the reason, Malformed.
    """
    node, out = node.resolve(), out.resolve()  # the process works in the release's folder
    command = [sys.executable, "-m", "replica", "replay", "--node", str(node)]
    command += ["--height", str(height), "--out", str(out)]
    if order is not None:
        path = out.with_suffix(".order")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canonical.encode(order))
        command += ["--order", str(path)]
    try:
        done = subprocess.run(
            command,
            cwd=release,
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": str(release),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            timeout=REPLAY_S_MAX,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"replay to {height} took longer than {REPLAY_S_MAX} s") from error
    finally:
        out.with_suffix(".order").unlink(missing_ok=True)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"replay to {height} failed: {' '.join(reason)}")
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        raise Malformed("the replay printed no result") from error
