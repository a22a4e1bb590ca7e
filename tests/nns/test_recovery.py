"""The registry checks recovery evidence itself: what is proven is stored, all else is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli import nns_client
from nns import genesis
from replica.client import local_registry as keys
from replica.client.local_registry import VersionedRecords
from replica.protocol import artifacts, canonical, certificate, cup, hash_tree
from replica.protocol import registry_transport as transport
from replica.protocol.artifacts import (
    Block,
    Certification,
    Data,
    Finalization,
    ValidationContext,
)
from replica.protocol.attestation import Attestation, Evidence, recovery_height
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.crypto import bls
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import leb128
from replica.protocol.ids import (
    GOVERNANCE,
    REGISTRY,
    ROOT,
    Epoch,
    Height,
    NodeId,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.registry_transport import Delta, encode_batch
from tests.nns.harness import ADMIN, START_NS, Machine, Refused, nns_bundle
from tests.nns.test_nns_canisters import ALICE, BOB, manage, vote
from tests.nns.test_nns_canisters import machine as nns_machine  # noqa: F401 - a fixture

DID = nns_client.interface("registry")
INTERVAL = 20
CERTIFIED, FINALIZED = 33, 41
STATE_HASH = b"\x55" * 32


@dataclass
class Case:
    """A halted subnet, and evidence that proves its state."""

    machine: Machine
    made: genesis.Genesis
    records: VersionedRecords
    evidence: Evidence
    root: bytes

    @property
    def subnet(self) -> genesis.Subnet:
        return self.made.subnets[1]

    def payload(self, **changes: Any) -> dict[str, Any]:
        base = {
            "subnet_id": self.subnet.id,
            "height": recovery_height(Height(FINALIZED), INTERVAL),
            "time_ns": START_NS + 10**12,
            "state_hash": STATE_HASH,
            "replacement_nodes": None,
            "registry_store_uri": None,
            "evidence": canonical.encode(self.evidence),
            "unhalt": None,
            "diff_hash": None,
        }
        return {**base, **changes}

    def simulate(self, **changes: Any) -> Any:
        return self.machine.query(REGISTRY, DID, "simulate_recover_subnet", self.payload(**changes))


def plan(name: str, nodes: int) -> genesis.SubnetPlan:
    return genesis.SubnetPlan(name, nodes, name == "nns", INTERVAL - 1, 400, 40, 10, 5000)


@pytest.fixture
def case(nns_machine: Machine) -> Iterator[Case]:  # noqa: F811
    made = genesis.make(
        [plan("nns", 1), plan("app", 4)],
        "v1",
        "00" * 32,
        ADMIN.principal,
        list(range(20_000, 20_021)),
        START_NS,
        spare_nodes=2,
    )
    subnet = made.subnets[1]
    for m in list(made.mutations):
        if m.key == keys.subnet_record(subnet.id):
            record = parse(pb.SubnetRecord, m.value or b"")
            record.is_halted = True
            made.mutations.remove(m)
            made.mutations.append(transport.Mutation(m.key, record.SerializeToString()))
    nns_machine.create(REGISTRY, [ADMIN.principal, ROOT])
    nns_machine.install(REGISTRY, nns_bundle("registry"), {"mutations": [made.batch()]})
    records = VersionedRecords()
    records.apply(Delta(RegistryVersion(1), encode_batch(tuple(made.mutations))))
    evidence, root = build_evidence(made, records)
    yield Case(nns_machine, made, records, evidence, root)


def threshold_sign(subnet: genesis.Subnet, package: cup.CatchUpPackage, message: bytes) -> bytes:
    high = package.summary.high
    shares = {}
    for node in subnet.nodes[:3]:
        index = high.index_of(node.node)
        assert index is not None
        shares[index] = bls.VERIFIER.sign_threshold(node.shares[high.share_keys[index]], message)
    return bls.VERIFIER.combine_threshold(message, shares, high)


def build_evidence(
    made: genesis.Genesis, records: VersionedRecords, number: int = 1
) -> tuple[Evidence, bytes]:
    subnet = made.subnets[number]
    genesis_cup = records.registry_cup(subnet.id)
    assert genesis_cup is not None
    summary = replace(genesis_cup.summary, height=Height(INTERVAL))
    block = Block(
        "v1",
        Height(0),
        subnet.id,
        Epoch(1),
        Height(INTERVAL),
        Rank(0),
        bytes(32),
        artifacts.payload_hash(summary),
        ValidationContext(RegistryVersion(1), Height(18), TimeNs(START_NS + 1000)),
    )
    beacon = artifacts.Beacon(Epoch(1), Height(INTERVAL), bytes(32), b"x" * 48)
    content = cup.content(block, summary, beacon, b"\x44" * 32)
    signature = threshold_sign(subnet, genesis_cup, cup.signed_message(content))
    package = cup.CatchUpPackage(content, signature)
    data = Data()
    tip = Block(
        "v1",
        Height(0),
        subnet.id,
        Epoch(1),
        Height(FINALIZED),
        Rank(0),
        b"p" * 32,
        artifacts.payload_hash(data),
        ValidationContext(RegistryVersion(1), Height(32), TimeNs(START_NS + 5000)),
    )
    hash_ = artifacts.block_hash(tip)
    message = artifacts.finalization_message(subnet.id, Epoch(1), tip.run, Height(FINALIZED), hash_)
    signers = sorted(subnet.nodes, key=lambda n: n.node)[:3]
    multi = bls.VERIFIER.combine_multi(
        [bls.VERIFIER.sign_multi(n.committee, message) for n in signers]
    )
    final = Finalization(Epoch(1), Height(FINALIZED), hash_, tuple(n.node for n in signers), multi)
    position = {b"epoch": leb128(1), b"height": leb128(CERTIFIED)}
    tree = hash_tree.build({b"metadata": position, b"time": b"\x01"})
    witness = hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS))
    certified = threshold_sign(subnet, genesis_cup, artifacts.certification_message(tree.digest))
    certification = Certification(Epoch(1), Height(CERTIFIED), tree.digest, witness, certified)
    attestations = tuple(
        attest(node, subnet.id, tree.digest) for node in sorted(subnet.nodes, key=lambda n: n.node)
    )[:3]
    return (
        Evidence(package.encode(), tip, final, certification, attestations),
        tree.digest,
    )


def attest(node: genesis.NodeSecrets, subnet: SubnetId, root: bytes, **changes: Any) -> Attestation:
    unsigned = Attestation(
        subnet=subnet,
        epoch=Epoch(1),
        node=node.node,
        registry_version=RegistryVersion(1),
        cup_height=Height(INTERVAL),
        finalized_height=Height(FINALIZED),
        certified_height=Height(CERTIFIED),
        certified_root=root,
        height=Height(CERTIFIED),
        state_hash=STATE_HASH,
    )
    unsigned = replace(unsigned, **changes)
    key = Ed25519Key(node.signing_seed)
    return replace(unsigned, signature=key.sign(unsigned.message))


def test_what_is_proven_is_adopted_by_a_vote_as_one_version(case: Case) -> None:
    dry = case.simulate()
    assert {c["key"].split("_record_")[0] for c in dry["changes"]} == {
        keys.cup_contents(case.subnet.id),
        "subnet",
    }
    payload = nns_client.function_payload(6, case.payload(diff_hash=dry["diff_hash"]))
    action = {"ExecuteNnsFunction": {"nns_function": 6, "payload": payload}}
    proposal = {"url": "", "title": "Recover it", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    number = made["MakeProposal"]["proposal_id"]["id"]
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 1
    vote(case.machine, BOB, 2, number, 1)
    case.machine.block()
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 2
    key = keys.cup_contents(case.subnet.id)
    stored = case.machine.query(REGISTRY, DID, "get_value", {"key": key, "version": None})
    contents = parse(pb.CatchUpPackageContents, stored["value"])
    assert (stored["version"], contents.height, contents.state_hash) == (2, 120, STATE_HASH)
    key = keys.subnet_record(case.subnet.id)
    record = case.machine.query(REGISTRY, DID, "get_value", {"key": key, "version": None})
    assert not parse(pb.SubnetRecord, record["value"]).is_halted


Mutate = Callable[[Case], dict[str, Any]]


def evidence_with(**changes: Any) -> Mutate:
    return lambda case: {"evidence": canonical.encode(replace(case.evidence, **changes))}


def one_false_attestation(**changes: Any) -> Mutate:
    def mutate(case: Case) -> dict[str, Any]:
        node = next(n for n in case.subnet.nodes if n.node == case.evidence.attestations[0].node)
        liar = attest(node, case.subnet.id, case.root, **changes)
        found = (liar, *case.evidence.attestations[1:])
        return {"evidence": canonical.encode(replace(case.evidence, attestations=found))}

    return mutate


def forged_attestation(case: Case) -> dict[str, Any]:
    forged = replace(case.evidence.attestations[0], signature=bytes(64))
    found = (forged, *case.evidence.attestations[1:])
    return {"evidence": canonical.encode(replace(case.evidence, attestations=found))}


def wrong_cup_signature(case: Case) -> dict[str, Any]:
    package = cup.decode(case.evidence.cup)
    other = bls.VERIFIER.sign_threshold((5).to_bytes(32, "big"), b"x")
    bad = cup.CatchUpPackage(package.content, other).encode()
    return {"evidence": canonical.encode(replace(case.evidence, cup=bad))}


def certification_of_another_height(case: Case) -> dict[str, Any]:
    found = case.evidence.certification
    assert found is not None
    bad = replace(found, height=Height(CERTIFIED + 5))
    return {"evidence": canonical.encode(replace(case.evidence, certification=bad))}


def finalization_of_too_few(case: Case) -> dict[str, Any]:
    found = case.evidence.finalization
    assert found is not None
    bad = replace(found, signers=found.signers[:2])
    return {"evidence": canonical.encode(replace(case.evidence, finalization=bad))}


@pytest.mark.parametrize(
    "mutate, text",
    [
        (lambda _: {"state_hash": bytes(31)}, "must have 32 bytes, this one has 31"),
        (lambda _: {"state_hash": bytes(32)}, "not the one that the members attest"),
        (lambda _: {"height": FINALIZED}, "not above all that is proven"),
        (lambda _: {"height": 121}, "multiple of 20"),
        (lambda _: {"height": 100}, "not above all that is proven"),
        (lambda _: {"time_ns": START_NS + 5000}, "time_ns must be later"),
        (lambda _: {"evidence": None}, "carries no evidence"),
        (lambda _: {"evidence": b"\x00"}, "Malformed"),
        (lambda c: {"subnet_id": ADMIN.principal}, "there is no subnet"),
        (lambda _: {"diff_hash": bytes(32)}, "would change otherwise"),
        (
            lambda _: {"registry_store_uri": {"0": "", "1": "", "2": 0}},
            "becomes the NNS: not supported",
        ),
        (forged_attestation, "not signed by it"),
        (one_false_attestation(state_hash=bytes(32)), "2 members attest one state"),
        (one_false_attestation(epoch=Epoch(9)), "another subnet or epoch"),
        (one_false_attestation(certified_root=bytes(32)), "2 members attest one state"),
        (evidence_with(attestations=()), "0 members attest"),
        (evidence_with(certification=None), "0 members attest"),
        (wrong_cup_signature, "signature of the CUP at height 20 does not verify"),
        (certification_of_another_height, "shows another height"),
        (finalization_of_too_few, "fewer signers than n - f"),
    ],
    ids=range(20),
)
def test_what_is_not_proven_is_refused_with_the_reason(
    case: Case, mutate: Mutate, text: str
) -> None:
    with pytest.raises(Refused, match=text):
        case.simulate(**mutate(case))
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 1


def test_evidence_is_judged_by_who_was_a_member_then(case: Case) -> None:
    """Members change in the registry, and the subnet stalls before its next package: who signed and
    who attests are the members of that interval, not those who would come."""
    leaving = case.evidence.attestations[0].node
    change = {
        "subnet_id": case.subnet.id,
        "node_ids_add": [case.made.spares[0].node],
        "node_ids_remove": [leaving],
    }
    action = {
        "ExecuteNnsFunction": {
            "nns_function": 31,
            "payload": nns_client.function_payload(31, change),
        }
    }
    proposal = {"url": "", "title": "Change them", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    vote(case.machine, BOB, 2, made["MakeProposal"]["proposal_id"]["id"], 1)
    case.machine.block()
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 2
    dry = case.simulate()
    changed = {c["key"]: c["after"] for c in dry["changes"]}
    record = parse(pb.SubnetRecord, changed[keys.subnet_record(case.subnet.id)])
    assert bytes(leaving) not in record.membership, "the change of members stays"


def test_a_refused_recovery_never_becomes_a_proposal(case: Case) -> None:
    payload = nns_client.function_payload(6, case.payload(state_hash=bytes(31)))
    action = {"ExecuteNnsFunction": {"nns_function": 6, "payload": payload}}
    proposal = {"url": "", "title": "Recover it", "summary": "", "action": action}
    answer = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    assert "the dry run failed: state_hash must have 32 bytes" in answer["Error"]["error_message"]
    arg = {
        "include_reward_status": [],
        "before_proposal": None,
        "limit": 10,
        "exclude_topic": [],
        "include_status": [],
        "omit_large_fields": None,
    }
    did = nns_client.interface("governance")
    listed = case.machine.query(GOVERNANCE, did, "list_proposals", arg)
    assert listed == {"proposal_info": []}


def test_a_recovery_by_someone_elses_neuron_is_refused(case: Case) -> None:
    payload = nns_client.function_payload(6, case.payload())
    action = {"ExecuteNnsFunction": {"nns_function": 6, "payload": payload}}
    proposal = {"url": "", "title": "Recover it", "summary": "", "action": action}
    answer = manage(case.machine, BOB, 1, {"MakeProposal": proposal})
    assert "does not control neuron 1" in answer["Error"]["error_message"]


def test_only_governance_recovers(case: Case) -> None:
    with pytest.raises(Refused, match="only governance"):
        case.machine.call(REGISTRY, DID, "recover_subnet", case.payload())


def test_a_running_subnet_is_not_recovered(case: Case) -> None:
    nns_subnet = case.made.nns.id
    with pytest.raises(Refused, match="not halted"):
        case.simulate(subnet_id=nns_subnet)


def test_the_same_record_gives_the_same_unsigned_cup_everywhere(case: Case) -> None:
    one = case.records.registry_cup(case.subnet.id)
    again = VersionedRecords()
    again.apply(Delta(RegistryVersion(1), encode_batch(tuple(case.made.mutations))))
    other = again.registry_cup(case.subnet.id)
    assert one is not None and other is not None
    assert one.encode() == other.encode() and not one.is_signed
    assert cup.decode(one.encode()).epoch == 1


# --- certified deltas --------------------------------------------------------------------------


def signed_response(batches: dict[int, bytes], current: int, keys_: tuple[bytes, int]) -> bytes:
    tree = hash_tree.build(
        transport.delta_tree(
            {RegistryVersion(v): b for v, b in batches.items()}, RegistryVersion(current)
        )
    )
    state = hash_tree.build(
        {
            b"canister": {bytes(REGISTRY): {b"certified_data": tree.digest}},
            b"time": leb128(START_NS),
        }
    )
    _, secret = keys_
    signature = bls.VERIFIER.sign_threshold(
        secret.to_bytes(32, "big"), certificate.state_root_message(state.digest)
    )
    made = certificate.Certificate(state, signature)
    return transport.encode_response(tree, made.encode())


BATCH = encode_batch((transport.Mutation("a", b"1"),))
SECRET = 12345
ROOT_KEY = bls.public_key_to_der(bls.public_key(SECRET))


def test_certified_deltas() -> None:
    raw = signed_response({1: BATCH, 2: BATCH}, 2, (ROOT_KEY, SECRET))
    found = transport.verify_response(raw, RegistryVersion(0), ROOT_KEY)
    assert [d.version for d in found.deltas] == [1, 2] and found.current_version == 2
    assert transport.verify_response(raw, RegistryVersion(2), ROOT_KEY).deltas == ()


@pytest.mark.parametrize(
    "batches, current, since, text",
    [
        ({1: BATCH, 3: BATCH}, 3, 0, "gap: expected version 2, found 3"),
        ({2: BATCH}, 2, 0, "gap: expected version 1, found 2"),
        ({}, 2, 0, "sent nothing after 0"),
        ({1: BATCH, 2: BATCH}, 1, 0, "above the current version"),
    ],
)
def test_deltas_with_a_hole_are_refused(
    batches: dict[int, bytes], current: int, since: int, text: str
) -> None:
    raw = signed_response(batches, current, (ROOT_KEY, SECRET))
    with pytest.raises(NotVerified, match=text):
        transport.verify_response(raw, RegistryVersion(since), ROOT_KEY)


def test_deltas_signed_by_another_key_are_refused() -> None:
    raw = signed_response({1: BATCH}, 1, (ROOT_KEY, 999))
    with pytest.raises(NotVerified):
        transport.verify_response(raw, RegistryVersion(0), ROOT_KEY)


def test_the_local_store_refuses_a_gap_and_survives_a_torn_write(tmp_path: Path) -> None:
    from replica.client.local_registry import LocalRegistry

    path = tmp_path / "registry.journal"
    store = LocalRegistry(path, writable=True)
    store.append([Delta(RegistryVersion(1), BATCH)])
    with pytest.raises(Malformed, match="gap"):
        store.append([Delta(RegistryVersion(3), BATCH)])
    store.append([Delta(RegistryVersion(2), BATCH)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert LocalRegistry(path).version == 1
    reopened = LocalRegistry(path, writable=True)
    reopened.append([Delta(RegistryVersion(2), BATCH)])
    assert LocalRegistry(path).version == 2
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(Malformed, match="damaged"):
        LocalRegistry(path)


def test_node_ids_are_who_signs() -> None:
    node = genesis._make_node("n")
    assert NodeId(Ed25519Key(node.signing_seed).principal) == node.node
