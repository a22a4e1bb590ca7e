"""Releases on a node: downloaded over real sockets, verified, two kept, handed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.lab.ground import Ground
from cli.lab.mirror import Mirror
from orchestrator.releases import Releases
from replica.abi.bundle import pack
from replica.client import release
from replica.client.agent import World
from replica.client.local_registry import LocalRegistry, replica_version
from replica.protocol.errors import LimitExceeded, Malformed, NotFound, NotVerified, Unavailable
from replica.protocol.ids import NodeId, Principal, RegistryVersion
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.registry_transport import Delta, Mutation, encode_batch
from replica.runtime.settings import NodeSettings

PACKAGES = {v: pack([("replica/__main__.py", f"# {v}\n".encode())]) for v in ("a1", "b2", "c3")}


class Site:
    """A node's releases, a mirror, and a registry to elect in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = Ground().free_ports(1)[0]
        self.mirror = Mirror(folder / "mirror", self.port)
        self.mirror.start()
        self.said: list[str] = []
        self.peers: list[str] = []
        (folder / "node" / "data").mkdir(parents=True)
        (folder / "node" / "releases").mkdir()
        settings = NodeSettings(
            folder / "node",
            NodeId(Principal(b"node")),
            1,
            2,
            3,
            (),
            b"",
            folder / "node" / "releases",
            1,
            1,
        )
        self.records = LocalRegistry(settings.registry_path, writable=True)
        self.releases = Releases(
            settings, self.records, lambda: self.peers, self.said.append, World()
        )

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def elect(self, version: str, *urls: str) -> str:
        digest = release.digest(PACKAGES[version])
        record = pb.ReplicaVersionRecord(release_package_sha256_hex=digest)
        record.release_package_urls.extend(urls)
        mutation = Mutation(replica_version(version), record.SerializeToString())
        next_version = RegistryVersion(self.records.version + 1)
        self.records.append([Delta(next_version, encode_batch((mutation,)))])
        return digest

    def publish(self, version: str, data: bytes | None = None) -> str:
        content = PACKAGES[version] if data is None else data
        (self.folder / "mirror" / version).write_bytes(content)
        return self.url(version)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.mirror.stop()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_a_release_is_downloaded_verified_and_unpacked(site: Site) -> None:
    digest = site.elect("a1", site.publish("a1"))
    with pytest.raises(Unavailable, match="not here yet"):
        site.releases.folder("a1")
    site.releases.prepare(["a1"])
    until(lambda: site.releases.has("a1"))
    assert (site.releases.folder("a1") / "replica" / "__main__.py").read_text() == "# a1\n"
    assert site.releases.package(digest) == PACKAGES["a1"]
    with pytest.raises(NotFound):
        site.releases.folder("never elected")


def test_a_wrong_hash_is_refused_and_the_next_source_is_asked(site: Site) -> None:
    bad, missing = site.publish("bad", b"something else"), site.url("missing")
    site.elect("a1", bad)
    site.releases.prepare(["a1"])
    until(lambda: "elected SHA-256" in site.releases.last_error)
    assert not site.releases.has("a1")
    assert [p.name for p in site.releases.root.iterdir()] == []
    site.elect("b2", bad, missing, site.publish("b2"))
    until(lambda: not site.releases._download_task or not site.releases._download_task.is_alive())
    site.releases.prepare(["b2"])
    until(lambda: site.releases.has("b2"))


def test_peers_hand_releases_on(site: Site) -> None:
    digest = site.elect("a1")
    path = site.folder / "mirror" / "release"
    path.mkdir()
    (path / digest).write_bytes(PACKAGES["a1"])
    site.peers = ["http://127.0.0.1:1", f"http://127.0.0.1:{site.port}"]
    site.releases.prepare(["a1"])
    until(lambda: site.releases.has("a1"))
    assert site.releases.package(digest) == PACKAGES["a1"], "and on to the next"


def _rot(folder: Path) -> None:
    compiled = next(folder.rglob("*.pyc"))
    data = bytearray(compiled.read_bytes())
    data[-3] ^= 4
    compiled.write_bytes(data)


def _replace_source(folder: Path) -> None:
    (folder / "replica" / "__main__.py").write_text("raise SystemExit(1)\n")


ROTS: dict[str, Callable[[Path], object]] = {
    "a bit of what was compiled": _rot,
    "a source": _replace_source,
    "a source is gone": lambda folder: (folder / "replica" / "__main__.py").unlink(),
    "a module too many": lambda folder: (folder / "json.py").write_text("import os"),
    "compiled code too many": lambda folder: (folder / "json.pyc").write_bytes(b"x"),
    "no list of files": lambda folder: folder.with_suffix(".files").unlink(),
    "the list of files": lambda folder: folder.with_suffix(".files").write_bytes(b"x"),
}


@pytest.mark.parametrize("what", ROTS)
def test_a_release_that_rotted_is_unpacked_anew_before_anything_starts(
    site: Site, what: str
) -> None:
    digest = site.elect("a1")
    site.releases.take(PACKAGES["a1"], digest)
    folder = site.releases.ready("a1")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert not site.said and any(p.suffix == ".pyc" for p in before)
    ROTS[what](folder)
    assert not release.is_sound(site.releases.root, digest)
    assert site.releases.ready("a1") == folder
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert len(site.said) == 1 and "unpacked anew" in site.said[0]
    names = {p.name for p in site.releases.root.iterdir()}
    assert names == {digest, f"{digest}.zip", f"{digest}.files"}


def test_a_release_whose_package_rotted_too_is_fetched_again(site: Site) -> None:
    digest = site.elect("a1", site.publish("a1"))
    site.releases.take(PACKAGES["a1"], digest)
    _rot(site.releases.folder("a1"))
    release.package_path(site.releases.root, digest).write_bytes(PACKAGES["b2"])
    with pytest.raises(Unavailable, match="fetched again"):
        site.releases.ready("a1")
    assert not site.releases.has("a1") and not list(site.releases.root.iterdir())
    site.releases.prepare(["a1"])
    until(lambda: site.releases.has("a1"))
    assert site.releases.ready("a1")


def test_what_a_crash_left_is_swept_and_nothing_else(site: Site) -> None:
    kept, gone = site.elect("a1"), "ab" * 32
    site.releases.take(PACKAGES["a1"], kept)
    root = site.releases.root
    left = [f"{gone}.zip", f"{gone}.files", f"{kept}.zip.new", f"{kept}.files.new"]
    foreign = ["a copy of mine.zip", f"{gone}.zip.bak", "lost+found", "unpacking-", gone[:60]]
    for name in (*left, *foreign):
        (root / name).write_bytes(b"x")
    for name in (f"unpacking-{gone}", f"dropping-{kept}"):
        (root / name / "replica").mkdir(parents=True)
    before = {p.name for p in root.iterdir()}
    site.releases.sweep()
    after = {p.name for p in root.iterdir()}
    assert before - after == {*left, f"unpacking-{gone}", f"dropping-{kept}"}
    assert after == {kept, f"{kept}.zip", f"{kept}.files", *foreign}
    assert site.releases.ready("a1") and len(site.said) == 1


def test_two_releases_are_kept(site: Site) -> None:
    digests = {v: site.elect(v, site.publish(v)) for v in PACKAGES}
    for wanted in (["a1"], ["a1", "b2"], ["b2"], ["b2", "c3"], ["c3"]):
        site.releases.prepare(wanted)
        until(lambda w=wanted: all(site.releases.has(v) for v in w))  # type: ignore[misc]
        until(
            lambda: not site.releases._download_task or not site.releases._download_task.is_alive()
        )
        site.releases.prepare(wanted)
    held = {p.name for p in site.releases.root.iterdir() if p.is_dir()}
    assert held == {digests["b2"], digests["c3"]}
    assert not (site.releases.root / f"{digests['a1']}.zip").exists()


@pytest.mark.parametrize("name", ["", "..", "../../keys.json", "z" * 64, "a" * 65, "/" * 64])
def test_only_packages_are_handed_on(site: Site, name: str) -> None:
    with pytest.raises(NotFound):
        site.releases.package(name)


def test_packages_that_are_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotVerified):
        release.unpack(PACKAGES["a1"], tmp_path, "00" * 32)
    with pytest.raises(Malformed, match="can't be unpacked"):
        release.unpack(b"noise", tmp_path, release.digest(b"noise"))
    with pytest.raises(Malformed, match=r"no replica/__main__\.py"):
        release.describe(pack([("x", b"")]))
    monkeypatch.setattr(release, "UNPACKED_BYTES_MAX", 3)
    with pytest.raises(LimitExceeded):
        release.unpack(PACKAGES["a1"], tmp_path, release.digest(PACKAGES["a1"]))
    assert not [p for p in tmp_path.iterdir() if len(p.name) == 64], "nothing half-unpacked stays"
