"""A journal on a real file system whose device fails below it, where root may mount one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.disks.image import Image
from cli.lab.disks.tools import run, why_no_images
from replica.runtime import journal

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(why_no_images()), reason=f"no file systems here: {why_no_images()}"),
]
HOST_BYTES, DEVICE_BYTES = 40 << 20, 24 << 20
SMALL, LARGE = 6_000, 400_000
"""Bytes of a record that fits where others were before, and of one that takes new blocks."""
WRITE = """
import sys
from pathlib import Path
from replica.runtime.journal import Journal
held = Journal(Path(sys.argv[1]))
print(*[r[:1].decode() for r in held.records], flush=True)
letters = sys.stdin.readline().strip()
held.append([letters.encode()])
print("promised", flush=True)
"""


class Device:
    """A file system on a device that has no room for what it promised to keep."""

    def __init__(self, folder: Path) -> None:
        self.host = folder / "host"
        self.image = Image(self.host / "image", folder / "disk", DEVICE_BYTES)
        self.journal = folder / "disk" / "pool.journal"

    def make(self) -> None:
        self.host.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={HOST_BYTES}", "none", str(self.host)])
        self.image.make("-O", "^has_journal")

    def close(self) -> None:
        try:
            self.image.close()
        finally:
            run(["umount", str(self.host)])

    def fail(self) -> None:
        """From now on blocks that were never written before get an error."""
        os.sync()
        run(["fallocate", "--dig-holes", str(self.image.path)])
        with open(self.host / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                return

    def work_again(self) -> None:
        (self.host / "filler").unlink()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.close()


class Writer:
    """A process that opens the journal, and appends one record."""

    def __init__(self, device: Device) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(device.journal)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.held = self._process.stdout.readline().split()
        """What the journal offered when it was opened."""

    def append(self, record: str) -> bool:
        """Whether a record was promised."""
        told, _ = self._process.communicate(record + "\n", timeout=60)
        return told == "promised\n"


def test_what_a_real_device_did_not_take_spoils_nothing_that_is_promised_after_it(
    device: Device,
) -> None:
    """Its pages stay in memory, clean: a restart may believe in them, if it writes them anew."""
    assert Writer(device).append("a" * SMALL)
    writer = Writer(device)
    device.fail()
    assert not writer.append("b" * LARGE)
    device.work_again()
    writer = Writer(device)
    assert writer.held[:1] == ["a"]
    assert writer.append("c" * SMALL)
    device.image.unmount()  # what memory holds of it is forgotten
    device.image.mount()
    found = journal.read(device.journal)
    assert not found.damage
    assert [r[:1].decode() for r in found.records] == [*writer.held, "c"]
