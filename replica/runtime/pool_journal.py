"""The journal of a pool: what a replica has signed and taken in, which nobody else can tell it.

Each epoch has one of its own, and each run in it; the file says whose it is as well.
"""

from __future__ import annotations

from pathlib import Path

from replica.protocol.artifacts import Run
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Malformed
from replica.protocol.ids import SubnetId
from replica.runtime import journal
from replica.runtime.journal import ForeignJournal, Journal
from replica.runtime.settings import NodeSettings


def pool_journal_path(settings: NodeSettings, epoch: int, run: Run) -> Path:
    """Each epoch has a pool of its own: nothing signed before a recovery can leak past it.

    So has each run in it: blocks above the CUP at which releases change are the new one's.
    """
    return settings.data / f"pool-{epoch}-{run.start}-{run.release[:16]}.journal"


def pool_identity(settings: NodeSettings, subnet: SubnetId, epoch: int, run: Run) -> str:
    """Return what a pool's journal says of itself: the same file name is nobody's proof."""
    return (
        f"pool of node {settings.node} in subnet {subnet}, epoch {epoch}, release {run.release} "
        f"from {run.start}"
    )


def read_pool(settings: NodeSettings, package: CatchUpPackage, run: Run) -> list[bytes]:
    """Read what a replica has signed and taken in, also while it runs. Raises: Malformed."""
    path = pool_journal_path(settings, package.epoch, run)
    if not path.exists():
        return []
    found = journal.read(path, pool_identity(settings, package.subnet, package.epoch, run))
    if found.damage:
        raise Malformed(f"{path}: {found.damage}")
    return found.records


def open_pool(path: Path, identity: str = "") -> Journal:
    """Open what a replica has signed and taken in. Raises: Malformed when it is damaged."""
    try:
        return Journal(path, identity)
    except ForeignJournal:
        raise
    except Malformed as error:
        raise Malformed(
            f"{error}: what this node signed can't be read back. If there is no good copy of the "
            "file, move it away: the replica starts without it, and peers send it the rest. Until "
            "the next catch-up package it may contradict what it signed, as faulty nodes do, so "
            "never do this on more than f nodes of a subnet at a time"
        ) from error
