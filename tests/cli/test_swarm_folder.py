"""A swarm's folder after a power cut: no swarm at all, or one whose keys are all there."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from cli.lab import swarm as lab
from cli.lab.ground import Ground
from cli.lab.layout import Swarm
from replica.abi.bundle import pack
from replica.client import release
from replica.client.local_registry import LocalRegistry
from replica.protocol.errors import Conflict, Malformed
from replica.runtime import settings as node_settings
from simulation.system.disk import Disk, Disks

OPTIONS = lab.Options(nns_nodes=1, app_nodes=1)
PACKAGE = pack([("replica/__main__.py", b"# nothing\n")])


class Small(Ground):
    def first_release(self, published: Path) -> Path:
        return release.unpack(PACKAGE, published, release.digest(PACKAGE))


class Cut(BaseException):
    pass


def _check(folder: Path) -> None:
    """All that the swarm needs is there, and only its owner reads what is secret."""
    swarm = Swarm.load(folder)
    for name in ("default", "council", "community", "initializer", "operator-nns-0"):
        assert swarm.identity(name).principal
        mode = stat.S_IMODE((folder / "identities" / f"{name}.pem").stat().st_mode)
        assert mode == 0o600
    for node in swarm.nodes:
        settings = node_settings.load(node.folder)
        assert settings.secrets() and settings.check_owner()
        assert stat.S_IMODE((node.folder / "keys.json").stat().st_mode) == 0o600
        store = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
        assert store.version == 1
        digest = release.digest(PACKAGE)
        assert (settings.releases / digest / "replica" / "__main__.py").read_bytes()
        assert (settings.releases / f"{digest}.zip").read_bytes() == PACKAGE
    assert bytes.fromhex(json.loads((folder / "swarm.json").read_text())["genesis"])


def test_a_power_cut_leaves_no_swarm_or_a_whole_one(tmp_path: Path) -> None:
    """Whatever was not synced is lost: all names, all bytes. Cut at each sync, and at the end."""
    whole = cuts = 0
    step = 23
    while not whole:
        folder = tmp_path / str(cuts)
        folder.mkdir()
        disk, disks, left = Disk(folder, lambda *_: 0.0), Disks(), [1 + step * cuts]

        def count(left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Cut

        disk.settle()
        disks.add(disk, count)
        with disks.watched():
            try:
                lab.create(folder, OPTIONS, Small())
            except Cut:
                pass
            else:
                whole += 1
            disk.become(disk.remains())
        if (folder / "swarm.json").exists():
            _check(folder)
        else:
            assert not whole
        cuts += 1
    assert cuts > 3


def test_files_that_hold_keys_are_refused_when_empty_with_the_way_on(tmp_path: Path) -> None:
    swarm = lab.create(tmp_path / "swarm", OPTIONS, Small())
    node = swarm.nodes[0].folder
    for name in ("keys.json", "node.json", "root_key.der"):
        path = node / name
        kept = path.read_bytes() if path.exists() else None
        for content in (b"", b'{"sign', bytes(100), b"[]"):
            path.write_bytes(content)
            with pytest.raises(Malformed, match=rf"{name} .*(good copy|remove it)") as told:
                node_settings.load(node).secrets()
            assert "\n" not in str(told.value)
        path.unlink() if kept is None else path.write_bytes(kept)
    node_settings.load(node).secrets()
    (tmp_path / "swarm" / "identities" / "default.pem").write_bytes(b"")
    with pytest.raises(Malformed, match=r"default\.pem holds no private key \(0 bytes\)"):
        swarm.identity("default")
    (tmp_path / "swarm" / "swarm.json").write_bytes(b"")
    with pytest.raises(Malformed, match="start another swarm"):
        Swarm.load(tmp_path / "swarm")


def test_a_node_takes_no_other_nodes_data_and_changes_nothing_of_it(tmp_path: Path) -> None:
    swarm = lab.create(tmp_path / "swarm", OPTIONS, Small())
    ours, theirs = [node_settings.load(n.folder) for n in swarm.nodes]
    shutil.rmtree(ours.data)
    shutil.copytree(theirs.data, ours.data)
    for marked in (True, False):
        if not marked:
            ours.owner_path.unlink()
        before = {p: p.read_bytes() for p in ours.data.rglob("*") if p.is_file()}
        match = f"the data of node {theirs.node}" if marked else "is the registry store of node"
        with pytest.raises((Conflict, Malformed), match=match):
            ours.claim_data()
        assert {p: p.read_bytes() for p in ours.data.rglob("*") if p.is_file()} == before
    shutil.rmtree(ours.data)
    ours.claim_data()
    assert ours.check_owner()
    ours.owner_path.write_bytes(b"rotten")
    ours.claim_data()
    assert ours.check_owner()


def test_a_folder_that_is_moved_looks_at_its_own_place(tmp_path: Path) -> None:
    swarm = lab.create(tmp_path / "swarm", OPTIONS, Small())
    os.rename(swarm.nodes[0].folder, tmp_path / "moved")
    settings = node_settings.load(tmp_path / "moved")
    assert settings.releases == tmp_path / "moved" / "releases" and settings.releases.is_dir()


def test_what_a_state_is_cleared_of_goes_before_its_package(tmp_path: Path) -> None:
    swarm = lab.create(tmp_path / "swarm", OPTIONS, Small())
    settings = node_settings.load(swarm.nodes[0].folder)
    settings.cup_path.write_bytes(b"a package")
    (settings.data / "checkpoints" / "0").mkdir(parents=True)
    real = os.rmdir

    def interrupted(*arguments: object, **more: object) -> None:
        raise Cut

    os.rmdir = interrupted  # type: ignore[assignment]
    try:
        with pytest.raises(Cut):
            settings.clear_state()
    finally:
        os.rmdir = real
    assert settings.cup_path.exists()
    settings.clear_state()
    assert {p.name for p in settings.data.iterdir()} == {"owner", "registry.journal"}
