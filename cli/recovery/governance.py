"""Repairing a governance that can't vote any more: the node operators of the NNS decide.

A proposal lies in root. Its subject, a hash, is what ballots are signed for; whoever signs computes
it from the parts, so nobody has to trust whoever showed him the proposal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli import nns_client as nns
from replica.client.agent import Agent
from replica.protocol import ballot as ballots
from replica.protocol.ballot import Ballot
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Malformed, NotFound, NotVerified, Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import GOVERNANCE, Principal

SUBMIT = "submit_root_proposal_to_upgrade_governance_canister"
PENDING = "get_pending_root_proposals_to_upgrade_governance_canister"


def running_hash(agent: Agent) -> bytes:
    """Return the certified hash of the module that governance runs."""
    path = (b"canister", bytes(GOVERNANCE), b"module_hash")
    found = agent.read_state([path], canister=GOVERNANCE).leaf(*path)
    if found is None:
        raise NotFound("governance has no code")
    return found


def propose(agent: Agent, module: bytes) -> str:
    """Propose, as a node operator, to upgrade governance; say how the votes stand."""
    request = {
        "stop_before_installing": True,
        "mode": {"upgrade": None},
        "canister_id": GOVERNANCE,
        "wasm_module": module,
        "arg": b"",
    }
    return _told(nns.call(agent, "root", SUBMIT, running_hash(agent), request))


def _told(answer: dict[str, str]) -> str:
    if "Err" in answer:
        raise Rejected(answer["Err"])
    return answer["Ok"]


def pending(agent: Agent) -> list[dict[str, Any]]:
    """Return the pending proposals, certified: a node that is behind would show fewer."""
    return [describe(p) for p in nns.call(agent, "root", PENDING)]


def describe(proposal: dict[str, Any]) -> dict[str, Any]:
    """Return a proposal as it is shown, and as a file that ballots are signed for."""
    names = [next(iter(b["ballot"])) for b in proposal["node_operator_ballots"]]
    n = len(names)
    return {
        "proposer": str(proposal["proposer"]),
        "current_module": proposal["current_wasm_sha"].hex(),
        "proposed_module": proposal["proposed_wasm_sha"].hex(),
        "arg_hash": proposal["arg_sha"].hex(),
        "membership_version": proposal["subnet_membership_registry_version"],
        "deadline_s": proposal["deadline_timestamp_seconds"],
        "subject": proposal["subject"].hex(),
        "yes": names.count("Yes"),
        "no": names.count("No"),
        "nodes": n,
        "needed": n - (n - 1) // 3,
        "ballots": [
            f"{b['node']}: {next(iter(b['ballot']))}" for b in proposal["node_operator_ballots"]
        ],
    }


def subject_of(shown: dict[str, Any]) -> bytes:
    """Compute what a ballot on this proposal is bound to. Raises: NotVerified, Malformed."""
    try:
        parts: list[object] = [
            bytes(Principal.from_text(shown["proposer"])),
            bytes.fromhex(shown["current_module"]),
            bytes.fromhex(shown["proposed_module"]),
            bytes.fromhex(shown["arg_hash"]),
            int(shown["membership_version"]),
            int(shown["deadline_s"]),
        ]
        claimed = bytes.fromhex(shown["subject"])
    except (KeyError, ValueError, TypeError) as error:
        raise Malformed(f"not a proposal of node operators: {error}") from error
    subject = ballots.subject_of(ballots.GOVERNANCE_UPGRADE, parts)
    if subject != claimed:
        raise NotVerified("the proposal's subject is not the hash of its parts")
    return subject


def sign(shown: dict[str, Any], key: Ed25519Key, *, yes: bool, module: Path | None) -> Ballot:
    """Sign a ballot offline; with a module, only for exactly that one."""
    subject = subject_of(shown)
    if module is not None and sha256(module.read_bytes()).hex() != shown["proposed_module"]:
        raise NotVerified(f"{module} is not the module that is proposed")
    choice = ballots.YES if yes else ballots.NO
    return ballots.sign(ballots.GOVERNANCE_UPGRADE, subject, choice, int(shown["deadline_s"]), key)


def relay(agent: Agent, signed: list[Ballot]) -> str:
    """Hand in ballots; anyone may. Raises: NotFound when they are for no pending proposal."""
    if not signed:
        raise Malformed("no ballots to hand in")
    for shown in pending(agent):
        if shown["subject"] == signed[0].subject.hex():
            arg = {
                "proposer": Principal.from_text(shown["proposer"]),
                "ballots": [b.encode() for b in signed],
            }
            return _told(nns.call(agent, "root", "cast_ballots", arg))
    raise NotFound("no proposal is pending that these ballots are for")


def changes(agent: Agent) -> list[dict[str, Any]]:
    """Return root's changes of canisters, newest first."""
    return [
        {**c, "canister_id": str(c["canister_id"]), "module_hash": c["module_hash"].hex()}
        for c in nns.query(agent, "root", "list_changes")
    ]
