"""Recoveries that replace nodes: fewer attest, others are members, and the NNS deals new keys."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from cli import nns_client
from replica.client import local_registry as keys
from replica.protocol import canonical, cup
from replica.protocol.crypto import dkg
from replica.protocol.crypto.dkg import HIGH, LOW, BlsDkg, KeyRequest, KeyResult
from replica.protocol.ids import (
    REGISTRY,
    Epoch,
    Height,
    NodeId,
    Principal,
    RegistryVersion,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from tests.nns.harness import Refused
from tests.nns.test_nns_canisters import ALICE, BOB, manage, vote
from tests.nns.test_nns_canisters import machine as nns_machine  # noqa: F401 - a fixture
from tests.nns.test_recovery import DID, Case, case  # noqa: F401 - a fixture


def survivors(case: Case) -> list[Principal]:  # noqa: F811
    return [a.node for a in case.evidence.attestations[:2]]


def spares(case: Case) -> list[Principal]:  # noqa: F811
    return [n.node for n in case.made.spares]


def lost_payload(case: Case, **changes: Any) -> dict[str, Any]:  # noqa: F811
    """Two of four are gone: two attest, and two spare nodes join them."""
    evidence = replace(case.evidence, attestations=case.evidence.attestations[:2])
    base = {
        "evidence": canonical.encode(evidence),
        "replacement_nodes": [*survivors(case), *spares(case)],
    }
    return case.payload(**{**base, **changes})


def simulate(case: Case, **changes: Any) -> Any:  # noqa: F811
    payload = lost_payload(case, **changes)
    return case.machine.query(REGISTRY, DID, "simulate_recover_subnet", payload)


def propose_and_adopt(case: Case) -> int:  # noqa: F811
    payload = lost_payload(case, diff_hash=simulate(case)["diff_hash"])
    raw = nns_client.function_payload(6, payload)
    action = {"ExecuteNnsFunction": {"nns_function": 6, "payload": raw}}
    proposal = {"url": "", "title": "Replace them", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    number = int(made["MakeProposal"]["proposal_id"]["id"])
    vote(case.machine, BOB, 2, number, 1)
    case.machine.block()
    return number


def status_of(case: Case, proposal: int) -> tuple[int, str]:  # noqa: F811
    did = nns_client.interface("governance")
    info = case.machine.query(
        nns_client.CANISTERS["governance"], did, "get_proposal_info", proposal
    )
    failure = info["failure_reason"]
    return info["status"], failure["error_message"] if failure else ""


def deal(case: Case, request: KeyRequest) -> KeyResult:  # noqa: F811
    """Deal as the NNS's nodes do, with the real scheme."""
    secrets = {n.node: n.dealing for n in case.made.nodes}
    public = {NodeId(r): dkg.public_key(secrets[r]) for r in request.receivers}
    dealers = tuple(sorted(n.node for n in case.made.nns.nodes))
    made = []
    for tag in (LOW + 2, HIGH + 2):
        opened = (case.made.nns.id, Epoch(1), Height(7), tag)
        config = dkg.config_of_request(*opened, dealers, request)
        dealings = {
            d: BlsDkg().deal(config, d, sha256(bytes(d)).digest(), None, public) for d in dealers
        }
        made.append(BlsDkg().combine(config, dealings))
    return KeyResult(request.number, *made)


def open_request(case: Case) -> KeyRequest:  # noqa: F811
    (call,) = case.machine.state._tip.system.key_calls
    return call.request


def test_lost_nodes_are_replaced_and_the_new_members_hold_a_new_key(case: Case) -> None:  # noqa: F811
    before = case.records.subnet_public_key(case.subnet.id)
    number = propose_and_adopt(case)
    assert status_of(case, number)[0] == 3, "adopted, and waiting for keys"
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 1
    request = open_request(case)
    assert list(request.receivers) == sorted([*survivors(case), *spares(case)])
    result = deal(case, request)
    case.machine.block(keys=(result,))
    case.machine.block()
    assert status_of(case, number)[0] == 4
    assert case.machine.state._tip.system.key_calls == ()

    def read(key: str) -> bytes:
        found = case.machine.query(REGISTRY, DID, "get_value", {"key": key, "version": None})
        assert found["version"] == 2, "CUP, members, key and the end of the halt are one version"
        return bytes(found["value"])

    record = read(keys.subnet_record(case.subnet.id))
    settings = parse(pb.SubnetRecord, record)
    assert sorted(settings.membership) == sorted(bytes(r) for r in request.receivers)
    assert not settings.is_halted
    key = parse(pb.PublicKey, read(keys.threshold_key(case.subnet.id))).key_value
    contents = read(keys.cup_contents(case.subnet.id))
    package = cup.from_registry(case.subnet.id, contents, RegistryVersion(2), record)
    assert package.summary.high.public_key == key != before
    assert set(package.holders) == set(request.receivers)
    for node in case.made.nodes:
        if node.node in request.receivers:
            for transcript in (package.summary.low, package.summary.high):
                assert BlsDkg().share_of(transcript, node.node, node.dealing) is not None


def test_the_diff_that_is_voted_on_has_holes_for_the_keys(case: Case) -> None:  # noqa: F811
    changed = {c["key"]: c["after"] for c in simulate(case)["changes"]}
    assert set(changed) == {
        keys.cup_contents(case.subnet.id),
        keys.subnet_record(case.subnet.id),
        keys.threshold_key(case.subnet.id),
    }
    contents = parse(pb.CatchUpPackageContents, changed[keys.cup_contents(case.subnet.id)])
    assert not contents.initial_ni_dkg_transcript_high_threshold.internal_csp_transcript
    assert not parse(pb.PublicKey, changed[keys.threshold_key(case.subnet.id)]).key_value


def test_two_attestations_do_not_do_without_replacing_the_lost(case: Case) -> None:  # noqa: F811
    with pytest.raises(Refused, match="2 members attest one state at height 33; 3 are needed"):
        simulate(case, replacement_nodes=None)


def test_one_attestation_is_not_enough(case: Case) -> None:  # noqa: F811
    evidence = replace(case.evidence, attestations=case.evidence.attestations[:1])
    with pytest.raises(Refused, match="1 members attest one state at height 33; 2 are needed"):
        simulate(case, evidence=canonical.encode(evidence))


def test_the_new_members_must_bring_the_state(case: Case) -> None:  # noqa: F811
    nodes = [survivors(case)[0], *spares(case)]
    with pytest.raises(Refused, match="1 of the new members attest the state; 2"):
        simulate(case, replacement_nodes=nodes)


@pytest.mark.parametrize(
    ("choose", "text"),
    [
        (lambda c: [*survivors(c), c.made.nns.nodes[0].node], "is a member of subnet"),
        (lambda c: [*survivors(c), Principal(b"a stranger")], "is not registered"),
        (lambda c: [*survivors(c), survivors(c)[0]], "names a node twice"),
    ],
    ids=["of another subnet", "unknown", "twice"],
)
def test_who_can_not_join_is_refused(case: Case, choose: Any, text: str) -> None:  # noqa: F811
    with pytest.raises(Refused, match=text):
        simulate(case, replacement_nodes=choose(case))


def test_too_few_dealers_fail_the_proposal_and_change_nothing(case: Case) -> None:  # noqa: F811
    number = propose_and_adopt(case)
    case.machine.block(keys=(KeyResult(open_request(case).number, None, None),))
    case.machine.block()
    status, text = status_of(case, number)
    assert status == 5 and "the NNS dealt no keys: too few nodes dealt" in text
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == 1
    again = propose_and_adopt(case)
    assert open_request(case).number == 2, "it can be proposed again"
    assert status_of(case, again)[0] == 3


def test_a_change_of_the_subnet_while_keys_are_dealt_fails_the_proposal(case: Case) -> None:  # noqa: F811
    number = propose_and_adopt(case)
    level = {
        "subnet_id": case.subnet.id,
        "operational_level": 1,
        "recalled_replica_version_ids": None,
    }
    raw = nns_client.function_payload(55, level)
    action = {"ExecuteNnsFunction": {"nns_function": 55, "payload": raw}}
    proposal = {"url": "", "title": "Start it", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    vote(case.machine, BOB, 2, int(made["MakeProposal"]["proposal_id"]["id"]), 1)
    case.machine.block()
    case.machine.block(keys=(deal(case, open_request(case)),))
    case.machine.block()
    status, text = status_of(case, number)
    assert status == 5 and "was changed while its keys were dealt" in text
    key = keys.threshold_key(case.subnet.id)
    found = case.machine.query(REGISTRY, DID, "get_value", {"key": key, "version": None})
    assert found["version"] == 1


def test_keys_that_nobody_asked_for_change_nothing(case: Case) -> None:  # noqa: F811
    before = case.machine.query(REGISTRY, DID, "get_latest_version")
    case.machine.block(keys=(KeyResult(77, None, None),))
    assert case.machine.query(REGISTRY, DID, "get_latest_version") == before


def test_nobody_but_the_registry_asks_for_keys(case: Case) -> None:  # noqa: F811
    value = {"node_ids": spares(case), "registry_version": 1}
    with pytest.raises(Refused, match="only the registry"):
        case.machine.manage("setup_initial_dkg", value)


def test_an_open_request_survives_a_checkpoint(case: Case) -> None:  # noqa: F811
    propose_and_adopt(case)
    case.machine.block(checkpoint=True)
    before = case.machine.state._tip
    height = before.height
    case.machine.certify()
    from replica.state import checkpoint

    loaded, _ = checkpoint.load(case.machine.state.folder(height), height)
    assert loaded.system == before.system and len(loaded.system.key_calls) == 1
