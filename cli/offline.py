"""What node operators do by hand: repairing governance, recovering the NNS, signing offline."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from cli import context, views
from cli.lab.layout import NodeEntry, registered
from cli.output import progress, say
from cli.recovery import governance, nns
from replica.client import succession
from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.client.table_schema import admit
from replica.protocol import ballot as ballots
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Malformed, NotFound, ReprisError
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId, Principal
from replica.protocol.nns_recovery import ModuleChange
from replica.runtime.durable import write_durably
from replica.runtime.settings import ROOT_KEY, NodeSettings


def signing_key(folder: Path, key: Path | None, identity: str) -> Ed25519Key:
    """Return the key of a file, else of one of the swarm's identities."""
    if key is None:
        return context.swarm(folder).identity(identity)
    if not key.is_file():
        raise NotFound(f"there is no key {key}")
    return Ed25519Key.from_pem(key.read_bytes())


def _write_ballot(ballot: ballots.Ballot, out: Path, relay: str) -> None:
    write_durably(out.resolve(), json.dumps(ballots.to_plain(ballot), indent=1).encode())
    choice = "yes" if ballot.choice == ballots.YES else "no"
    say(f"{ballot.voter} says {choice} to {ballot.subject.hex()[:16]}: {out}; then `{relay}`")


def ballot_show(path: Path) -> dict[str, Any]:
    (ballot,) = nns.read_ballots([path])
    return {
        "purpose": ballot.purpose,
        "subject": ballot.subject,
        "choice": "yes" if ballot.choice == ballots.YES else "no",
        "voter": ballot.voter,
        "deadline_s": ballot.deadline_s,
        "signature": "holds",
    }


# --- governance ----------------------------------------------------------------------------------


def governance_propose(folder: Path, module: Path, identity: str) -> None:
    if not module.is_file():
        raise NotFound(
            f"there is no file {module}; `reprise canister build nns/governance` makes one"
        )
    data = module.read_bytes()
    admit(data)
    agent = context.nns_agent(context.swarm(folder), identity)
    say(governance.propose(agent, data))
    sys.stdout.write(f"{agent.sender}\n")


def governance_status(folder: Path) -> list[dict[str, Any]]:
    return governance.pending(context.nns_agent(context.swarm(folder)))


def governance_sign(
    folder: Path,
    proposal: Path,
    out: Path,
    yes: bool,
    module: Path | None,
    key: Path | None,
    identity: str,
) -> None:
    try:
        shown = json.loads(proposal.read_text())
    except (OSError, ValueError) as error:
        raise Malformed(f"{proposal} can't be read: {error}") from error
    if isinstance(shown, list):
        if len(shown) != 1:
            raise Malformed(f"{proposal} holds {len(shown)} proposals: keep the one to sign for")
        (shown,) = shown
    signed = governance.sign(shown, signing_key(folder, key, identity), yes=yes, module=module)
    _write_ballot(signed, out, f"reprise recover governance relay {out}")


def governance_relay(folder: Path, paths: list[Path], identity: str) -> None:
    agent = context.nns_agent(context.swarm(folder), identity)
    say(governance.relay(agent, nns.read_ballots(paths)))


# --- the NNS -------------------------------------------------------------------------------------


def _node_folder(folder: Path, text: str) -> Path:
    """Return a node's folder, named itself or by the node's name in a swarm."""
    path = Path(text)
    if (path / "node.json").is_file():
        return path
    return context.swarm(folder).node(text).folder


def _entry(node_folder: Path) -> tuple[NodeSettings, LocalRegistry, NodeEntry]:
    settings, records, subnet = nns.open_node(node_folder)
    for entry in subnet.nodes:
        if entry.id == settings.node:
            return settings, records, entry
    raise NotFound(f"{node_folder} is no node of the NNS subnet")


def nns_halt(folder: Path, text: str, key: Path | None, identity: str | None) -> None:
    settings, records, entry = _entry(_node_folder(folder, text))
    chosen = signing_key(folder, key, identity or f"operator-{text}")
    probe = Agent([], settings.root_key, timeout_s=5.0)
    epoch = nns.halt(entry, records, chosen, probe)
    say(f"{text} signs nothing more in epoch {epoch}; it still serves, and attests when asked")


def nns_build(
    folder: Path,
    text: str,
    out: Path,
    package: Path | None,
    urls: list[str],
    canister: str | None,
    module: Path | None,
    replaced: list[str],
) -> dict[str, Any]:
    changes = nns.Changes()
    if package is not None:
        release, data = nns.release_change(package, tuple(urls))
        changes = nns.Changes(release, data)
    if (canister is None) != (module is None):
        raise Malformed("give both --canister and --module, or neither")
    if canister is not None and module is not None:
        target = Principal.from_text(views.resolve_canister(folder, canister))
        code = module.read_bytes()
        admit(code)
        change = ModuleChange(target, code, b"")  # type: ignore[arg-type]
        changes = nns.Changes(changes.release, changes.package, change)
    if replaced:
        pairs = tuple(_pair(folder, text) for text in replaced)
        changes = dataclasses.replace(changes, replaced=pairs)
    bundle = nns.build(_node_folder(folder, text), changes, progress("build"))
    write_durably(out.resolve(), bundle.encode())
    say(f"written to {out}; every operator: `reprise recover nns sign {out} --key PEM`")
    return nns.describe(bundle)


def _pair(folder: Path, text: str) -> tuple[NodeId, NodeId]:
    """Read OLD=NEW: names of a local swarm's nodes, or principals. Raises: Malformed, NotFound."""
    old, separator, new = text.partition("=")
    if not separator:
        raise Malformed(f"--replace takes OLD=NEW, not {text}")
    return _node_id(folder, old), _node_id(folder, new)


def _node_id(folder: Path, text: str) -> NodeId:
    try:
        return NodeId(Principal.from_text(text))
    except Malformed:
        return NodeId(context.swarm(folder).node(text).id)


def nns_show(path: Path) -> dict[str, Any]:
    return nns.describe(nns.read(path))


def nns_verify(folder: Path, path: Path, text: str) -> dict[str, Any]:
    return nns.verify(nns.read(path), _node_folder(folder, text), progress("verify"))


def nns_sign(
    folder: Path, path: Path, out: Path, yes: bool, key: Path | None, identity: str
) -> None:
    signed = nns.sign(nns.read(path), signing_key(folder, key, identity), yes=yes)
    _write_ballot(signed, out, f"reprise recover nns apply {path} {out}")


def nns_apply(folder: Path, path: Path, files: list[Path], nodes: list[str]) -> None:
    bundle = nns.read(path).with_ballots(tuple(b.encode() for b in nns.read_ballots(files)))
    failed: ReprisError | None = None
    for text in nodes:
        settings, records, _ = nns.open_node(_node_folder(folder, text))
        entry = registered(records, settings.node, "nns")  # also one that is to become a member
        try:
            told = nns.apply(bundle, entry)
        except ReprisError as error:
            say(f"{text} refuses: {error}")
            failed = error
            continue
        for fault in told["refused"]:
            say(f"{text}: {fault}")
        say(f"{text}: {len(told['signed'])} of {told['needed']} signed, {told['state']}")
    if failed is not None:
        raise failed


def root_key(folder: Path) -> dict[str, Any]:
    found = context.swarm(folder).root_key
    return {"root_key": found.hex(), "sha256": sha256(found).hex()}


def accept_root_key(folder: Path, path: Path | None) -> dict[str, Any]:
    """Trust what followed the trusted root key, if its operators have signed that."""
    found = context.swarm(folder)
    if path is not None:
        bundle = nns.read(path)
        key = succession.successor(bundle, found.root_key)
        say("signed; that the NNS goes on with it can't be told from a file")
    else:
        urls = [n.orchestrator_url for n in (*found.nns.nodes, *found.spares)]
        bundle, key = succession.find(found.agent(found.nns), urls, found.root_key)
    verdict = succession.judged(bundle, found.root_key)
    for name, signed in ((str(n), n in verdict.signed) for n in verdict.before):
        say(f"{name}: its operator has {'signed' if signed else 'not signed'}")
    write_durably((folder / ROOT_KEY).resolve(), key)
    say(f"trusted from now on: the root key with SHA-256 {sha256(key).hex()}")
    return {"root_key": key.hex(), "sha256": sha256(key).hex(), "signed": len(verdict.signed)}


def nns_status(folder: Path) -> list[dict[str, Any]]:
    found = context.swarm(folder)
    return nns.status(found.nns.nodes, Agent([], found.root_key, timeout_s=2.0))
