"""Files that two processes replace at the same time, and files that are damaged."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from replica.protocol.errors import MachineFault, Malformed
from replica.runtime.durable import read_checked, write_checked
from replica.state.store import Store

ROUNDS = 200
WRITER = """
import sys
from pathlib import Path
from replica.runtime.durable import write_durably
path, letter, aside = Path(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for i in range({rounds}):
    write_durably(path, letter * (10_000 + i), aside=aside)
    seen = path.read_bytes()
    assert len(seen) >= 10_000 and len(set(seen)) == 1, "a file that nobody wrote"
"""


def _write_at_once(path: Path, asides: tuple[str, str]) -> list[int]:
    """Return the exit statuses of two processes that replace a file all the time."""
    command = [sys.executable, "-c", WRITER.format(rounds=ROUNDS), str(path)]
    writers = [
        subprocess.Popen(
            [*command, letter, aside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for letter, aside in zip("ab", asides)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    return [writer.wait(120) for writer in writers]


def test_two_processes_that_write_aside_differently_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "cup.stored"
    assert _write_at_once(path, (".new", ".fetched")) == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["cup.stored"]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 40])
def test_a_file_with_a_checksum_is_what_was_written_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    write_checked(path, data)
    assert read_checked(path) == data
    whole = path.read_bytes()
    draw = random.Random(len(data))
    flips = [draw.randrange(8 * len(whole)) for _ in range(200)]
    for bit in flips:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(Malformed, match="damaged"):
            read_checked(path)
    for other in (b"", whole[:-1], whole[1:], whole + b"\n", bytes(len(whole)), b"other" * 999):
        path.write_bytes(other)
        with pytest.raises(Malformed, match="damaged"):
            read_checked(path)


def test_a_damaged_database_is_no_reason_not_to_start(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Store(f"sqlite:///{path}").close()
    for name in ("state.db", "state.db-wal"):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(20_000))
    with pytest.raises(MachineFault, match="opening the database"):
        Store(f"sqlite:///{path}")
    Store(f"sqlite:///{path}", fresh=True).close()
    Store(f"sqlite:///{path}").close()
