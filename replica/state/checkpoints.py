"""The folder of checkpoints: which lie there, whose they are, and what becomes of the wrong ones.

    <height, 16 hex digits>/       a whole checkpoint
    <height, 16 hex digits>.root   whose it is, at which epoch, and its root when it was written
    writing-* adopt-* gone-*       unfinished, or on its way out: discarded at the next start

Anything else is somebody else's, and is left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replica.client.folders import is_damage, link_or_copy
from replica.protocol import canonical, manifest
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.ids import Height, SubnetId
from replica.runtime.durable import (
    make_folder,
    read_checked,
    rename,
    sync_folder,
    write_checked,
)
from replica.state import checkpoint
from replica.state.rows import RowStore
from replica.state.state import Snapshot

_HEIGHT = re.compile(r"[0-9a-f]{16}")
_ROOT = re.compile(r"([0-9a-f]{16})\.root")
_UNFINISHED = re.compile(r"(writing|adopt|gone)-[0-9a-f]+|[0-9a-f]{16}\.root\.new")
"""No height's name has a hyphen, so none of these is taken for a checkpoint."""


@dataclass(frozen=True)
class Written:
    """What is noted of a checkpoint when it is made: disks may rot, and folders be copied."""

    subnet: SubnetId
    epoch: int
    height: int
    root: bytes


class Checkpoints:
    def __init__(
        self, folder: Path, subnet: SubnetId, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folder, self.subnet, self.log = folder, subnet, log
        self.manifests: dict[int, manifest.Manifest] = {}
        self.base: int | None = None
        """Height of the one that the next is made from."""
        self._copies_said = False
        make_folder(folder)

    # -- what lies there

    def heights(self) -> list[int]:
        return sorted(
            int(p.name, 16)
            for p in self.folder.iterdir()
            if _HEIGHT.fullmatch(p.name) and p.is_dir()
        )

    def path(self, height: int) -> Path:
        return self.folder / f"{height:016x}"

    def _aside(self, what: str, height: int) -> Path:
        """Return a name for something unfinished, with nothing there."""
        path = self.folder / f"{what}-{height:016x}"
        checkpoint.remove(path)
        return path

    def tidy(self) -> None:
        """Discard what is unfinished, and notes of what is not there."""
        for path in sorted(self.folder.iterdir()):
            noted = _ROOT.fullmatch(path.name)
            if _UNFINISHED.fullmatch(path.name):
                checkpoint.remove(path) if path.is_dir() else path.unlink()
            elif noted and not (self.folder / noted[1]).exists():
                path.unlink()

    def root_at(self, height: int) -> bytes | None:
        """Return the root of a checkpoint that was made or looked at since the start."""
        found = self.manifests.get(height)
        return None if found is None else manifest.root(found)

    def root_of(self, height: int) -> bytes:
        """Return the root of what lies at a height. Raises: OSError."""
        found = self.manifests.get(height)
        if found is None:
            base = self._base()
            found = checkpoint.compute_manifest(self.path(height), base)
            self.manifests[height] = found
        return manifest.root(found)

    def _base(self) -> tuple[Path, manifest.Manifest] | None:
        known = self.manifests.get(self.base) if self.base is not None else None
        if self.base is None or known is None or not self.path(self.base).is_dir():
            return None
        return self.path(self.base), known

    def fault_of(self, height: int, epoch: int, signed_root: bytes | None) -> str:
        """Return why a checkpoint is not to be taken; "": it is. `signed_root`: by its package.

        Raises: OSError for what tells nothing about the checkpoint.
        """
        try:
            root = self.root_of(height)
        except OSError as error:
            if not is_damage(error):
                raise
            return f"can't be read ({error.strerror})"
        if signed_root is not None:
            return "" if root == signed_root else "is not the one in the CUP"
        try:
            noted = self.noted(height)
        except (Malformed, FileNotFoundError):
            return "has no note of what it was"
        if noted.subnet != self.subnet:
            return f"is of another subnet, {noted.subnet}"
        if noted.height != height or noted.epoch > epoch:
            return f"was made at height {noted.height} of epoch {noted.epoch}"
        return "" if noted.root == root else "is not the one that was written"

    # -- notes

    def _note_path(self, height: int) -> Path:
        return self.folder / f"{height:016x}.root"

    def noted(self, height: int) -> Written:
        """Raises: FileNotFoundError, Malformed."""
        return canonical.decode(Written, read_checked(self._note_path(height)))

    def _note(self, height: int, epoch: int, root: bytes) -> None:
        note = Written(self.subnet, epoch, height, root)
        write_checked(self._note_path(height), canonical.encode(note))

    def discard(self, height: int) -> None:
        """Remove a checkpoint and all that is known of it; what has its name is always whole."""
        gone = self._aside("gone", height)
        if self.path(height).exists():
            os.rename(self.path(height), gone)
        self._note_path(height).unlink(missing_ok=True)
        self.manifests.pop(height, None)
        checkpoint.remove(gone)

    # -- making

    def write(self, snapshot: Snapshot, rows: RowStore, changed: checkpoint.Changed) -> bytes:
        """Write a state as files; return the manifest's root. Raises: OSError."""
        height = snapshot.height
        base = self._base() if self.base != height else None
        aside = self._aside("writing", height)
        aside.mkdir()
        writer = checkpoint.Writer(aside, *(base or (None,)))
        writer.write(snapshot, rows, changed)
        if writer.copied:
            self._say_copies()
        sync_folder(aside)
        made = checkpoint.compute_manifest(aside, base, writer.written)
        self._place(aside, height, made, snapshot.system.epoch)
        self.base = height
        return manifest.root(made)

    def _place(self, aside: Path, height: int, made: manifest.Manifest, epoch: int) -> None:
        """Give a finished checkpoint its name, unless the same one has it already."""
        root = manifest.root(made)
        if self.path(height).exists():
            if self._lies_there(height, root):
                checkpoint.remove(aside)
                self._finish(height, made, epoch)
                return
            self.log(f"another checkpoint lay at height {height}: removed")
            self.discard(height)
        self._note(height, epoch, root)
        rename(aside, self.path(height))
        self.manifests[height] = made

    def _finish(self, height: int, made: manifest.Manifest, epoch: int) -> None:
        self._note(height, epoch, manifest.root(made))
        self.manifests[height] = made

    def _lies_there(self, height: int, root: bytes) -> bool:
        """Whether the files at a height, as they are on the disk now, have this root."""
        try:
            return manifest.root(checkpoint.compute_manifest(self.path(height))) == root
        except OSError:
            return False

    def take(self, folder: Path, height: int, root: bytes, epoch: int) -> None:
        """Take over a fetched checkpoint. Raises: NotVerified when its root is another one."""
        computed = checkpoint.compute_manifest(folder)
        if manifest.root(computed) != root:
            raise NotVerified("the fetched checkpoint does not hash to the CUP's root")
        sync_folder(folder)
        self.discard(height)
        self._note(height, epoch, root)
        rename(folder, self.path(height))
        self.manifests[height] = computed

    def adopt(self, height: Height, root: bytes, epoch: int) -> None:
        """Give the checkpoint with a root this height as well (after a recovery)."""
        if self.path(height).exists():
            if self._has_root(height, root):
                return
            self.log(f"the checkpoint at {height} is not the one in the CUP: set aside")
            self.discard(height)
        for older in reversed(self.heights()):
            if older < height and self._has_root(older, root):
                aside = self._aside("adopt", height)
                self._link_all(self.path(older), aside)
                sync_folder(aside)
                computed = checkpoint.compute_manifest(aside)
                if manifest.root(computed) == root:
                    self._place(aside, height, computed, epoch)
                    self.log(f"adopted the checkpoint of height {older} as {height}")
                    return

    def _has_root(self, height: int, root: bytes) -> bool:
        try:
            return self.root_of(height) == root
        except OSError as error:
            if not is_damage(error):
                raise
            return False

    def _link_all(self, source: Path, target: Path) -> None:
        for path in checkpoint.files(source):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            if not link_or_copy(source / path, target / path):
                self._say_copies()

    def _say_copies(self) -> None:
        if not self._copies_said:
            self._copies_said = True
            self.log("hard links fail in the folder of checkpoints: unchanged files are copied")

    def remove_below(self, height: int, keep: int) -> None:
        """Keep the newest `keep` checkpoints below a height, remove older ones."""
        below = [h for h in self.heights() if h < height]
        for h in below[:-keep] if keep else below:
            if h != self.base:
                self.discard(h)


__all__ = ["Checkpoints", "Written"]
