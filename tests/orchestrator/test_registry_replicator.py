"""The registry replicator: what it stores, from whom, and when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.registry_replicator import RegistryReplicator
from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol.errors import Conflict, NotFound, Unavailable
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
