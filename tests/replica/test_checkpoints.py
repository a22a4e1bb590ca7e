"""The folder of checkpoints: what is taken for one, whose it is, and what becomes of the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replica.client import folders
from replica.protocol import manifest
from replica.protocol.errors import MachineFault
from replica.protocol.ids import Height, Principal, SubnetId, canister_id
from replica.state import checkpoint, checkpoints
from replica.state.checkpoints import Checkpoints
from replica.state.state import genesis
from tests.nns import harness
from tests.nns.harness import ADMIN, Machine
from tests.replica.test_execution import recovery_cup

FIRST = canister_id(7)
OTHER = SubnetId(Principal(b"another subnet"))


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def machine_at(folder: Path, height: int) -> Machine:
    """Return a machine at a height, as if it had executed all below."""
    made = Machine(folder)
    made.state._start_from(replace(genesis(harness.SUBNET), height=Height(height)), {}, 1)
    made.height = height
    return made


def with_checkpoint(folder: Path, height: int = 20) -> Machine:
    machine = Machine(folder)
    machine.create(FIRST, [ADMIN.principal])
    while machine.height < height - 1:
        machine.block()
    machine.block(checkpoint=True)
    return machine


def root_of(machine: Machine, height: int) -> bytes:
    found = machine.state.checkpoint_root_at(height)
    assert found is not None
    return found


@pytest.mark.parametrize("height", [10**7 - 1, 10**7, 10**8 - 1, 10**8, 10**10, 16**15])
@pytest.mark.parametrize("what", ["sync_folder", "rename"])
def test_a_crash_while_a_checkpoint_is_written_is_got_over_at_any_height(
    height: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heights of eight digits made the unfinished folder's name as long as a checkpoint's."""

    def fails(*_: object) -> None:
        raise full()

    machine = machine_at(tmp_path, height - 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, what, fails)
        with pytest.raises(MachineFault, match="No space left"):
            machine.block(checkpoint=True)
    assert os.listdir(tmp_path / "checkpoints"), "something was left"
    again = Machine(tmp_path)
    again.state.open(recovery_cup(Height(height - 1), b""))
    assert os.listdir(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("name", ["writing-10000000", "adopt-0000000010", "gone-00000000000000ff"])
def test_what_former_releases_left_unfinished_is_discarded(name: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "checkpoints" / name / "canisters").mkdir(parents=True)
    machine.state.open(recovery_cup(Height(5), b""))
    assert os.listdir(tmp_path / "checkpoints") == []


def test_what_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    machine = with_checkpoint(tmp_path)
    root = root_of(machine, 20)
    names = ["lost+found", "a copy", "000000000000001", "000000000000001G", "00000000000000FF"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("of an operator")
    (tmp_path / "checkpoints" / f"{999:016x}").write_text("a file with a checkpoint's name")
    again = Machine(tmp_path)
    again.state.open(recovery_cup(Height(20), root))
    assert again.state.latest_height == 20 and again.state.checkpoint_heights() == [20]
    assert {*names, "notes.txt"} <= set(os.listdir(tmp_path / "checkpoints"))


def test_another_subnets_checkpoint_is_not_signed_for_ones_own(tmp_path: Path) -> None:
    """It was left behind above the package; its note fitted it, and it was signed in a share."""
    with_checkpoint(tmp_path / "node")
    new = Machine(tmp_path / "new")
    while new.height < 19:
        new.block(checkpoint=new.height == 9)
    new.block(checkpoint=True)
    joins = Machine(tmp_path / "node")
    said: list[str] = []
    joins.state._files.log = said.append
    joins.time_ns = new.time_ns - 10 * 10**9
    joins.state.open(recovery_cup(Height(10), root_of(new, 10)))
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    folder = new.state.folder(10)
    for path in folders.files(folder):
        (fetched / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / path, fetched / path)
    joins.state.install_synced(fetched, Height(10), root_of(new, 10), 1)
    joins.height = 10
    while joins.height < 19:
        joins.block()
    joins.block(checkpoint=True)
    assert root_of(joins, 20) == root_of(new, 20)
    assert manifest.root(checkpoint.compute_manifest(joins.state.folder(20))) == root_of(new, 20)
    assert said == ["another checkpoint lay at height 20: removed"]


def test_a_checkpoint_of_another_subnet_or_height_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness, "SUBNET", OTHER)
        foreign = Machine(tmp_path / "node")
        while foreign.height < 19:
            foreign.block()
        foreign.block(checkpoint=True)
    folder = tmp_path / "node" / "checkpoints"
    files = Checkpoints(folder, harness.SUBNET)
    assert files.fault_of(20, 1, None) == f"is of another subnet, {OTHER}"
    moved = Checkpoints(folder, OTHER)
    assert moved.fault_of(20, 1, None) == ""
    assert "of epoch 1" in moved.fault_of(20, 0, None), "of an epoch that is not known yet"
    for name in (f"{20:016x}", f"{20:016x}.root"):
        os.rename(folder / name, folder / name.replace(f"{20:016x}", f"{30:016x}"))
    assert "made at height 20" in Checkpoints(folder, OTHER).fault_of(30, 1, None)
    (folder / f"{30:016x}.root").write_bytes(b"\0" * 32)
    assert "no note" in Checkpoints(folder, OTHER).fault_of(30, 1, None)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_hard_links_fail_files_are_copied(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any link on: checkpoints, adoption, with the same roots; said once."""

    def run(folder: Path, fails_from: int) -> tuple[list[bytes], list[str], int]:
        links, said, real = [0], [], os.link

        def link(source: Any, target: Any) -> None:
            links[0] += 1
            if links[0] > fails_from:
                raise OSError(code, os.strerror(code))
            real(source, target)

        monkeypatch.setattr(folders.os, "link", link)
        machine = Machine(folder)
        machine.state._files.log = said.append
        machine.create(FIRST, [ADMIN.principal])
        roots = []
        for _ in range(3):
            machine.block(seconds=20)
            machine.block(checkpoint=True)
            roots.append(root_of(machine, machine.height))
        again = Machine(folder)
        again.state._files.log = said.append
        again.state.open(recovery_cup(Height(99), roots[-1]))
        roots.append(root_of(again, 99))
        monkeypatch.setattr(folders.os, "link", real)
        for made in (machine, again):
            for height, root in made.state.known_roots().items():
                found = checkpoint.compute_manifest(made.state.folder(height))
                assert manifest.root(found) == root
        return roots, said, links[0]

    expected, said, count = run(tmp_path / "links", 10**9)
    assert count > 4 and not any("hard links" in line for line in said)
    for number in range(count):
        roots, said, _ = run(tmp_path / str(number), number)
        assert roots == expected
        assert 1 <= sum("hard links fail" in line for line in said) <= 2, "once a process"


def test_the_right_checkpoint_is_adopted_where_a_wrong_one_lies(tmp_path: Path) -> None:
    """No state has to be fetched that is here under another height."""
    machine = with_checkpoint(tmp_path)
    right = root_of(machine, 20)
    machine.block(seconds=20)
    machine.block(checkpoint=True)
    assert root_of(machine, 22) != right
    again = Machine(tmp_path)
    again.state.open(recovery_cup(Height(22), right))
    assert again.state.latest_height == 22 and root_of(again, 22) == right


def test_a_copy_of_what_has_rotten_ends_it_unsigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = with_checkpoint(tmp_path)

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    path = next(p for p in machine.state.folder(20).rglob("*.cbor") if "ingress" in p.parts)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(folders.os, "link", no_link)
    with pytest.raises(MachineFault, match="has rotten"):
        machine.block(checkpoint=True)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_checkpoint_is_kept_when_the_machine_is_short_of_something(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = with_checkpoint(tmp_path)
    root = root_of(machine, 20)
    again = Machine(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "scan", _failing(code))
        with pytest.raises(MachineFault, match="opening the checkpoints"):
            again.state.open(recovery_cup(Height(20), root))
    third = Machine(tmp_path)
    third.state.open(recovery_cup(Height(20), root))
    assert third.state.latest_height == 20


def test_a_checkpoint_with_a_bad_sector_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = with_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoint, "scan", _failing(errno.EIO))
    again = Machine(tmp_path)
    again.state.open(recovery_cup(Height(20), root_of(machine, 20)))
    assert again.state.latest_height == 0 and again.state.checkpoint_heights() == []


def _failing(code: int) -> Callable[..., Any]:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fails


@pytest.mark.parametrize("number", range(14))
def test_whatever_fails_while_a_checkpoint_is_made_ends_unsigned_and_leaves_nothing_torn(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th of all calls that change the disk fails; then the machine starts anew."""
    expected = root_of(with_checkpoint(tmp_path / "sound"), 20)
    machine = Machine(tmp_path / "node")
    machine.create(FIRST, [ADMIN.principal])
    while machine.height < 19:
        machine.block(checkpoint=machine.height == 9)
    package = recovery_cup(Height(10), root_of(machine, 10))
    left = [number]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise full()
            return real(*arguments, **named)

        return act

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "link", "mkdir"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            machine.block(checkpoint=True)
        except MachineFault as fault:
            assert "No space left" in str(fault)
            assert machine.state.store.latch.fault is not None
        else:  # what failed was to make a folder that is there
            assert root_of(machine, 20) == expected
    again = Machine(tmp_path / "node")
    again.state.open(package)
    again.height, again.time_ns = 10, machine.time_ns - 10 * 10**9
    while again.height < 19:
        again.block()
    again.block(checkpoint=True)
    assert root_of(again, 20) == expected
    found = os.listdir(tmp_path / "node" / "checkpoints")
    assert set(found) <= {f"{h:016x}{s}" for h in (10, 20) for s in ("", ".root")}


def test_a_thousand_checkpoints_leave_no_more_than_three(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.create(FIRST, [ADMIN.principal])
    sizes = []
    for turn in range(1000):
        machine.block(checkpoint=True)
        machine.certify()
        machine.state.forget_below(machine.height)
        if turn % 100 == 50:
            paths = list(tmp_path.rglob("*"))
            inodes = {p.stat().st_ino for p in paths}
            links = max(p.stat().st_nlink for p in paths if p.is_file())
            sizes.append((len(paths), len(inodes), links, len(os.listdir("/proc/self/fd"))))
    assert len(machine.state.checkpoint_heights()) <= 3 and len(machine.state.manifests) <= 3
    names, inodes, links, descriptors = (max(s[i] for s in sizes) for i in range(4))
    assert names <= 60 and inodes <= 60 and links <= 4
    assert descriptors <= min(s[3] for s in sizes) + 2
