"""Journals on a simulated disk, apart from any replica: power cuts, kills, writes that go astray.

Each round appends to the journals of one machine, does something to one of them, and opens it
again. What counts is what a replica would do next: it offers what it reads, so that must be on the
disk, and it refuses what is damaged, so nothing that was promised may be missing without a word.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from replica.protocol.errors import Malformed
from replica.runtime import journal_format
from replica.runtime.journal import Journal
from simulation.checker import Violation
from simulation.scheduler import draw
from simulation.system.disk import PAGE_BYTES, Disk, Disks

ROUNDS = 12
JOURNALS = ("pool-1", "pool-2", "registry")
RECORD_BYTES_MAX = 3000


class Shelf:
    """The journals of a machine, and what each has promised."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder, self.turn = seed, folder, 0
        self.disk = Disk(folder, lambda *key: self.luck("disk", *key))
        self.promised: dict[str, list[bytes]] = {name: [] for name in JOURNALS}

    def luck(self, *key: object) -> float:
        return draw(self.seed, "pages", self.turn, *key)

    def bytes_of(self, *key: object) -> bytes:
        size = int(self.luck("size", *key) * RECORD_BYTES_MAX)
        return b"".join([b"%08d" % int(self.luck("word", *key) * 10**8)] * (size // 8 + 1))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.journal"

    def open(self, name: str) -> Journal:
        return Journal(self.path(name), f"{name} of a node")

    def reopen(self, name: str) -> Journal:
        """Open what no disk has damaged."""
        try:
            return self.open(name)
        except Malformed as error:
            raise Violation(f"{name} is refused, of which nothing was damaged: {error}") from error

    def fill(self, name: str) -> None:
        """Append a few batches: all of them are promised."""
        journal = self.reopen(name)
        self._look(name, journal.records, "opened")
        self.promised[name] = journal.records
        for i in range(1 + int(self.luck("batches", name) * 12)):
            batch = [self.bytes_of(name, i, j) for j in range(1 + i % 3)]
            journal.append(batch)
            self.promised[name] = [*self.promised[name], *batch]
        journal.close()

    def _look(self, name: str, records: list[bytes], after: str) -> None:
        before = self.promised[name]
        if records[: len(before)] != before:
            raise Violation(f"{name}: {len(before)} promised records are not all there {after}")

    # -- faults

    def kill_in_append(self, name: str, *, cut: bool) -> None:
        """Write a batch and no sync. `cut`: the power goes, else only the process; then whoever
        opens the file offers what he finds, and the power goes after that."""
        journal = self.reopen(name)
        data, _ = journal_format.seal(journal._chain, [self.bytes_of(name, "last")])
        assert journal._file is not None
        journal._file.write(data)
        journal.close()
        if not cut:
            offered = self.reopen(name)
            self._look(name, offered.records, "after a kill")
            self.promised[name] = offered.records
            offered.close()
        self.disk.become(self.disk.remains())

    def misdirect(self, name: str) -> None:
        """A page of another journal lands in this one, at its own place or at another one."""
        others = [n for n in JOURNALS if n != name]
        other = self.path(others[int(self.luck("whose") * len(others))]).read_bytes()
        data = bytearray(self.path(name).read_bytes())
        start = PAGE_BYTES * int(self.luck("which") * -(-len(other) // PAGE_BYTES))
        page = other[start : start + PAGE_BYTES]
        at = start if self.luck("aligned") < 0.5 else PAGE_BYTES * int(self.luck("at") * 4)
        data[at : at + len(page)] = page[: max(0, len(data) - at)]
        self.hit(name, data)

    def reorder(self, name: str) -> None:
        """A batch is missing, is there twice, or two are swapped: blocks that a disk mixed up."""
        parts = self._batches(name)
        i = 1 + int(self.luck("batch") * max(1, len(parts) - 2))
        if i + 1 < len(parts):
            changed = [parts[i + 1], parts[i]], [parts[i]] * 2 + [parts[i + 1]], [parts[i + 1]]
            parts[i : i + 2] = changed[int(self.luck("how") * 3)]
        self.hit(name, b"".join(parts))

    def _batches(self, name: str) -> list[bytes]:
        """Return the header, and the batches as they lie in the file."""
        with open(self.path(name), "rb") as file:
            header = journal_format.read_header(file)
            assert header is not None
            data = self.path(name).read_bytes()
        starts = [header[1].position]
        while starts[-1] < len(data):
            length = journal_format.body_bytes(data[starts[-1] :])
            starts.append(starts[-1] + journal_format.HEAD_BYTES + length)
        return [data[a:b] for a, b in zip([0, *starts], starts)]

    def hit(self, name: str, data: bytes | bytearray) -> None:
        """Put a damaged file there; it must be refused, or hold all that was promised.

        Damage in the last batch alone looks like an interrupted write, and is left out.
        """
        *before, _ = self._batches(name)
        whole = self.path(name).read_bytes()
        if bytes(data).startswith(b"".join(before)):
            return
        self.path(name).write_bytes(data)
        try:
            opened = self.open(name)
        except Malformed:
            self.path(name).write_bytes(whole)  # a person put a good copy there
        else:
            self._look(name, opened.records, "and nobody was told")
            opened.close()
        self.disk.settle()


def run(seed: int) -> None:
    """Raises: Violation."""
    with tempfile.TemporaryDirectory() as folder:
        shelf, disks = Shelf(seed, Path(folder) / "node"), Disks()
        shelf.folder.mkdir()
        shelf.disk.settle()
        disks.add(shelf.disk, lambda: None)
        with disks.watched():
            for shelf.turn in range(ROUNDS):
                for name in JOURNALS:
                    shelf.fill(name)
                _fault(shelf, JOURNALS[int(shelf.luck("hit") * len(JOURNALS))])


def _fault(shelf: Shelf, name: str) -> None:
    kind = int(shelf.luck("kind") * 4)
    if kind < 2:
        shelf.kill_in_append(name, cut=bool(kind))
    elif kind == 2:
        shelf.misdirect(name)
    else:
        shelf.reorder(name)
