"""Cases of the drill on disks: where they are done, what was done, and what came of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.lab.disks.image import Image
from cli.lab.disks.stand import Stand
from cli.output import say
from replica.client.agent import CallRejected
from replica.protocol.errors import ReprisError

IMAGE_BYTES = 1 << 30


@dataclass
class Case:
    part: str
    name: str
    ok: bool = False
    healthy_after_s: float | None = None
    """From the end of the fault (the start of the command, after a cut) on."""
    entries: int = 0
    """Acknowledged so far by this swarm: all are there, once."""
    contradictions: int = 0
    note: str = ""
    took_s: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """Where swarms have their places, and how patient the drill is with them."""

    folder: Path
    patience: float


Step = tuple[str, Callable[[Stand, Image | None, Case], None]]
"""A case's name, and what is done: raises what `attempt` takes for a failure."""


@contextmanager
def place(work: Work, *, with_image: bool) -> Iterator[tuple[Stand, Image | None]]:
    """Yield a place for a swarm, on a file system of its own if it may: nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="swarm-", dir=work.folder))
    image = Image(folder / "image", folder / "disk", IMAGE_BYTES) if with_image else None
    stand = Stand(folder / "disk" / "swarm", work.patience)
    try:
        if image is not None:
            image.make()
        yield stand, image
    finally:
        try:
            stand.stop_load()
            stand.kill()
        finally:
            if image is not None:
                image.close()
            shutil.rmtree(folder)


def series(part: str, work: Work, todo: list[Step], *, with_image: bool = False) -> Iterator[Case]:
    """Do one case after another with one swarm; after one that failed, with a new one."""
    while todo:
        with place(work, with_image=with_image) as (stand, image):
            up = attempt(part, "up", stand, lambda _, s=stand: s.begin())  # type: ignore[misc]
            if not up.ok:
                todo = todo[1:]
                yield up
                continue
            is_well = True
            while todo and is_well:
                (name, do), todo = todo[0], todo[1:]
                case = attempt(part, name, stand, partial(do, stand, image))
                is_well = case.ok
                yield case


def attempt(part: str, name: str, stand: Stand, do: Callable[[Case], None]) -> Case:
    """Do a case to its end, whatever becomes of it, and say how it went."""
    case, begin = Case(part, name), time.monotonic()
    try:
        do(case)
        case.ok = True
    except (ReprisError, CallRejected, OSError, subprocess.SubprocessError) as error:
        kept = stand.keep_logs()
        why = " ".join(str(error).split())
        case.note = f"{case.note}; {why}; logs are in {kept}".lstrip("; ")
    case.entries = stand.entries
    case.contradictions = len(stand.witness.contradictions())
    case.took_s = round(time.monotonic() - begin, 1)
    after = "-" if case.healthy_after_s is None else f"healthy after {case.healthy_after_s} s"
    verdict = "ok" if case.ok else "FAILED"
    say(f"{part}: {name}: {verdict}; {after}; {case.entries} entries; {case.note}")
    return case
