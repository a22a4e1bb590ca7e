"""Power cuts of a whole swarm on one file system, under load or as soon as it is healthy.

Without loop devices every replica is stopped in the middle of a write instead, by a limit on how
long files may get, and everything is killed.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from cli.lab.disks.cases import Case, Step, Work, attempt, place, series
from cli.lab.disks.image import Image
from cli.lab.disks.stand import Stand

LOAD_S = (3.0, 7.0)
TORN_BYTES = (1, 600)
"""Of the next writes to a pool's journal, so many bytes fit."""
TORN_S = 2.0
RELEASES = (".py", ".pyi", ".did", ".toml", ".mako", ".typed")
"""Ends of files that may be empty in a release; logs may be, too."""


def under_load(work: Work, count: int, draw: random.Random, with_image: bool) -> Iterator[Case]:
    """Cut one swarm's power again and again."""
    cuts = [(draw.uniform(*LOAD_S), draw.randint(*TORN_BYTES)) for _ in range(count)]
    what = "under load" if with_image else "torn writes under load"
    todo: list[Step] = [(f"{what} {n}", partial(_loaded, *cut)) for n, cut in enumerate(cuts)]
    return series("cut", work, todo, with_image=with_image)


def when_fresh(work: Work, count: int) -> Iterator[Case]:
    """Cut a swarm's power right after the command said that it is healthy; each time a new one."""
    for number in range(count):
        with place(work, with_image=True) as (stand, image):
            do = partial(_fresh, stand, image)
            yield attempt("cut", f"right after up {number}", stand, do)


def _loaded(load_s: float, torn_bytes: int, stand: Stand, image: Image | None, case: Case) -> None:
    stand.load()
    stand.look_for(load_s)
    _cut(stand, image, torn_bytes)
    _back(stand, case)


def _fresh(stand: Stand, image: Image | None, case: Case) -> None:
    begin = time.monotonic()
    if stand.patience > 1:  # the command that makes a swarm has bounds of its own
        stand.begin()
    else:
        stand.up()
    took = time.monotonic() - begin
    _cut(stand, image, 0)
    case.note = f"up took {took:.1f} s; {len(_empty(stand.folder))} files are empty"
    _back(stand, case)


def _back(stand: Stand, case: Case) -> None:
    """See the swarm come back by itself, and all that was promised with it."""
    took = stand.up()
    case.healthy_after_s = round(took + stand.wait_healthy(), 1)
    if not stand.writers:
        stand.load()
    stand.wait_for_entries()
    stand.verify()


def _cut(stand: Stand, image: Image | None, torn_bytes: int) -> None:
    if image is None:
        _tear(stand, torn_bytes)
        stand.kill()
    else:
        image.cut()
        stand.kill()
        image.come_back()
    stand.look(at_rest=True)


def _tear(stand: Stand, bytes_left: int) -> None:
    """Have each replica's next write end in the middle."""
    for node in stand.swarm.app.nodes:
        pid = stand.replica(node)
        sizes = [p.stat().st_size for p in (node.folder / "data").glob("pool-*.journal")]
        with suppress(ProcessLookupError):
            if pid and sizes:
                limit = max(sizes) + bytes_left
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    time.sleep(TORN_S)


def _empty(folder: Path) -> list[Path]:
    """Return files that a cut emptied."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size == 0]
    return [p for p in files if p.suffix not in (*RELEASES, ".log")]
