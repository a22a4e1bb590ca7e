"""The block of an offline recovery: what it changes in the NNS, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from cli.lab import variants
from replica.client import local_registry as keys
from replica.client.local_registry import VersionedRecords
from replica.consensus.delivery import Batch, Randomness
from replica.execution.recovery import newest_registry_version, work_of
from replica.protocol.errors import Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    GOVERNANCE,
    LEDGER,
    REGISTRY,
    ROOT,
    Epoch,
    Height,
    NodeId,
    Principal,
    RegistryVersion,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.nns_recovery import (
    RECOVERY_RECORD,
    Committee,
    ModuleChange,
    Order,
    ReleaseChange,
)
from replica.protocol.registry_transport import Delta, encode_batch
from tests.nns.test_nns_canisters import BOB, motion, vote
from tests.nns.test_nns_canisters import machine as nns_machine  # noqa: F401 - a fixture
from tests.nns.test_repair import Case, install_action, propose
from tests.nns.test_repair import case as case  # a fixture

RELEASE = ReleaseChange("bb", "bb" * 32, ("http://127.0.0.1/x",))


def recover(
    case: Case,
    release: ReleaseChange | None = None,
    module: ModuleChange | None = None,
    committee: Committee | None = None,
) -> tuple[int, bytes]:
    machine = case.machine
    time_ns = machine.time_ns + 10**12
    note = {
        "height": 500,
        "time_ns": time_ns,
        "state_height": machine.height,
        "state_hash": b"\x55" * 32,
    }
    version, _ = newest_registry_version(machine.state._tip, machine.state._rows())
    batch = Batch(
        Height(500),
        Epoch(version + 1),
        time_ns,  # type: ignore[arg-type]
        RegistryVersion(version),
        Randomness(Height(500), bytes(32)),
        (),
        True,
    )
    order = Order(Height(500), time_ns, release, module, committee)  # type: ignore[arg-type]
    written = machine.state.recover(batch, work_of(note, order))
    machine.height, machine.time_ns = 500, time_ns
    return written


def records_of(case: Case, *batches: bytes) -> VersionedRecords:
    records = VersionedRecords()
    records.apply(Delta(RegistryVersion(1), encode_batch(tuple(case.made.mutations))))
    for number, batch in enumerate(batches, 2):
        records.apply(Delta(RegistryVersion(number), batch))
    return records


def test_the_registry_documents_the_recovery_as_its_next_version(case: Case) -> None:
    version, batch = recover(case)
    assert version == 2
    records = records_of(case, batch)
    note = parse(pb.NnsRecoveryRecord, records.need(RECOVERY_RECORD))
    assert (note.height, note.state_hash) == (500, b"\x55" * 32)
    assert records.epoch(case.made.nns.id) == 2 and records.epoch(case.made.subnets[1].id) == 1
    machine = case.machine
    assert machine.state._tip.system.epoch == 2 and machine.state._tip.height == 500
    assert machine.state._tip.ingress.keys() == set(machine.state._tip.ingress) - {b""}
    number = motion(machine)
    vote(machine, BOB, 2, number, 1)


def test_a_release_and_a_module_are_replaced_in_the_same_block(case: Case) -> None:
    newer = variants.newer("governance")
    _, batch = recover(case, RELEASE, ModuleChange(GOVERNANCE, newer, b""))
    assert case.hash_of(GOVERNANCE) == sha256(newer)
    records = records_of(case, batch)
    assert records.view(case.made.nns.id, RegistryVersion(2)).replica_version == "bb"
    assert records.view(case.made.subnets[1].id, RegistryVersion(2)).replica_version == "aa"
    elected = parse(pb.ReplicaVersionRecord, records.need("replica_version_bb"))
    assert elected.release_package_sha256_hex == "bb" * 32
    note = parse(pb.NnsRecoveryRecord, records.need(RECOVERY_RECORD))
    assert note.canister_id == bytes(GOVERNANCE) and note.module_hash == sha256(newer)


@pytest.mark.parametrize("name, id_", [("registry", REGISTRY), ("root", ROOT)])
def test_a_broken_registry_or_root_is_repaired_first(case: Case, name: str, id_: Any) -> None:
    broken = variants.traps_on_every_call(name)
    assert propose(case.machine, install_action(id_, broken))["status"] == 4
    recover(case, module=ModuleChange(id_, variants.build(name), b""))
    assert case.hash_of(id_) == sha256(variants.build(name))


def test_what_fails_leaves_the_state_as_it_was(case: Case) -> None:
    broken = variants.traps_on_every_call("registry")
    assert propose(case.machine, install_action(REGISTRY, broken))["status"] == 4
    before = case.machine.state._tip
    with pytest.raises(Rejected, match="record_nns_recovery failed in the recovery"):
        recover(case)
    assert case.machine.state._tip is before
    with pytest.raises(Rejected, match="install_code failed in the recovery"):
        recover(case, module=ModuleChange(LEDGER, b"PK\x03\x04 noise", b""))
    assert case.machine.state._tip is before


def test_mailboxes_are_left_alone(case: Case) -> None:
    """What waited when the NNS stopped still waits: it may be what stopped it."""
    from dataclasses import replace

    from replica.state.records import FromTimer, Request

    machine = case.machine
    waiting = Request(GOVERNANCE, FromTimer(), "", b"")
    ledger = machine.state._tip.canisters[LEDGER]
    machine.state._tip.canisters[LEDGER] = replace(ledger, inbox=(waiting,))
    recover(case)
    assert machine.state._tip.canisters[LEDGER].inbox == (waiting,)


def test_equal_states_recover_to_equal_states(case: Case, tmp_path: Any) -> None:
    from replica.protocol import manifest
    from replica.state import checkpoint
    from tests.nns.harness import Machine

    machine = case.machine
    machine.block(checkpoint=True)
    snapshot, changes = checkpoint.load(
        machine.state.folder(machine.height), Height(machine.height)
    )
    again = Machine(tmp_path / "again")
    again.state._start_from(snapshot, changes, 1)
    again.height, again.time_ns = machine.height, machine.time_ns
    roots = []
    for node in (machine, again):
        recover(Case(node, case.made), RELEASE)
        roots.append(node.state.make_checkpoint())
        found = checkpoint.compute_manifest(node.state.folder(500))
        assert manifest.root(found) == roots[-1]
    assert roots[0] == roots[1]


def test_new_members_and_their_root_key_are_in_the_registry(case: Case) -> None:
    made = case.made
    members = tuple(sorted([made.nns.nodes[0].node, *[n.node for n in made.spares]]))
    _, batch = recover(case, committee=Committee(members, b"\x0a" * 96))
    records = records_of(case, batch)
    assert records.view(made.nns.id, RegistryVersion(2)).members == members
    assert records.subnet_public_key(made.nns.id) == b"\x0a" * 96
    touched = {m.key for m in records.deltas[-1].mutations}
    expected = {keys.subnet_record(made.nns.id), keys.threshold_key(made.nns.id), RECOVERY_RECORD}
    assert touched == expected


def test_a_member_of_another_subnet_or_an_unknown_node_does_not_join_the_nns(case: Case) -> None:
    taken = case.made.subnets[1].nodes[0].node
    with pytest.raises(Rejected, match="is a member of subnet"):
        recover(case, committee=Committee((taken,), b"\x0a" * 96))
    with pytest.raises(Rejected, match="is not registered"):
        recover(case, committee=Committee((NodeId(Principal(b"who")),), b"\x0a" * 96))
    with pytest.raises(Rejected, match="the root key that they made"):
        recover(case, committee=Committee((case.made.nns.nodes[0].node,), b"short"))
