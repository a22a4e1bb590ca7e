"""State sync against honest, forgetful and lying peers."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from replica.client import folders
from replica.protocol import manifest
from replica.protocol.errors import NotVerified
from replica.protocol.ids import Height, NodeId, Principal
from replica.state_sync import serve
from replica.state_sync.assemble import Assembly
from replica.state_sync.fetch import Fetched, Fetcher
from replica.state_sync.plan import plan

PEERS = [NodeId(Principal(bytes([i]))) for i in range(3)]


def fill(folder: Path, files: dict[str, bytes]) -> manifest.Manifest:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folders.manifest_of(folder)


OLD = {"a/one": b"1" * 5000, "a/two": b"2" * 7000, "b/three": b"3" * (3 << 20)}
NEW = {
    "a/one": b"1" * 5000,
    "c/renamed": b"2" * 7000,
    "b/three": b"3" * (2 << 20) + b"4" * (1 << 20),
    "fresh": b"5" * 900,
    "empty": b"",
}


class Network:
    """Peers that serve one checkpoint; `lie` and `forget` say which of them misbehave."""

    def __init__(self, folder: Path, contents: manifest.Manifest) -> None:
        self.folder, self.contents = folder, contents
        self.root = manifest.root(contents)
        self.lie: set[NodeId] = set()
        self.forget: set[NodeId] = set()
        self.asked: list[tuple[NodeId, str, int]] = []

    async def request(
        self, peer: NodeId, height: int, root: bytes, kind: str, index: int
    ) -> bytes | None:
        self.asked.append((peer, kind, index))
        await asyncio.sleep(0)
        if peer in self.forget:
            return None
        data = serve.serve(self.folder, self.contents, root, kind, index)
        if data is not None and peer in self.lie:
            return bytes([data[0] ^ 1]) + data[1:] if data else b"x"
        return data

    def advertisers(self, height: int, root: bytes) -> list[NodeId]:
        return PEERS if root == self.root else []


def fetch(network: Network, scratch: Path, base: Path | None, timeout: float = 20) -> Fetched:
    fetcher = Fetcher(scratch, PEERS[0], network.request, network.advertisers, lambda _: None)
    old = (base, folders.manifest_of(base)) if base else None

    async def run() -> Fetched:
        return await asyncio.wait_for(fetcher.fetch(Height(9), network.root, old), timeout)

    return asyncio.run(run())


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path / "new", fill(tmp_path / "new", NEW))


def check(network: Network, fetched: Fetched) -> None:
    assert manifest.root(folders.manifest_of(fetched.folder)) == network.root
    for name, data in NEW.items():
        assert (fetched.folder / name).read_bytes() == data


def test_from_nothing_all_is_fetched(network: Network, tmp_path: Path) -> None:
    fetched = fetch(network, tmp_path / "scratch", None)
    check(network, fetched)
    assert fetched.bytes_reused == 0
    assert fetched.bytes_fetched == sum(len(d) for d in NEW.values())


def test_only_what_changed_is_fetched(network: Network, tmp_path: Path) -> None:
    fill(tmp_path / "old", OLD)
    fetched = fetch(network, tmp_path / "scratch", tmp_path / "old")
    check(network, fetched)
    assert fetched.bytes_fetched == (1 << 20) + 900
    assert fetched.bytes_reused == 5000 + 7000 + (2 << 20)


def test_lying_and_forgetful_peers_only_delay(network: Network, tmp_path: Path) -> None:
    network.lie, network.forget = {PEERS[0]}, {PEERS[1]}
    check(network, fetch(network, tmp_path / "scratch", None))
    lies = [a for a in network.asked if a[0] == PEERS[0]]
    assert len(lies) < 20, "a liar is not asked again and again"


def test_a_rotten_local_file_heals(network: Network, tmp_path: Path) -> None:
    fill(tmp_path / "old", OLD)
    base = (tmp_path / "old", folders.manifest_of(tmp_path / "old"))
    with open(tmp_path / "old" / "a" / "one", "r+b") as file:
        file.write(b"X")
    fetcher = Fetcher(
        tmp_path / "scratch", PEERS[0], network.request, network.advertisers, lambda _: None
    )
    fetched = asyncio.run(fetcher.fetch(Height(9), network.root, base))
    check(network, fetched)
    assert fetched.bytes_fetched == (1 << 20) + 900 + 5000


def test_an_advertised_root_that_is_false_is_never_assembled(
    network: Network, tmp_path: Path
) -> None:
    network.lie = set(PEERS)
    with pytest.raises(TimeoutError):
        fetch(network, tmp_path / "scratch", None, timeout=1.0)
    assert not list((tmp_path / "scratch").rglob("fresh"))


def test_a_chunk_that_does_not_match_is_not_written(network: Network, tmp_path: Path) -> None:
    contents = network.contents
    assembly = Assembly(tmp_path / "scratch", contents, None, plan(None, contents))
    (tmp_path / "scratch").mkdir()
    assembly.prepare()
    index = min(assembly.missing)
    size = contents.chunks[index].size_bytes
    with pytest.raises(NotVerified, match="does not match its hash"):
        assembly.accept(index, b"\xee" * size)
    with pytest.raises(NotVerified):
        assembly.accept(index, b"")
    assert index in assembly.missing and assembly.bytes_fetched == 0


def test_a_restart_goes_on_where_it_stopped(network: Network, tmp_path: Path) -> None:
    contents = network.contents
    scratch = tmp_path / "scratch" / f"sync-{network.root.hex()[:16]}"
    scratch.mkdir(parents=True)
    first = Assembly(scratch, contents, None, plan(None, contents))
    first.prepare()
    for index in sorted(first.missing)[:3]:
        data = serve.serve(network.folder, contents, network.root, "chunk", index)
        assert data is not None
        first.accept(index, data)
    fetched = fetch(network, tmp_path / "scratch", None)
    check(network, fetched)
    assert fetched.bytes_fetched == sum(len(d) for d in NEW.values()) - first.bytes_fetched


def test_local_files_that_can_not_be_read_are_fetched_and_stay_no_open_files(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "old", OLD)
    real, reads = os.pread, [0]

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        reads[0] += 1
        if reads[0] % 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, size, offset)

    base = folders.manifest_of(tmp_path / "old")
    target = network.contents
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assembly = Assembly(scratch, target, tmp_path / "old", plan(base, target))
    monkeypatch.setattr("replica.state_sync.assemble.os.pread", pread)
    before = len(os.listdir("/proc/self/fd"))
    assembly.prepare()
    assert len(os.listdir("/proc/self/fd")) == before + 1, "the journal's"
    monkeypatch.undo()
    for index in sorted(assembly.missing):
        data = serve.serve(network.folder, target, network.root, "chunk", index)
        assert data is not None
        assembly.accept(index, data)
    assert manifest.root(folders.manifest_of(assembly.finish())) == network.root


def test_what_can_not_be_read_is_not_served(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(serve.os, "pread", pread)
    before = len(os.listdir("/proc/self/fd"))
    for index in range(len(network.contents.chunks)):
        part = serve.serve(network.folder, network.contents, network.root, "chunk", index)
        assert part is None
    assert len(os.listdir("/proc/self/fd")) == before
