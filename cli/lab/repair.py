"""The scenarios canister-failure, root-failure and governance-failure: broken NNS canisters.

In each, governance itself rolls the broken release out, as it would happen; the application subnet
must not notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import nns_client as nns
from cli.lab import variants
from cli.lab.drill import Drill, Outcome, Voter, describe_settings
from cli.recovery import governance as operators
from replica.client.agent import CallRejected
from replica.protocol import ballot as ballots
from replica.protocol.errors import NotVerified, Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import GOVERNANCE, LEDGER, ROOT, CanisterId


def canister_failure(drill: Drill) -> Outcome:
    """A ledger release traps on every call; governance adopts the repair, root carries it out."""
    voter = _up(drill)
    with drill.phases.phase("fault") as notes:
        before = _ledger_state(drill)
        fault_at, height = _roll_out(drill, LEDGER, variants.traps_on_every_call("ledger"), voter)
        notes.append(f"proposal {drill.proposals[-1]} installed a ledger that traps on every call")
    with drill.phases.phase("detect") as notes:
        notes.append(_refusal(drill, lambda: _ledger_state(drill)))
    with drill.phases.phase("repair") as notes:
        _adopt_code(drill, LEDGER, variants.build("ledger"), voter)
        notes.append(f"proposal {drill.proposals[-1]}; root stopped, installed, started the ledger")
    with drill.phases.phase("serve again") as notes:
        after = drill.patiently(lambda: _ledger_state(drill))
        rto = drill.now_s() - fault_at
        kept = bool(after == before)
        notes.append(f"{after['chain_length']} blocks, tip and balances as before: {kept}")
    return _close(drill, "canister-failure", rto, height, kept)


def root_failure(drill: Drill) -> Outcome:
    """A root release traps on every call; lifeline replaces it."""
    voter = _up(drill)
    with drill.phases.phase("a change of before") as notes:
        _adopt_code(drill, LEDGER, variants.newer("ledger"), voter)
        before = operators.changes(drill.nns)
        notes.append(f"root has carried out {len(before)} change")
    with drill.phases.phase("fault") as notes:
        fault_at, height = _roll_out(drill, ROOT, variants.traps_on_every_call("root"), voter)
        notes.append(f"proposal {drill.proposals[-1]} installed a root that traps on every call")
    with drill.phases.phase("detect") as notes:
        notes.append(
            _refusal(drill, lambda: _adopt_code(drill, LEDGER, variants.build("ledger"), voter))
        )
    with drill.phases.phase("repair") as notes:
        _adopt_code(drill, ROOT, variants.build("root"), voter)
        notes.append(f"proposal {drill.proposals[-1]}; lifeline upgraded root")
    with drill.phases.phase("serve again") as notes:
        _adopt_code(drill, LEDGER, variants.build("ledger"), voter)
        rto = drill.now_s() - fault_at
        after = operators.changes(drill.nns)
        kept = after[-len(before) :] == before and len(after) == len(before) + 1
        notes.append(f"root changes canisters again; its record of before is there: {kept}")
    return _close(drill, "root-failure", rto, height, kept)


def governance_failure(drill: Drill) -> Outcome:
    """A governance release traps on every vote; node operators vote through root instead."""
    swarm = drill.swarm
    voter = _up(drill)
    with drill.phases.phase("fault") as notes:
        good = variants.build("governance")
        broken = variants.traps_on_every_vote()
        fault_at, height = _roll_out(drill, GOVERNANCE, broken, voter)
        notes.append(f"proposal {drill.proposals[-1]} installed a governance that traps on votes")
    with drill.phases.phase("detect") as notes:
        neuron = drill.patiently(lambda: nns.default_neuron(drill.nns))
        text = "A drill: can anybody vote on this?"
        motion = drill.patiently(lambda: nns.propose_motion(drill.nns, neuron, "A motion", text))
        before = _neurons(drill)
        notes.append(_refusal(drill, lambda: voter.vote(motion)))
    with drill.phases.phase("operators propose") as notes:
        first = swarm.agent(swarm.nns, swarm.identity("operator-nns-0"))
        told = drill.patiently(lambda: _propose_once(drill, first, good))
        notes.append(told)
    with drill.phases.phase("ballots offline") as notes:
        shown = drill.patiently(lambda: operators.pending(drill.nns))[0]
        files = [_sign_offline(drill.folder, shown, f"operator-nns-{i}", drill) for i in (1, 2)]
        short = ballots.from_plain(json.loads(files[0].read_text()))
        told = drill.patiently(lambda: _relay(drill, [short]))
        if _running(drill) == sha256(good):
            raise NotVerified("n - f - 1 votes must change nothing")
        notes.append(told)
    with drill.phases.phase("relay") as notes:
        signed = ballots.from_plain(json.loads(files[1].read_text()))
        told = drill.patiently(lambda: _relay(drill, [signed]))
        drill.wait_for("the repaired release", lambda: _running(drill) == sha256(good), 60)
        notes.append(told)
    with drill.phases.phase("serve again") as notes:
        voter.vote(motion)
        info = drill.patiently(lambda: nns.wait_decided(drill.nns, motion))
        rto = drill.now_s() - fault_at
        kept = info["status"] == 4 and _neurons(drill) == before
        notes.append(f"the motion of before is voted on and executed; neurons as before: {kept}")
    return _close(drill, "governance-failure", rto, height, kept)


# --- steps -------------------------------------------------------------------------------------


def _up(drill: Drill) -> Voter:
    with drill.phases.phase("swarm up") as notes:
        drill.up()
        notes.append(f"{len(drill.swarm.nodes)} nodes; {describe_settings(drill)}")
    drill.watch_app()
    return drill.council()


def _adopt_code(drill: Drill, target: CanisterId, module: bytes, voter: Voter) -> None:
    title = f"Install {sha256(module).hex()[:12]}"
    drill.adopt_action(title, nns.install_action(target, module), voter)
    drill.wait_for("the module", lambda: _module(drill, target) == sha256(module), 60)


def _roll_out(drill: Drill, target: CanisterId, module: bytes, voter: Voter) -> tuple[float, int]:
    """Install the broken release; return when, and the NNS's certified height then."""
    _adopt_code(drill, target, module, voter)
    return drill.now_s(), drill.certified_height(drill.swarm.nns)


def _module(drill: Drill, target: CanisterId) -> bytes | None:
    def read() -> bytes | None:
        path = (b"canister", bytes(target), b"module_hash")
        return drill.nns.read_state([path], canister=target).leaf(*path)

    found: bytes | None = drill.patiently(read)
    return found


def _running(drill: Drill) -> bytes | None:
    return _module(drill, GOVERNANCE)


def _refusal(drill: Drill, action: Callable[[], Any]) -> str:
    """Do what must fail because of the broken release; return how it failed."""
    end = drill.now_s() + 60
    while drill.now_s() < end:
        try:
            action()
        except (CallRejected, NotVerified, Rejected) as error:
            if variants.WORDS in str(error):
                return f"it fails: {str(error)[-60:]}"
            raise
        drill.world.pause(0.3)
    raise NotVerified("the broken release works")


def _ledger_state(drill: Drill) -> dict[str, Any]:
    """Read, certified: the chain's length and tip, and what an account holds."""
    from replica.abi.v1 import account_identifier

    account = account_identifier(drill.swarm.identity("council").principal)
    held = nns.call(drill.nns, "ledger", "account_balance", {"account": account})
    blocks = nns.call(drill.nns, "ledger", "query_encoded_blocks", {"start": 0, "length": 2000})
    tip = sha256(blocks["blocks"][-1])
    return {"held": held["e8s"], "chain_length": blocks["chain_length"], "tip": tip.hex()}


def _neurons(drill: Drill) -> list[tuple[int, int]]:
    found = drill.patiently(lambda: nns.own_neurons(drill.nns))
    return sorted((n["id"]["id"], n["cached_neuron_stake_e8s"]) for n in found)


def _propose_once(drill: Drill, agent: Any, module: bytes) -> str:
    """Propose; after a crash, look whether the proposal is there already."""
    mine = [p for p in operators.pending(drill.nns) if p["proposer"] == str(agent.sender)]
    return "the proposal is there already" if mine else operators.propose(agent, module)


def _sign_offline(folder: Path, shown: dict[str, Any], identity: str, drill: Drill) -> Path:
    """What an operator does on a machine without a network: read, check, sign, write a file."""
    module = folder / "governance.zip"
    module.write_bytes(variants.build("governance"))
    signed = operators.sign(shown, drill.swarm.identity(identity), yes=True, module=module)
    path = folder / f"{identity}.ballot.json"
    path.write_text(json.dumps(ballots.to_plain(signed)))
    return path


def _relay(drill: Drill, signed: list[ballots.Ballot]) -> str:
    """Hand ballots in with an identity that operates nothing; a repeated one is no harm."""
    agent = drill.swarm.agent(drill.swarm.nns, drill.swarm.identity("community"))
    try:
        return operators.relay(agent, signed)
    except Rejected as error:
        if "voted already" in str(error) or "no proposal is pending" in str(error):
            return "counted already"
        raise


def _close(drill: Drill, name: str, rto: float, height: int, kept: bool) -> Outcome:
    with drill.phases.phase("verify") as notes:
        journal_kept, text = drill.verify_journal()
        notes.append(text)
    return drill.outcome(
        name,
        rto_seconds=rto,
        kept=kept and journal_kept,
        before=height,
        after=drill.certified_height(drill.swarm.nns),
    )
