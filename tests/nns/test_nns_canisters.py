"""Governance, ledger, root and the rules of neurons, on the real execution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import nns_client
from nns.governance.actions import neuron_subaccount, staking_account
from replica.abi.v1 import account_identifier
from replica.execution.management import INTERFACE
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.ids import (
    GOVERNANCE,
    LEDGER,
    LIFELINE,
    REGISTRY,
    ROOT,
    Principal,
)
from tests.nns.harness import ADMIN, Machine, Refused, make_bundle, nns_bundle

E8S = 100_000_000
ALICE, BOB = Ed25519Key(b"\x21" * 32), Ed25519Key(b"\x22" * 32)
GOV, LED = nns_client.interface("governance"), nns_client.interface("ledger")
YEAR = 31_557_600


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    install(
        made,
        LEDGER,
        "ledger",
        {
            "minting_account": account_identifier(GOVERNANCE),
            "initial": [
                {"account": account_identifier(k.principal), "e8s": 1000 * E8S}
                for k in (ALICE, BOB)
            ],
        },
        ROOT,
    )
    install(
        made,
        GOVERNANCE,
        "governance",
        {
            "neurons": [
                {
                    "id": number,
                    "controller": key.principal,
                    "subaccount": neuron_subaccount(key.principal, 0),
                    "stake_e8s": 100 * E8S,
                    "dissolve_delay_seconds": 2 * YEAR,
                }
                for number, key in ((1, ALICE), (2, BOB))
            ],
            "voting_period_seconds": 1000,
            "reject_cost_e8s": E8S,
            "minimum_stake_e8s": E8S,
            "minimum_dissolve_delay_to_vote_seconds": 86_400,
        },
        ROOT,
    )
    install(made, ROOT, "root", None, LIFELINE)
    install(made, LIFELINE, "lifeline", None, ROOT)
    yield made


def install(machine: Machine, id_: Any, name: str, argument: object, guardian: Principal) -> None:
    machine.create(id_, [ADMIN.principal, guardian])
    machine.install(id_, nns_bundle(name), argument)
    machine.manage("update_settings", {"canister_id": id_, "settings": {"controllers": [guardian]}})


def manage(machine: Machine, key: Ed25519Key, neuron: int | None, command: Any) -> Any:
    id_ = None if neuron is None else {"id": neuron}
    answer = machine.call(
        GOVERNANCE, GOV, "manage_neuron", {"id": id_, "command": command}, key=key
    )
    return answer["command"]


def motion(machine: Machine, key: Ed25519Key = ALICE, neuron: int = 1) -> int:
    action = {"Motion": {"motion_text": "we should"}}
    proposal = {"url": "", "title": "A motion", "summary": "", "action": action}
    made = manage(machine, key, neuron, {"MakeProposal": proposal})
    return int(made["MakeProposal"]["proposal_id"]["id"])


def vote(machine: Machine, key: Ed25519Key, neuron: int, proposal: int, choice: int) -> Any:
    command = {"RegisterVote": {"vote": choice, "proposal": {"id": proposal}}}
    return manage(machine, key, neuron, command)


def info(machine: Machine, proposal: int) -> Any:
    return machine.query(GOVERNANCE, GOV, "get_proposal_info", proposal)


# --- ledger ------------------------------------------------------------------------------------


def transfer(machine: Machine, key: Ed25519Key, to: bytes, e8s: int, **changes: Any) -> Any:
    arg = {
        "memo": 0,
        "amount": {"e8s": e8s},
        "fee": {"e8s": 10_000},
        "from_subaccount": None,
        "to": to,
        "created_at_time": None,
        **changes,
    }
    return machine.call(LEDGER, LED, "transfer", arg, key=key)


def balance(machine: Machine, account: bytes) -> int:
    return int(machine.query(LEDGER, LED, "account_balance", {"account": account})["e8s"])


def test_transfers_move_what_they_say_and_link_blocks(machine: Machine) -> None:
    from replica.protocol.hashing import sha256
    from replica.protocol.messages import ic_pb2 as pb

    alice, bob = (account_identifier(k.principal) for k in (ALICE, BOB))
    assert "Ok" in transfer(machine, ALICE, bob, 5 * E8S)
    assert balance(machine, alice) == 995 * E8S - 10_000
    assert balance(machine, bob) == 1005 * E8S
    blocks = machine.query(LEDGER, LED, "query_encoded_blocks", {"start": 0, "length": 10})
    parent = b""
    for raw in blocks["blocks"]:
        block = pb.LedgerBlock.FromString(raw)
        assert block.parent_hash.hash == parent
        parent = sha256(raw)
    assert machine.state._tip.canisters[LEDGER].certified_data == parent


def test_transfers_that_are_refused(machine: Machine) -> None:
    bob = account_identifier(BOB.principal)
    assert transfer(machine, ALICE, bob, 1, fee={"e8s": 1}) == {
        "Err": {"BadFee": {"expected_fee": {"e8s": 10_000}}}
    }
    assert "InsufficientFunds" in transfer(machine, ALICE, bob, 10**15)["Err"]
    old = {"timestamp_nanos": machine.time_ns - 25 * 3600 * 10**9}
    assert "TxTooOld" in transfer(machine, ALICE, bob, 1, created_at_time=old)["Err"]
    future = {"timestamp_nanos": machine.time_ns + 300 * 10**9}
    assert "TxCreatedInFuture" in transfer(machine, ALICE, bob, 1, created_at_time=future)["Err"]
    with pytest.raises(Refused, match="checksum"):
        transfer(machine, ALICE, bytes(32), 1)


def test_a_repeated_transfer_is_told_its_first_block(machine: Machine) -> None:
    bob = account_identifier(BOB.principal)
    now = {"timestamp_nanos": machine.time_ns}
    first = transfer(machine, ALICE, bob, 7, created_at_time=now)
    again = transfer(machine, ALICE, bob, 7, created_at_time=now)
    assert again == {"Err": {"TxDuplicate": {"duplicate_of": first["Ok"]}}}


def test_the_golden_neuron_accounts() -> None:
    controller = Principal.self_authenticating(bytes(range(44)))
    assert str(controller).startswith("z6f3h-h4e4d")
    subaccount = neuron_subaccount(controller, 7)
    assert subaccount.hex() == "1c89df19e780d92d4ece10ff7528119f4e947f3eadc01c937b0d2f8e53f478a3"
    assert staking_account(subaccount).hex() == (
        "ddff8cafebb1cb7d94eb7bf6bf25645728517da68f618c62d3f4a305914ecea4"
    )
    assert account_identifier(controller).hex() == (
        "5b276c21b78a39972ccb363b836866bb6713d742ebd37dee636cad1b1fb672eb"
    )


# --- neurons and votes -------------------------------------------------------------------------


def test_staking_makes_a_neuron(machine: Machine) -> None:
    subaccount = neuron_subaccount(ALICE.principal, 9)
    transfer(machine, ALICE, staking_account(subaccount), 50 * E8S)
    by = {"MemoAndController": {"controller": None, "memo": 9}}
    claimed = manage(machine, ALICE, None, {"ClaimOrRefresh": {"by": by}})
    number = claimed["ClaimOrRefresh"]["refreshed_neuron_id"]["id"]
    found = machine.query(GOVERNANCE, GOV, "get_full_neuron", number, key=ALICE)["Ok"]
    assert found["cached_neuron_stake_e8s"] == 50 * E8S
    assert found["dissolve_state"] == {"DissolveDelaySeconds": 7 * 86_400}
    empty = {"MemoAndController": {"controller": None, "memo": 10}}
    refused = manage(machine, ALICE, None, {"ClaimOrRefresh": {"by": empty}})
    assert "least stake" in refused["Error"]["error_message"]


def test_half_of_the_voting_power_executes_nothing(machine: Machine) -> None:
    proposal = motion(machine)
    assert info(machine, proposal)["status"] == 1
    tally = info(machine, proposal)["latest_tally"]
    assert tally["yes"] * 2 == tally["total"]
    assert "RegisterVote" in vote(machine, BOB, 2, proposal, 1)
    assert info(machine, proposal)["status"] == 4


def test_a_no_of_half_rejects_and_costs_the_proposer(machine: Machine) -> None:
    proposal = motion(machine)
    vote(machine, BOB, 2, proposal, 2)
    assert info(machine, proposal)["status"] == 2
    found = machine.query(GOVERNANCE, GOV, "get_full_neuron", 1, key=ALICE)["Ok"]
    assert found["neuron_fees_e8s"] == E8S


def test_the_deadline_decides_by_simple_majority(machine: Machine) -> None:
    proposal = motion(machine)
    machine.block(seconds=999)
    assert info(machine, proposal)["status"] == 1
    machine.block(seconds=10)
    assert info(machine, proposal)["status"] == 4
    late = vote(machine, BOB, 2, proposal, 1)
    assert "voting period" in late["Error"]["error_message"]


def test_votes_without_the_right(machine: Machine) -> None:
    proposal = motion(machine)
    cases = [
        (vote(machine, BOB, 1, proposal, 1), "does not control"),
        (vote(machine, ALICE, 1, proposal, 1), "voted already"),
        (vote(machine, BOB, 2, 99, 1), "no proposal 99"),
        (vote(machine, BOB, 2, proposal, 3), "a vote is"),
        (vote(machine, BOB, 77, proposal, 1), "no such neuron"),
    ]
    for answer, text in cases:
        assert text in answer["Error"]["error_message"]
    assert info(machine, proposal)["latest_tally"]["no"] == 0


def test_a_neuron_made_after_the_proposal_has_no_ballot(machine: Machine) -> None:
    proposal = motion(machine)
    subaccount = neuron_subaccount(BOB.principal, 3)
    transfer(machine, BOB, staking_account(subaccount), 500 * E8S)
    by = {"MemoAndController": {"controller": None, "memo": 3}}
    claimed = manage(machine, BOB, None, {"ClaimOrRefresh": {"by": by}})
    number = claimed["ClaimOrRefresh"]["refreshed_neuron_id"]["id"]
    answer = vote(machine, BOB, number, proposal, 1)
    assert "no ballot" in answer["Error"]["error_message"]


@pytest.mark.parametrize(
    "title, action, text",
    [
        ("abc", {"Motion": {"motion_text": "x"}}, "title"),
        ("A title", None, "no action"),
        ("A title", {"ExecuteNnsFunction": {"nns_function": 999, "payload": b""}}, "not known"),
    ],
)
def test_proposals_that_are_refused(machine: Machine, title: str, action: Any, text: str) -> None:
    proposal = {"url": "", "title": title, "summary": "", "action": action}
    answer = manage(machine, ALICE, 1, {"MakeProposal": proposal})
    assert text in answer["Error"]["error_message"]


def test_dissolving(machine: Machine) -> None:
    def operate(operation: Any) -> Any:
        return manage(machine, ALICE, 1, {"Configure": {"operation": operation}})

    assert operate({"StartDissolving": {}}) == {"Configure": {}}
    state = machine.query(GOVERNANCE, GOV, "get_neuron_info", 1)["Ok"]
    assert state["state"] == 2 and state["age_seconds"] == 0
    assert operate({"StopDissolving": {}}) == {"Configure": {}}
    assert "does not dissolve" in operate({"StopDissolving": {}})["Error"]["error_message"]
    extra = {"IncreaseDissolveDelay": {"additional_dissolve_delay_seconds": 10 * YEAR}}
    operate(extra)
    state = machine.query(GOVERNANCE, GOV, "get_neuron_info", 1)["Ok"]
    assert state["dissolve_delay_seconds"] == 2 * YEAR


def test_voting_power_formula() -> None:
    from nns.governance.voting_power import voting_power

    def power(stake: int, delay: int, age: int) -> int:
        neuron = {
            "stake_e8s": stake,
            "fees_e8s": 0,
            "dissolving": False,
            "dissolve_seconds": delay,
            "aging_since": 0,
        }
        return int(voting_power(neuron, age))

    assert power(100, 0, 0) == 100
    assert power(100, 2 * YEAR, 0) == 300
    assert power(100, YEAR, 0) == 150
    assert power(100, 2 * YEAR, 4 * YEAR) == 375
    assert power(100, 9 * YEAR, 9 * YEAR) == 375


# --- root and lifeline -------------------------------------------------------------------------


def install_code(machine: Machine, target: Principal, module: bytes) -> None:
    action = {
        "InstallCode": {
            "canister_id": target,
            "install_mode": 3,
            "wasm_module": module,
            "arg": None,
            "skip_stopping_before_installing": None,
        }
    }
    proposal = {"url": "", "title": "Upgrade it", "summary": "", "action": action}
    made = manage(machine, ALICE, 1, {"MakeProposal": proposal})
    vote(machine, BOB, 2, made["MakeProposal"]["proposal_id"]["id"], 1)
    for _ in range(4):
        machine.block()


def variant(tmp_path: Path, name: str) -> bytes:
    """A canister's bundle with one more comment: other bytes, same behaviour."""
    import shutil

    import nns

    source = Path(nns.__file__).parent / name
    shutil.copytree(source, tmp_path / name)
    with open(tmp_path / name / "__init__.py", "a") as file:
        file.write("\n# a newer build\n")
    from replica.abi import bundle

    return bundle.build(tmp_path / name)


@pytest.mark.parametrize("name, target", [("ledger", LEDGER), ("root", ROOT)])
def test_governance_upgrades_through_root_and_lifeline(
    machine: Machine, tmp_path: Path, name: str, target: Any
) -> None:
    newer = variant(tmp_path / "src", name)
    before = balance(machine, account_identifier(BOB.principal))
    install_code(machine, target, newer)
    canister = machine.state._tip.canisters[target]
    assert canister.bundle == newer and canister.status == "running"
    assert balance(machine, account_identifier(BOB.principal)) == before


def test_a_failing_upgrade_leaves_the_old_code_running(machine: Machine, tmp_path: Path) -> None:
    did = "service : () -> {}"
    code = "from replica.abi.v1 import post_upgrade\n@post_upgrade\ndef f(ctx):\n    x = [][0]\n"
    bad = make_bundle(tmp_path / "bad", code, did)
    before = machine.state._tip.canisters[LEDGER]
    install_code(machine, LEDGER, bad)
    after = machine.state._tip.canisters[LEDGER]
    assert after.bundle == before.bundle and after.status == "running"
    assert balance(machine, account_identifier(ALICE.principal)) == 1000 * E8S


def test_nobody_else_changes_nns_canisters(machine: Machine) -> None:
    from replica.protocol import candid

    did = candid.parse((Path(__import__("nns").__file__).parent / "root" / "root.did").read_text())
    request = {
        "stop_before_installing": False,
        "mode": {"upgrade": None},
        "canister_id": LEDGER,
        "wasm_module": b"",
        "arg": b"",
    }
    with pytest.raises(Refused, match="only governance"):
        machine.call(ROOT, did, "change_nns_canister", request)
    with pytest.raises(Refused, match="IC0512"):
        machine.call(
            Principal(b""),
            INTERFACE,
            "stop_canister",
            {"canister_id": LEDGER},  # type: ignore[arg-type]
        )
    assert REGISTRY not in machine.state._tip.canisters
