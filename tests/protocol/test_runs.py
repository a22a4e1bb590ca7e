"""What is signed names its run, its epoch and its purpose: it says nothing anywhere else."""

from __future__ import annotations

import pytest

from replica.protocol import artifacts, hash_tree
from replica.protocol.artifacts import Run
from replica.protocol.certification import POSITION_PATHS, WITNESS_BYTES_MAX, witness_fault
from replica.protocol.crypto import dkg
from replica.protocol.crypto.dkg import INTERVAL, LOW, RECOVERY, REQUEST, KeyRequest
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.hashing import leb128
from replica.protocol.ids import Epoch, Height, NodeId, Principal, RegistryVersion, SubnetId
from replica.protocol.nns_recovery import KeyPlan

SUBNET = SubnetId(Principal(b"subnet"))
NODES = tuple(NodeId(Principal(bytes([i]) * 29)) for i in range(4))
EPOCH, HEIGHT = Epoch(3), Height(77)


@pytest.mark.parametrize(
    "other", [Run("v2", Height(40)), Run("v1", Height(80)), Run("v", Height(140))], ids=str
)
def test_what_is_signed_about_a_block_counts_in_one_run_only(other: Run) -> None:
    for message in (
        artifacts.block_message,
        artifacts.notarization_message,
        artifacts.finalization_message,
    ):
        here = message(SUBNET, EPOCH, Run("v1", Height(40)), HEIGHT, b"h" * 32)
        assert message(SUBNET, EPOCH, other, HEIGHT, b"h" * 32) != here


def test_keys_made_for_different_purposes_have_nothing_in_common() -> None:
    keys = Transcript(1, NODES, b"k", ())
    of_interval = dkg.config(SUBNET, EPOCH, HEIGHT, LOW, NODES, keys)
    request = KeyRequest(1, RegistryVersion(1), NODES)
    of_request = dkg.config_of_request(SUBNET, EPOCH, HEIGHT, LOW, NODES, request)
    of_recovery = KeyPlan(SUBNET, RegistryVersion(EPOCH), HEIGHT, NODES).config(LOW)
    assert [c.purpose for c in (of_interval, of_request, of_recovery)] == [
        INTERVAL,
        REQUEST,
        RECOVERY,
    ]
    assert len({c.digest for c in (of_interval, of_request, of_recovery)}) == 3


# --- what a certification shows ------------------------------------------------------------------

TREE = hash_tree.build(
    {
        b"metadata": {b"epoch": leb128(EPOCH), b"height": leb128(HEIGHT), b"x": b"1"},
        b"time": leb128(5),
    }
)
SHOWN = hash_tree.encode(hash_tree.witness(TREE, POSITION_PATHS))


def test_a_witness_shows_epoch_and_height() -> None:
    assert witness_fault(TREE.digest, SHOWN, EPOCH, HEIGHT) is None
    assert "another height" in str(witness_fault(TREE.digest, SHOWN, EPOCH, HEIGHT + 1))
    assert "another epoch" in str(witness_fault(TREE.digest, SHOWN, EPOCH + 1, HEIGHT))
    assert "does not hash" in str(witness_fault(bytes(32), SHOWN, EPOCH, HEIGHT))
    only_height = hash_tree.encode(hash_tree.witness(TREE, POSITION_PATHS[1:]))
    assert "another epoch" in str(witness_fault(TREE.digest, only_height, EPOCH, HEIGHT))


@pytest.mark.parametrize("paths", [[(b"time",)], [(b"metadata", b"x")]])
def test_a_root_has_one_witness(paths: list[tuple[bytes, ...]]) -> None:
    more = hash_tree.encode(hash_tree.witness(TREE, [*POSITION_PATHS, *paths]))
    assert "more than" in str(witness_fault(TREE.digest, more, EPOCH, HEIGHT))
    assert "more than" in str(witness_fault(TREE.digest, hash_tree.encode(TREE), EPOCH, HEIGHT))


def test_a_witness_is_small() -> None:
    wide = hash_tree.build({b"metadata": {b"x": bytes(WITNESS_BYTES_MAX)}})
    fault = witness_fault(wide.digest, hash_tree.encode(wide), EPOCH, HEIGHT)
    assert "at most 1024" in str(fault)
