"""Commands of the machine that the drill on disks needs: run with a bound, and asked for first."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from replica.protocol.errors import Unavailable

IMAGE_TOOLS = ("mkfs.ext4", "e2fsck", "mount", "umount", "losetup")
COMMAND_S_MAX = 60.0


def run(command: Sequence[str], timeout_s: float = COMMAND_S_MAX, status_max: int = 0) -> str:
    """Run a command to its end; return what it printed.

    Raises: Unavailable when it takes too long, or ends with a status above `status_max`.
    """
    shown = " ".join(command[-4:])
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{shown}: not done after {timeout_s:.0f} s") from error
    if not 0 <= done.returncode <= status_max:
        words = (done.stdout + done.stderr).strip()[-300:]
        raise Unavailable(f"{shown}: status {done.returncode}: {words}")
    return done.stdout


def why_no_images() -> str:
    """Return why no file system can be mounted here; "": it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    absent = [tool for tool in IMAGE_TOOLS if shutil.which(tool) is None]
    return f"no {', '.join(absent)}" if absent else _tried(_mount_one)


def why_no_injection() -> str:
    """Return why no system call can be made to fail here; "": it can."""
    if shutil.which("strace") is None:
        return "no strace"
    return _tried(lambda _: run(["strace", "-f", "-e", "trace=none", "true"]))


def _tried(attempt: Callable[[Path], object]) -> str:
    with tempfile.TemporaryDirectory(prefix="reprise-try-") as folder:
        try:
            attempt(Path(folder))
        except Unavailable as error:
            return str(error)
    return ""


def _mount_one(folder: Path) -> None:
    from cli.lab.disks.image import Image

    image = Image(folder / "image", folder / "mounted", 8 << 20)
    try:
        image.make()
    finally:
        image.close()
