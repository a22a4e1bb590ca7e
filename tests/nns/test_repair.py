"""Root, lifeline and the node operators: how a broken NNS canister is repaired, and what fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli import nns_client
from cli.lab import variants
from nns import genesis
from replica.protocol import ballot as ballots
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.hashing import sha256
from replica.protocol.ids import GOVERNANCE, LEDGER, LIFELINE, REGISTRY, ROOT, Principal
from tests.nns.harness import ADMIN, START_NS, Machine, Refused, make_bundle, nns_bundle
from tests.nns.test_nns_canisters import ALICE, BOB, LED, info, manage, motion, vote
from tests.nns.test_nns_canisters import machine as nns_machine  # noqa: F401 - a fixture
from tests.nns.test_recovery import plan

ROOT_DID, REGISTRY_DID = nns_client.interface("root"), nns_client.interface("registry")


@dataclass
class Case:
    machine: Machine
    made: genesis.Genesis

    def operator(self, number: int) -> Ed25519Key:
        return Ed25519Key(self.made.nns.nodes[number].operator_seed)

    def call(self, method: str, *values: Any, key: Ed25519Key = ADMIN) -> Any:
        return self.machine.call(ROOT, ROOT_DID, method, *values, key=key)

    def pending(self) -> Any:
        method = "get_pending_root_proposals_to_upgrade_governance_canister"
        return self.machine.query(ROOT, ROOT_DID, method)

    def hash_of(self, id_: Any) -> bytes:
        return sha256(self.machine.state._tip.canisters[id_].bundle)

    def submit(self, module: bytes, number: int = 0, **changes: Any) -> Any:
        request = {
            "stop_before_installing": True,
            "mode": {"upgrade": None},
            "canister_id": GOVERNANCE,
            "wasm_module": module,
            "arg": b"",
            **changes,
        }
        expected = changes.pop("expected", self.hash_of(GOVERNANCE))
        method = "submit_root_proposal_to_upgrade_governance_canister"
        return self.call(method, expected, request, key=self.operator(number))

    def vote(self, number: int, module: bytes, choice: str = "Yes") -> Any:
        method = "vote_on_root_proposal_to_upgrade_governance_canister"
        proposer = self.operator(0).principal
        return self.call(
            method, proposer, sha256(module), {choice: None}, key=self.operator(number)
        )

    def ballot(self, number: int, choice: int = 1, **changes: Any) -> bytes:
        (proposal,) = self.pending()
        subject = changes.get("subject", proposal["subject"])
        deadline = changes.get("deadline", proposal["deadline_timestamp_seconds"])
        key = changes.get("key", self.operator(number))
        purpose = changes.get("purpose", ballots.GOVERNANCE_UPGRADE)
        return ballots.sign(purpose, subject, choice, deadline, key).encode()

    def cast(self, *raws: bytes) -> Any:
        arg = {"proposer": self.operator(0).principal, "ballots": list(raws)}
        return self.call("cast_ballots", arg)

    def changes(self) -> Any:
        return self.machine.query(ROOT, ROOT_DID, "list_changes")

    def settle(self) -> None:
        for _ in range(4):
            self.machine.block()


@pytest.fixture
def case(nns_machine: Machine) -> Iterator[Case]:  # noqa: F811
    made = genesis.make(
        [plan("nns", 4), plan("app", 4)],
        "aa",
        "00" * 32,
        ADMIN.principal,
        list(range(20_000, 20_024)),
        START_NS,
    )
    nns_machine.create(REGISTRY, [ADMIN.principal, ROOT])
    nns_machine.install(REGISTRY, nns_bundle("registry"), {"mutations": [made.batch()]})
    yield Case(nns_machine, made)


def propose(machine: Machine, action: dict[str, Any]) -> Any:
    """Propose and adopt; return the proposal as it ended."""
    proposal = {"url": "", "title": "Change it", "summary": "", "action": action}
    made = manage(machine, ALICE, 1, {"MakeProposal": proposal})
    assert "MakeProposal" in made, made
    number = made["MakeProposal"]["proposal_id"]["id"]
    vote(machine, BOB, 2, number, 1)
    for _ in range(5):
        machine.block()
    return info(machine, number)


def install_action(target: Principal, module: bytes, **changes: Any) -> dict[str, Any]:
    return {
        "InstallCode": {
            "canister_id": target,
            "install_mode": 3,
            "wasm_module": module,
            "arg": None,
            "skip_stopping_before_installing": None,
            **changes,
        }
    }


def adopted(machine: Machine, action: dict[str, Any]) -> None:
    assert propose(machine, action)["status"] == 4


def failure(machine: Machine, action: dict[str, Any]) -> str:
    found = propose(machine, action)
    assert found["status"] == 5
    return str(found["failure_reason"]["error_message"])


# --- governance works ----------------------------------------------------------------------------


def test_a_ledger_that_traps_on_every_call_is_repaired(case: Case) -> None:
    machine = case.machine
    good = machine.state._tip.canisters[LEDGER].bundle
    adopted(machine, install_action(LEDGER, variants.traps_on_every_call("ledger")))
    with pytest.raises(Refused, match=r"IC0502 .*broken on purpose"):
        machine.call(LEDGER, LED, "account_balance", {"account": bytes(32)})
    assert propose(machine, install_action(LEDGER, good))["status"] == 4
    assert machine.call(LEDGER, LED, "account_balance", {"account": bytes(32)}) == {"e8s": 0}
    assert [c["state"] for c in case.changes()] == ["done", "done"]


def test_a_failed_change_fails_its_proposal_and_restarts_the_canister(
    case: Case, tmp_path: Path
) -> None:
    code = "from replica.abi.v1 import post_upgrade\n@post_upgrade\ndef f(ctx):\n    x = [][0]\n"
    bad = make_bundle(
        tmp_path / "b",
        code,
        "service : () -> {}",
        'dropped_tables = ["accounts", "blocks", "recent", "recent_by_time"]',
    )
    found = propose(case.machine, install_action(LEDGER, bad))
    assert found["status"] == 5
    assert (
        "was not installed: post_upgrade failed: IndexError"
        in found["failure_reason"]["error_message"]
    )
    assert case.changes()[0]["state"] == "failed"
    assert case.machine.state._tip.canisters[LEDGER].status == "running"


def test_a_canister_that_root_does_not_control_is_told(case: Case) -> None:
    """Stopping fails, starting fails: both are told, and governance goes on."""
    machine = case.machine
    machine.create(REGISTRY.__class__(bytes(7) + b"\x30\x01\x01"), [ADMIN.principal])
    other = Principal(bytes(7) + b"\x30\x01\x01")
    found = propose(machine, install_action(other, nns_bundle("ledger")))
    assert found["status"] == 5
    text = found["failure_reason"]["error_message"]
    assert (
        "did not stop: root" not in text
        and "it did not stop" in text
        and "it was not started" in text
    )
    motion(machine)


def test_a_canister_that_never_stops_is_started_again(case: Case, tmp_path: Path) -> None:
    """It waits for its own stopping, so it can't stop: after five minutes root gives up."""
    did = "service : () -> { wait : () -> () }"
    code = """
from replica.abi.v1 import LATER, MANAGEMENT_CANISTER, encode, reply, update

@update
def wait(ctx):
    arg = encode("(record { canister_id : principal })", {"canister_id": ctx.self_id})
    ctx.call(MANAGEMENT_CANISTER, "stop_canister", arg, on_reply="on_stopped")
    return LATER

@reply
def on_stopped(ctx, outcome, _context):
    arg = encode("(record { canister_id : principal })", {"canister_id": ctx.self_id})
    ctx.call(MANAGEMENT_CANISTER, "stop_canister", arg, on_reply="on_stopped")
    return LATER
"""
    from replica.protocol import candid
    from replica.protocol.ids import canister_id

    machine, stuck = case.machine, canister_id(77)
    machine.create(stuck, [ADMIN.principal, ROOT, stuck])
    machine.install(stuck, make_bundle(tmp_path / "w", code, did))
    interface = candid.parse(did)
    _, raw = machine.request(stuck, "wait", candid.encode([], [], interface))
    machine.block(raw)
    proposal = {
        "url": "",
        "title": "Change it",
        "summary": "",
        "action": install_action(stuck, nns_bundle("lifeline")),
    }
    made = manage(machine, ALICE, 1, {"MakeProposal": proposal})
    number = made["MakeProposal"]["proposal_id"]["id"]
    vote(machine, BOB, 2, number, 1)
    machine.block(seconds=301)
    for _ in range(4):
        machine.block()
    assert "did not stop within 300 s" in info(machine, number)["failure_reason"]["error_message"]


def test_lifeline_upgrades_root_and_resets_it_hard(case: Case) -> None:
    machine = case.machine
    good = machine.state._tip.canisters[ROOT].bundle
    broken = variants.traps_on_every_call("root")
    assert propose(machine, install_action(ROOT, broken))["status"] == 4
    found = propose(machine, install_action(LEDGER, variants.newer("ledger")))
    assert found["status"] == 5 and "broken on purpose" in found["failure_reason"]["error_message"]
    assert propose(machine, install_action(ROOT, good))["status"] == 4
    assert propose(machine, install_action(LEDGER, variants.newer("ledger")))["status"] == 4
    assert len(case.changes()) == 1
    payload = {"wasm_module": variants.newer("root"), "init_arg": b""}
    raw = nns_client.encode("lifeline", "hard_reset_root_to_version", payload)
    action = {"ExecuteNnsFunction": {"nns_function": 42, "payload": raw}}
    assert propose(machine, action)["status"] == 4
    assert case.hash_of(ROOT) == sha256(variants.newer("root"))
    assert case.changes() == [], "it began anew"
    assert propose(machine, install_action(LEDGER, nns_bundle("ledger")))["status"] == 4


def test_a_failing_root_upgrade_leaves_root_running(case: Case, tmp_path: Path) -> None:
    bad = make_bundle(tmp_path / "b", "", "service : () -> {}")
    found = propose(case.machine, install_action(ROOT, bad))
    assert found["status"] == 5
    assert "root was not installed" in found["failure_reason"]["error_message"]
    assert propose(case.machine, install_action(LEDGER, variants.newer("ledger")))["status"] == 4


def test_a_snapshot_is_taken_and_loaded_back_by_proposals(case: Case) -> None:
    machine = case.machine
    take = {"TakeCanisterSnapshot": {"canister_id": LEDGER, "replace_snapshot": None}}
    assert propose(machine, take)["status"] == 4
    (taken,) = case.call("list_canister_snapshots", {"canister_id": LEDGER})
    before = case.hash_of(LEDGER)
    adopted(machine, install_action(LEDGER, variants.traps_on_every_call("ledger")))
    load = {"LoadCanisterSnapshot": {"canister_id": LEDGER, "snapshot_id": taken["id"]}}
    assert propose(machine, load)["status"] == 4
    assert case.hash_of(LEDGER) == before
    assert machine.call(LEDGER, LED, "account_balance", {"account": bytes(32)}) == {"e8s": 0}
    wrong = {"LoadCanisterSnapshot": {"canister_id": LEDGER, "snapshot_id": b"nonsense"}}
    found = propose(machine, wrong)
    assert found["status"] == 5 and "has no snapshot" in found["failure_reason"]["error_message"]


def test_governance_upgrades_itself_and_keeps_its_timer(case: Case) -> None:
    machine = case.machine
    number = motion(machine)
    assert propose(machine, install_action(GOVERNANCE, variants.newer("governance")))["status"] == 4
    assert case.hash_of(GOVERNANCE) == sha256(variants.newer("governance"))
    assert info(machine, number)["status"] == 1
    machine.block(seconds=2000)
    machine.block()
    assert info(machine, number)["status"] != 1, "the deadline still rings"


def test_modules_are_listed_by_their_hash(case: Case) -> None:
    found = propose(case.machine, install_action(LEDGER, variants.newer("ledger")))
    shown = found["proposal"]["action"]["InstallCode"]
    assert shown["wasm_module"] is None
    assert shown["wasm_module_hash"] == sha256(variants.newer("ledger"))


@pytest.mark.parametrize(
    "action, text",
    [
        (install_action(ROOT, b"x", install_mode=2), "NNS function 42"),
        (install_action(LEDGER, b""), "needs canister_id and wasm_module"),
        (
            {"TakeCanisterSnapshot": {"canister_id": ROOT, "replace_snapshot": None}},
            "root does not control itself",
        ),
        (
            {"StopOrStartCanister": {"canister_id": GOVERNANCE, "action": 1}},
            "needed to carry this out",
        ),
        ({"ExecuteNnsFunction": {"nns_function": 999, "payload": b""}}, "not known"),
    ],
)
def test_actions_that_make_no_sense_are_refused(case: Case, action: Any, text: str) -> None:
    proposal = {"url": "", "title": "Change it", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    assert text in made["Error"]["error_message"]


# --- governance is dead ------------------------------------------------------------------------


@pytest.fixture
def dead(case: Case) -> Case:
    """Governance has upgraded itself to a release that traps on every vote."""
    broken = variants.traps_on_every_vote()
    assert propose(case.machine, install_action(GOVERNANCE, broken))["status"] == 4
    number = motion(case.machine)
    with pytest.raises(Refused, match="broken on purpose"):
        vote(case.machine, BOB, 2, number, 1)
    return case


def test_node_operators_repair_governance(dead: Case) -> None:
    good = nns_bundle("governance")
    assert "1 yes, 0 no of 4 nodes; 3 yes" in dead.submit(good)["Ok"]
    assert "2 yes" in dead.vote(1, good)["Ok"]
    assert dead.hash_of(GOVERNANCE) != sha256(good), "n - f - 1 do nothing"
    assert "adopted" in dead.vote(3, good)["Ok"]
    dead.settle()
    assert dead.hash_of(GOVERNANCE) == sha256(good)
    assert dead.pending() == []
    number = motion(dead.machine)
    vote(dead.machine, BOB, 2, number, 1)
    assert info(dead.machine, number)["status"] == 4


def test_ballots_signed_offline_are_relayed_by_anyone(dead: Case) -> None:
    good = nns_bundle("governance")
    dead.submit(good)
    raws = [dead.ballot(1), dead.ballot(2)]
    assert ballots.from_plain(ballots.to_plain(ballots.decode(raws[0]))).encode() == raws[0]
    assert "adopted" in dead.cast(*raws)["Ok"], "handed in by somebody who operates nothing"
    dead.settle()
    assert dead.hash_of(GOVERNANCE) == sha256(good)


def _last_byte_changed(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda c: c.ballot(1, subject=bytes(32)), "another proposal"),
        (lambda c: c.ballot(1, purpose=ballots.NNS_RECOVERY), "another proposal"),
        (lambda c: c.ballot(1, deadline=5), "too old"),
        (lambda c: c.ballot(1, key=ALICE), "no such vote is open"),
        (lambda c: c.ballot(0), "no such vote is open"),
        (lambda c: _last_byte_changed(c.ballot(1)), "not signed"),
        (lambda c: b"noise", ""),
    ],
)
def test_ballots_that_count_for_nothing(dead: Case, make: Any, text: str) -> None:
    dead.submit(nns_bundle("governance"))
    answer = dead.cast(make(dead))
    assert text in answer["Err"]
    votes = [b["ballot"] for b in dead.pending()[0]["node_operator_ballots"]]
    assert sum("Yes" in v for v in votes) == 1, "the proposer's own only"


def test_more_than_f_no_reject(dead: Case) -> None:
    good = nns_bundle("governance")
    dead.submit(good)
    assert "1 no" in dead.vote(1, good, "No")["Ok"]
    assert "rejected" in dead.vote(2, good, "No")["Ok"]
    assert dead.pending() == []


def test_a_proposal_is_bound_to_what_runs_what_is_proposed_and_who_votes(dead: Case) -> None:
    good = nns_bundle("governance")
    assert "not the expected" in dead.submit(good, expected=bytes(32))["Err"]
    assert "nothing else" in dead.submit(good, canister_id=LEDGER)["Err"]
    assert (
        "operates no node"
        in dead.call(
            "submit_root_proposal_to_upgrade_governance_canister",
            dead.hash_of(GOVERNANCE),
            {
                "stop_before_installing": True,
                "mode": {"upgrade": None},
                "canister_id": GOVERNANCE,
                "wasm_module": good,
                "arg": b"",
            },
            key=ALICE,
        )["Err"]
    )
    dead.submit(good)
    assert "another module" in dead.vote(1, b"something else")["Err"]
    change_membership(dead)
    assert "membership has changed" in dead.vote(1, good)["Err"]
    assert dead.pending() == []


def change_membership(case: Case) -> None:
    """Governance's word, played: the NNS record changes, so its version does."""
    from replica.execution.round import Round
    from replica.state.records import FromUser, Request

    payload = {
        f.name: None
        for f in REGISTRY_DID.resolve(REGISTRY_DID.methods["update_subnet"].args[0]).fields
    }  # type: ignore[union-attr]
    payload |= {"subnet_id": case.made.nns.id, "unit_delay_millis": 401}
    raw = nns_client.encode("registry", "update_subnet", payload)
    original = Round._ring_timers

    def ring(self: Round) -> None:
        original(self)
        self._send(REGISTRY, Request(GOVERNANCE, FromUser(bytes(32)), "update_subnet", raw))

    Round._ring_timers = ring  # type: ignore[method-assign]
    try:
        case.machine.block()
    finally:
        Round._ring_timers = original  # type: ignore[method-assign]


def test_a_proposal_ends_after_seven_days(dead: Case) -> None:
    good = nns_bundle("governance")
    dead.submit(good)
    dead.machine.block(seconds=7 * 86_400 + 10)
    assert "no proposal pending" in dead.vote(1, good)["Err"]


def test_proposals_outlive_an_upgrade_of_root(dead: Case) -> None:
    good = nns_bundle("governance")
    dead.submit(good)
    machine = dead.machine
    before = dead.pending()
    from replica.execution import install
    from replica.state.rows import Layer

    canister = machine.state._tip.canisters[ROOT]
    layer = Layer(machine.state._rows())
    done = install.run(canister, "upgrade", variants.newer("root"), b"", LIFELINE, 0, layer)
    assert not done.failure
    machine.state._tip.canisters[ROOT] = done.canister
    assert dead.pending() == before


# --- releases ----------------------------------------------------------------------------------


def elect(case: Case, number: int = 38, **payload: Any) -> Any:
    method = nns_client.METHODS[number]
    raw = nns_client.encode("registry", method, payload)
    action = {"ExecuteNnsFunction": {"nns_function": number, "payload": raw}}
    proposal = {"url": "", "title": "A release", "summary": "", "action": action}
    made = manage(case.machine, ALICE, 1, {"MakeProposal": proposal})
    if "Error" in made:
        return made["Error"]["error_message"]
    number = made["MakeProposal"]["proposal_id"]["id"]
    vote(case.machine, BOB, 2, number, 1)
    for _ in range(3):
        case.machine.block()
    found = info(case.machine, number)
    return "" if found["status"] == 4 else found["failure_reason"]["error_message"]


def revise(case: Case, **changes: Any) -> Any:
    payload = {
        "release_package_urls": ["http://127.0.0.1/x"],
        "replica_versions_to_unelect": [],
        "replica_version_to_elect": "bb",
        "release_package_sha256_hex": "bb" * 32,
    }
    return elect(case, 38, **{**payload, **changes})


def test_releases_are_elected_deployed_recalled_and_withdrawn(case: Case) -> None:
    app = case.made.subnets[1].id
    assert "not an elected release" in elect(case, 11, subnet_id=app, replica_version_id="bb")
    assert revise(case) == ""
    assert "elected already" in revise(case)
    assert elect(case, 11, subnet_id=app, replica_version_id="bb") == ""
    gone = {"replica_version_to_elect": None, "release_package_sha256_hex": None}
    assert "is what subnet" in revise(case, replica_versions_to_unelect=["bb"], **gone)
    level = {"subnet_id": app, "operational_level": None}
    assert elect(case, 55, **level, recalled_replica_version_ids=["aa"]) == ""
    assert "is recalled" in elect(case, 11, subnet_id=app, replica_version_id="aa")
    assert revise(case, replica_version_to_elect="cc", release_package_sha256_hex="cc" * 32) == ""
    assert revise(case, replica_versions_to_unelect=["cc"], **gone) == ""
    assert "not an elected" in revise(case, replica_versions_to_unelect=["cc"], **gone)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"release_package_sha256_hex": "XY"}, "64 lower-case hexadecimal"),
        ({"release_package_sha256_hex": None}, "64 lower-case hexadecimal"),
        ({"replica_version_to_elect": "not hex!"}, "lower-case hexadecimal"),
        ({"release_package_urls": ["x"] * 11}, "at most 10 URLs"),
        ({"replica_versions_to_unelect": ["bb"]}, "at once"),
        ({"replica_version_to_elect": None}, "name a release"),
    ],
)
def test_elections_that_make_no_sense_are_refused(
    case: Case, changes: dict[str, Any], text: str
) -> None:
    assert text in revise(case, **changes)
