"""The registry replicator: what it stores, from whom, and when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.registry_replicator import RegistryReplicator
from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol.errors import Conflict, Malformed, NotFound, Unavailable
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.registry_transport import Mutation, encode_batch
from tests.nns.test_recovery import ROOT_KEY, SECRET, signed_response


def batch(text: str) -> bytes:
    return encode_batch((Mutation("key", text.encode()),))


class Nns(Agent):
    """Answers registry queries from a list of batches; can be cut off, and hold peers' answers."""

    def __init__(self, batches: list[bytes]) -> None:
        super().__init__([], ROOT_KEY)
        self.batches = batches
        self.up = True
        self.peer_answers: dict[str, RegistryReplicator] = {}

    def query(self, canister: object, method: str, arg: bytes) -> bytes:
        if not self.up:
            raise Unavailable("cut off")
        since = pb.RegistryGetChangesSinceRequest.FromString(arg).version
        wanted = {v: b for v, b in enumerate(self.batches, 1) if v > since}
        return signed_response(wanted, len(self.batches), (ROOT_KEY, SECRET))

    def get_bytes(self, url: str, path: str) -> bytes:
        try:
            return self.peer_answers[url].certified_since(int(path.rpartition("=")[2]))
        except NotFound as error:
            raise Unavailable(str(error)) from error


def replicator(
    folder: Path, name: str, nns: Nns, peers: tuple[str, ...] = ()
) -> RegistryReplicator:
    store = LocalRegistry(folder / name, writable=True)
    return RegistryReplicator(store, nns, ROOT_KEY, lambda: peers)


def test_it_follows_the_nns(tmp_path: Path) -> None:
    nns = Nns([batch("1"), batch("2")])
    made = replicator(tmp_path, "a", nns)
    assert made.poll() and made.records.version == 2
    assert not made.poll()
    nns.batches.append(batch("3"))
    assert made.poll() and made.records.need("key") == b"3"
    assert LocalRegistry(tmp_path / "a").version == 3


def test_a_node_cut_off_learns_from_its_peers(tmp_path: Path) -> None:
    nns, cut_off = Nns([batch("1")]), Nns([batch("1")])
    near, far = (
        replicator(tmp_path, "near", nns),
        replicator(tmp_path, "far", cut_off, ("http://near", "http://gone")),
    )
    near.poll()
    far.poll()
    cut_off.up = False
    cut_off.peer_answers = {"http://near": near, "http://gone": replicator(tmp_path, "x", nns)}
    for text in ("2", "3"):
        nns.batches.append(batch(text))
        near.poll()
    assert far.poll() and far.poll()
    assert far.records.version == 3 and far.failures == 2
    assert not far.poll()


def test_two_certified_contents_of_one_version_are_evidence(tmp_path: Path) -> None:
    nns = Nns([batch("1"), batch("2")])
    made = replicator(tmp_path, "a", nns)
    made.poll()
    nns.batches = [batch("1"), batch("other"), batch("3")]
    with pytest.raises(Conflict, match="two contents of registry version 2"):
        made.poll()
    assert made.records.version == 2


def test_a_forged_answer_changes_nothing(tmp_path: Path) -> None:
    nns = Nns([batch("1")])
    made = replicator(tmp_path, "a", nns)
    made.root_key = made.root_key[:-1] + bytes([made.root_key[-1] ^ 1])
    assert not made.poll()
    assert made.records.version == 0 and made.last_error


def test_what_a_damaged_store_has_lost_is_fetched_again(tmp_path: Path) -> None:
    nns = Nns([batch(text * 50) for text in "123"])
    path = tmp_path / "a"
    made = replicator(tmp_path, "a", nns)
    for count in (1, 2, 3):
        made.agent = Nns(nns.batches[:count])
        made.poll()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Malformed, match=f"{path}: damaged at byte"):
        LocalRegistry(path)
    made = replicator(tmp_path, "a", nns)
    assert made.records.version == 1 and made.records.damage
    assert made.poll() and made.records.version == 3
    assert LocalRegistry(path).version == 3
    assert path.with_name("a.damaged").read_bytes() == whole


@pytest.mark.parametrize("part", ["first", "middle", "end"])
def test_a_store_that_rots_under_its_writer_is_written_anew_and_readers_go_on(
    tmp_path: Path, part: str
) -> None:
    """Found by a simulated storm: a replica never saw the order to halt, which its disk had lost,
    while its orchestrator had it in memory."""
    path = tmp_path / "a"
    nns = Nns([batch("1" * 50), batch("2" * 50)])
    made = replicator(tmp_path, "a", nns)
    made.poll()
    reader = LocalRegistry(path)
    assert reader.version == 2 and not made.records.mend()
    nns.batches.append(batch("3" * 50))
    before = path.stat().st_size
    made.poll()
    data = bytearray(path.read_bytes())
    first, last = {"first": (0, 40), "middle": (before - 50, before), "end": (before, len(data))}[
        part
    ]
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    assert made.records.version == 3 and made.records.mend() and not made.records.mend()
    assert reader.refresh() == (reader.version == 3) and reader.version == 3
    nns.batches.append(batch("4"))
    made.poll()
    assert reader.refresh() and reader.version == 4
    assert LocalRegistry(path, writable=True).version == 4
