"""Replays of this node's blocks, and the promises that are made on what they give.

Several may be asked for at once: by two operators, by one who gave up waiting and asks again, by a
staged recovery of the NNS. They all work in one folder, one after another.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replica.client.agent import World
from replica.client.folders import link_or_copy
from replica.protocol.errors import Conflict
from replica.protocol.nns_recovery import Order
from replica.runtime.durable import rename, sync_folder
from replica.runtime.settings import NodeSettings


class Replays:
    def __init__(self, settings: NodeSettings, world: World) -> None:
        self.settings, self.world = settings, world
        self.folder = settings.data / "replay"
        self._lock = world.lock()

    @contextmanager
    def replayed(
        self, release: Path, height: int, order: Order | None = None
    ) -> Iterator[dict[str, Any]]:
        """Replay up to a height (see `replica.replay.replay`); its checkpoints go with the block.

        Waits while another replay runs. Raises: Unavailable, Malformed.
        """
        with self._lock:
            try:
                yield self.world.replay(release, self.settings.folder, height, self.folder, order)
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.with_suffix(".order").unlink(missing_ok=True)

    def keep(self, checkpoint: Path) -> None:
        """Hang a replayed checkpoint beside the replica's own, under its height.

        Only while it is `replayed`. It is made ready here: a replica that starts meanwhile removes
        what is unfinished among its own.
        """
        target = self.settings.data / "checkpoints" / checkpoint.name
        if target.exists():
            return
        ready = self.folder / "ready"
        shutil.copytree(checkpoint, ready, copy_function=link_or_copy)
        sync_folder(ready)
        try:
            rename(ready, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # The replica has made its own meanwhile.

    def clear_state(self) -> None:
        """Forget the state of the subnet that this node was in, once no replay reads it."""
        with self._lock:
            self.settings.clear_state()


class Promises:
    """This node's word to sign nothing more in an epoch. It is never taken back."""

    def __init__(
        self, settings: NodeSettings, world: World, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        """`make_room`: gives back what is kept for promises; whether there was any."""
        self.settings, self.make_room = settings, make_room
        self._lock = world.lock()

    def give(self, epoch: int, registry_version: int) -> None:
        """Promise, durably. Raises: Conflict when this node has promised of a later epoch.

        One that was given at a later registry version binds for longer, and stays.
        """
        with self._lock:
            given = self.settings.promised_epoch()
            if given is not None and given[0] > epoch:
                raise Conflict(f"this node is past epoch {epoch}: it halted in epoch {given[0]}")
            if given is None or given < (epoch, registry_version):
                self._write(epoch, registry_version)

    def _write(self, epoch: int, registry_version: int) -> None:
        try:
            self.settings.promise(epoch, registry_version)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.make_room():
                raise
            self.settings.promise(epoch, registry_version)
