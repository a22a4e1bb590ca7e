"""All four nodes' disks full: each on a small file system of its own, filled to the last byte."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cli.lab import workload
from cli.lab.disks.cases import Case, Work, attempt, place
from cli.lab.disks.image import Image
from cli.lab.disks.stand import Stand
from cli.lab.disks.tools import run
from cli.lab.layout import NodeEntry
from replica.protocol.errors import NotVerified, ReprisError

DISK_BYTES = 160 << 20
PIECE_BYTES = 1 << 20
ROUNDS, EVERY_S = 30, 1.0
"""How often each node is read from while the disks are full."""
GOES_ON_S_MAX = 10.0


def full(work: Work, count: int) -> Iterator[Case]:
    for number in range(count):
        with place(work, with_image=False) as (stand, _):
            disks: list[Image] = []
            try:
                do = partial(_fill_up, stand, disks)
                yield attempt("full", f"four of four disks {number}", stand, do)
            finally:
                stand.stop_load()
                stand.kill()
                for disk in disks:
                    disk.close()


def _fill_up(stand: Stand, disks: list[Image], case: Case) -> None:
    stand.begin()
    stand.down()
    for node in stand.swarm.app.nodes:
        disks.append(_moved(node.folder))
    stand.up()
    stand.wait_healthy()
    stand.load()
    stand.wait_for_entries(20, 60)
    stand.look_for(3.0)
    for disk in disks:
        _write_on(_filler(disk))
    answered = _read_on(stand)
    for disk in disks:
        _filler(disk).unlink()
    went_on = stand.wait_for_entries(1, 60)
    case.healthy_after_s = round(went_on + stand.wait_healthy(), 1)
    case.note = (
        f"{sum(answered)} of {4 * len(answered)} reads answered, by {min(answered)} nodes at least "
        f"and {answered[-1]} at last; goes on {went_on:.1f} s after there is space"
    )
    stand.verify()
    if not min(answered) or answered[-1] < len(disks) or went_on > GOES_ON_S_MAX:
        raise NotVerified(f"reads are to be answered, and {GOES_ON_S_MAX:.0f} s are the most")


def _moved(folder: Path) -> Image:
    """Put a node's folder on a disk of its own, mounted where it was."""
    beside = folder.parent.parent.parent  # not among the nodes: each folder there is one
    aside = beside / f"{folder.name}.aside"
    os.rename(folder, aside)
    image = Image(beside / f"{folder.name}.image", folder, DISK_BYTES)
    try:
        image.make()
        run(["cp", "-a", f"{aside}/.", str(folder)])
    except ReprisError:
        image.close()
        raise
    return image


def _read_on(stand: Stand) -> list[int]:
    """Read from each node again and again; return how many answered, each time.

    One that was about to write when its disk was full ends, and starts in the room that it gives
    back, which nobody takes from it here.
    """
    answered = []
    for _ in range(ROUNDS):
        time.sleep(EVERY_S)
        answered.append(sum(_read(stand, node) for node in stand.swarm.app.nodes))
    return answered


def _read(stand: Stand, node: NodeEntry) -> bool:
    """Whether a node answers a query and tells its status."""
    agent = stand.swarm.agent(stand.swarm.app)
    agent.urls = [node.http_url]
    agent.timeout_s = 4.0 * stand.patience
    try:
        agent.query(stand.swarm.journal, "status", workload.encode("status"))
        agent.node_status(node.http_url)
    except ReprisError:
        return False
    finally:
        agent.close()
    return True


def _filler(disk: Image) -> Path:
    return disk.mount_point / "filler"


def _write_on(path: Path) -> None:
    """Write until nothing more is taken."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    piece = PIECE_BYTES
    try:
        while piece:
            try:
                os.write(descriptor, bytes(piece))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 16
    finally:
        os.close(descriptor)
