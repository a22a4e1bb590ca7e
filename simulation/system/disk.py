"""What is left of a machine's files when its power is cut.

Only what was synced is sure to be there: a file's bytes by a sync of the file, its name by a sync
of its folder. Of the rest, each name and each page is drawn: the new one, the old one, or zeros.
The database syncs its own files, out of sight here; they stay as they are, and a replica makes them
anew at every start.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
INSTRUMENTS = ("fault.json", "fault.new", "executed.log")
PINS_MAX = 300
"""So many files and folders are held open before those that nothing refers to are let go."""


class PowerLost(BaseException):
    """Unwinds whatever a machine was doing when its power was cut."""


@dataclass
class _Inode:
    """A file or folder as it is on the platter. Held open, so that its number stays its own."""

    pin: int
    content: bytes | None = None
    """Of a file."""
    entries: dict[str, int] | None = None
    """Of a folder: names to numbers."""


@dataclass
class Tree:
    """What a power cut leaves of a folder."""

    entries: dict[str, bytes | Tree | Path] = field(default_factory=dict)
    """A path: the file that is there stays as it is."""


class Disk:
    """The files of one machine, below one folder."""

    def __init__(self, folder: Path, luck: Callable[..., float]) -> None:
        """`luck`: a number in [0, 1) for a key."""
        self.folder, self._luck = folder, luck
        self._inodes: dict[int, _Inode] = {}
        self.lost: Counter[str] = Counter()
        self.goes_astray = False
        """The next page that a sync brings to the platter lands in another place."""
        self.astray = 0
        """So many pages did."""

    # -- what is synced

    def settle(self) -> None:
        """Take everything as it is for synced."""
        self.close()
        self._settle(self.folder)

    def _settle(self, path: Path) -> None:
        self.synced(path)
        if path.is_dir():
            for entry in path.iterdir():
                self._settle(entry)

    def synced(self, path: Path) -> None:
        """A file or folder was synced."""
        known = self._pin(path)
        if path.is_dir():
            with os.scandir(path) as entries:
                known.entries = {e.name: e.inode() for e in entries}
            if len(self._inodes) > PINS_MAX:
                self._let_go()
        elif not _syncs_itself(path.name):
            known.content = path.read_bytes()

    def wrote(self, path: Path) -> None:
        """A file or folder was synced by who uses it."""
        if self.goes_astray and self._may_stray(path):
            self._misdirect(path)
        self.synced(path)

    def _may_stray(self, path: Path) -> bool:
        """Not in what nothing but a person can mend: see docs/recover-a-subnet.md."""
        if not path.is_file() or _syncs_itself(path.name) or path.name.startswith("pool-"):
            return False
        return path.relative_to(self.folder).parts[0] == "data"

    def _misdirect(self, path: Path) -> None:
        """Put one page that is new in a file over a page of this or another file."""
        known = self._inodes.get(os.stat(path).st_ino)
        old = (known.content if known is not None else None) or b""
        new = path.read_bytes()
        starts = range(0, len(new), PAGE_BYTES)
        fresh = [s for s in starts if new[s : s + PAGE_BYTES] != old[s : s + PAGE_BYTES]]
        if not fresh:
            return
        start = fresh[int(self._luck("stray page") * len(fresh))]
        page = new[start : start + PAGE_BYTES]
        _put(path, start, old[start : start + len(page)].ljust(len(page), b"\0"))
        files = [f for f in sorted((self.folder / "data").rglob("*")) if self._may_stray(f)]
        hit = files[int(self._luck("hit file") * len(files))]
        size = hit.stat().st_size
        where = PAGE_BYTES * int(self._luck("hit page") * -(-size // PAGE_BYTES))
        _put(hit, where, page[: size - where])
        self.synced(hit)
        self.goes_astray = False
        self.astray += 1

    def _pin(self, path: Path) -> _Inode:
        number = os.stat(path).st_ino
        known = self._inodes.get(number)
        if known is None:
            known = self._inodes[number] = _Inode(os.open(path, os.O_PATH))
        return known

    def _let_go(self) -> None:
        """Forget what is gone from here and from the platter."""
        kept: set[int] = set()
        waiting = [os.stat(self.folder).st_ino]
        while waiting:
            number = waiting.pop()
            known = self._inodes.get(number)
            if known is not None and number not in kept:
                kept.add(number)
                waiting += (known.entries or {}).values()
        for number in [n for n in self._inodes if n not in kept]:
            if os.fstat(self._inodes[number].pin).st_nlink == 0:
                os.close(self._inodes.pop(number).pin)

    def close(self) -> None:
        for known in self._inodes.values():
            os.close(known.pin)
        self._inodes.clear()

    # -- what is left

    def remains(self) -> Tree:
        """Draw what a power cut now would leave."""
        return self._remains(os.stat(self.folder).st_ino, self.folder, "")

    def _remains(self, number: int, here: Path | None, name: str) -> Tree:
        known = self._inodes.get(number)
        before = (known.entries or {}) if known is not None else {}
        now = before
        if here is not None:
            with os.scandir(here) as entries:
                now = {e.name: e.inode() for e in entries}
        moved = {inode: e for e, inode in before.items() if now.get(e) != inode}
        tree = Tree()
        for entry in sorted({*before, *now}):
            path = f"{name}/{entry}"
            chosen = now.get(entry)
            old = before.get(entry)
            # Renaming happens as a whole or not at all: both names ask for the same draw.
            asked = moved.get(chosen, entry) if chosen is not None else entry
            lost = self._luck("name", name, asked) < 0.5
            if chosen != old and lost and not _syncs_itself(entry):
                self.lost["names"] += 1
                chosen = old
            if chosen is None:
                continue
            found = here / entry if here is not None and chosen == now.get(entry) else None
            what = self._what(chosen, found, path)
            if what is not None:
                tree.entries[entry] = what
        return tree

    def _what(self, number: int, here: Path | None, path: str) -> bytes | Tree | Path | None:
        """`here`: where the file or folder can be seen; None: only the platter still has it."""
        known = self._inodes.get(number)
        if here is not None and here.is_dir():
            return self._remains(number, here, path)
        if here is None and known is not None and known.entries is not None:
            return self._remains(number, None, path)
        if here is not None and _syncs_itself(here.name):
            return here
        synced = known.content if known is not None else None
        if here is None:
            return synced
        present = here.read_bytes()
        if present == synced:
            return here
        self.lost["writes"] += 1
        return self._torn(synced or b"", present, path)

    def _torn(self, old: bytes, new: bytes, path: str) -> bytes:
        """Draw each page and the length: of what was written, any part may have arrived."""
        dice = self._luck("length", path)
        if dice < 0.25:
            return old
        if dice < 0.5:
            return new
        size = min(len(old), len(new)) + int(self._luck("size", path) * abs(len(new) - len(old)))
        out = bytearray()
        for start in range(0, size, PAGE_BYTES):
            source = new if self._luck("page", path, start) < 0.6 else old
            page = source[start : min(start + PAGE_BYTES, size)]
            out += page + bytes(min(PAGE_BYTES, size - start) - len(page))
        return bytes(out)

    def become(self, tree: Tree) -> None:
        """Replace the files by what is left of them: from now on that is synced."""
        aside = self.folder.with_name(self.folder.name + ".cut")
        _build(tree, aside)
        shutil.rmtree(self.folder)
        aside.rename(self.folder)
        self.settle()


def _put(path: Path, position: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)


def _build(tree: Tree, folder: Path) -> None:
    folder.mkdir()
    for name, what in tree.entries.items():
        if isinstance(what, Tree):
            _build(what, folder / name)
        elif isinstance(what, bytes):
            (folder / name).write_bytes(what)
        elif what.exists():  # the process that was cut off may have tidied up on its way out
            os.link(what, folder / name)


def _syncs_itself(name: str) -> bool:
    """The database does; and what only a drill reads or writes is no part of the machine."""
    return ".db" in name or name in INSTRUMENTS


class Disks:
    """The disks of all machines: told of every sync while a system runs."""

    def __init__(self) -> None:
        self._disks: dict[str, tuple[Disk, Callable[[], None]]] = {}

    def add(self, disk: Disk, before_sync: Callable[[], None]) -> None:
        """`before_sync` may raise PowerLost."""
        self._disks[str(disk.folder) + "/"] = (disk, before_sync)

    def _sync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        for folder, (disk, before_sync) in self._disks.items():
            if f"{path}/".startswith(folder):
                before_sync()
                if os.fstat(number).st_nlink:  # others may have acted meanwhile
                    disk.wrote(Path(os.readlink(f"/proc/self/fd/{number}")))
                return

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have syncs come here instead of to the operating system: nothing outlives a run."""
        before = os.fsync, os.fdatasync
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        os.fsync = os.fdatasync = self._sync  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync, os.fdatasync = before
            for disk, _ in self._disks.values():
                disk.close()
            with suppress(ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
