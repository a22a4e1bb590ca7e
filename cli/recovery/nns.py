"""Recovering a stuck NNS: what a node operator does, with his own node and his own key.

`build` works on one node's folder and asks the other nodes of the subnet; `sign` needs nothing but
the bundle and the key; `apply` hands both to a node's orchestrator, which believes nobody.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from cli.lab.layout import NodeEntry, SubnetEntry, registered
from cli.recovery import plan as planning
from replica.client import certified_registry, new_committee, release
from replica.client import local_registry as keys
from replica.client import nns_recovery as judging
from replica.client.agent import Agent, World
from replica.client.evidence import judge as judge_evidence
from replica.client.local_registry import LocalRegistry, VersionedRecords
from replica.protocol import attestation, canonical, cup, nns_recovery
from replica.protocol import ballot as ballots
from replica.protocol.attestation import Evidence
from replica.protocol.ballot import Ballot
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import (
    Malformed,
    NotFound,
    NotVerified,
    Rejected,
    ReprisError,
    Unavailable,
)
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId, RegistryVersion, TimeNs
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.nns_recovery import (
    Bundle,
    Committee,
    Dealt,
    KeyDealing,
    KeyPlan,
    ModuleChange,
    NewKeys,
    Order,
    Recovery,
    ReleaseChange,
)
from replica.runtime import settings as node_settings
from replica.runtime import stored_cup
from replica.runtime.settings import NodeSettings

VALID_S = 7 * 86_400
SECOND = 10**9
Say = Callable[[str], None]


@dataclass(frozen=True)
class Changes:
    """What is to be replaced besides."""

    release: ReleaseChange | None = None
    package: bytes = b""
    module: ModuleChange | None = None
    replaced: tuple[tuple[NodeId, NodeId], ...] = ()
    """(gone, in its place): more than f of them, and the root key with them."""


def release_change(path: Path, urls: tuple[str, ...]) -> tuple[ReleaseChange, bytes]:
    package = path.read_bytes()
    shown = release.describe(package)
    return ReleaseChange(str(shown["version"]), str(shown["sha256"]), urls), package


def open_node(folder: Path) -> tuple[NodeSettings, LocalRegistry, SubnetEntry]:
    """Read a node's folder: its settings, its registry, and the NNS subnet as that shows it."""
    settings = node_settings.load(folder)
    records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
    subnet = records.nns()
    members = records.view(subnet, records.version).members
    nodes = [registered(records, member, "nns", folder) for member in members]
    return settings, records, SubnetEntry("nns", subnet, tuple(nodes))


# --- halting ------------------------------------------------------------------------------------


def halt(node: NodeEntry, records: VersionedRecords, key: Ed25519Key, probe: Agent) -> int:
    """Order one node to sign nothing more in its epoch; return the epoch."""
    status = probe.node_status(node.http_url)
    subject = nns_recovery.halt_subject(NodeId(node.id), records.nns(), int(status["epoch"]))
    deadline = probe.world.now_ns() // SECOND + 3600
    order = ballots.sign(ballots.NODE_HALT, subject, ballots.YES, deadline, key)
    return int(_post(node, "/halt", order.encode(), probe.world)["halted_in_epoch"])


def _post(node: NodeEntry, path: str, body: bytes, world: World) -> dict[str, Any]:
    return dict(json.loads(_post_raw(node, path, body, world)))


def _post_raw(node: NodeEntry, path: str, body: bytes, world: World) -> bytes:
    try:
        with world.client(60.0) as client:
            response = client.post(node.orchestrator_url + path, content=body)
    except httpx2.HTTPError as error:
        raise Unavailable(f"{node.name}: {error or type(error).__name__}") from error
    if response.status_code != 200:
        kind = Unavailable if response.status_code >= 500 else Rejected
        raise kind(f"{node.name}: {response.text[:400]}")
    return bytes(response.content)


# --- building -----------------------------------------------------------------------------------


def build(folder: Path, changes: Changes, say: Say, world: World | None = None) -> Bundle:
    """Build a bundle on one node. Raises: NotVerified, Rejected, Unavailable: what is missing."""
    world = world or World()
    settings, records, subnet = open_node(folder)
    deltas, certified = collect_deltas(subnet, settings.root_key, world)
    say(f"the registry is certified up to version {certified.version}")
    base = judging.base_of(certified, subnet.id, last_applied(settings))
    probe = Agent([], settings.root_key, timeout_s=5.0, world=world)
    found = planning.gather(subnet, probe, certified, _known(base, settings))
    say(f"R = {found.height}: CUP {found.package.height}, silent: {len(found.silent)} nodes")
    attestations, problems = planning.attest(subnet, found.height, certified, probe.world, say)
    for problem in problems:
        say(f"no attestation from {problem}")
    evidence = Evidence(
        found.package.encode(),
        found.block,
        found.finalization,
        found.certification,
        tuple(sorted(attestations, key=lambda a: a.node)),
    )
    view = certified.view(subnet.id, certified.version)
    replacing = bool(changes.replaced)
    judged = judge_evidence(
        evidence, subnet.id, certified, certified.version, base, replacing=replacing
    )
    say(f"{len(judged.attesting)} members attest the state of height {judged.state_height}")
    height = attestation.recovery_height(judged.proven_height, view.interval_length + 1)
    version = RegistryVersion(certified.version + 1)
    new, committee = None, None
    if replacing:
        members = new_members(view.members, changes.replaced)
        new_committee.check_members(certified, subnet.id, view.members, members, judged.attesting)
        plan = KeyPlan(subnet.id, version, height, members)
        new = NewKeys(members, collect_dealings(plan, certified, world, say))
        root_key = nns_recovery.transcripts_of(plan, new.dealings)[1].public_key
        committee = Committee(members, root_key)
    order = Order(
        height,
        TimeNs(
            max(
                attestation.recovery_time(
                    judged.proven_time_ns, judged.proven_height, view.unit_delay_ns
                ),
                world.now_ns(),
            )
        ),
        changes.release,
        changes.module,
        committee,
    )
    say(f"replaying to {judged.state_height} and making the changes")
    result = replay(settings, certified, found.package, judged.state_height, order, world)
    if result["state_hash"] != judged.state_hash.hex():
        raise NotVerified("this node replays another state than is attested: build elsewhere")
    now_s = world.now_ns() // SECOND
    recovery = Recovery(
        subnet=subnet.id,
        evidence=canonical.encode(evidence),
        state_height=judged.state_height,
        state_hash=judged.state_hash,
        height=order.height,
        time_ns=order.time_ns,
        registry_version=RegistryVersion(result["registry_version"]),
        registry_batch=bytes.fromhex(result["registry_batch"]),
        release=changes.release,
        module=changes.module,
        keys=new,
        new_state_hash=bytes.fromhex(result["new_state_hash"]),
        deadline_s=now_s + VALID_S,
    )
    bundle = Bundle(recovery, tuple(deltas), changes.package)
    judging.judge(bundle, settings.root_key, records, None, last_applied(settings), now_s)
    return bundle


def new_members(
    before: tuple[NodeId, ...], replaced: tuple[tuple[NodeId, NodeId], ...]
) -> tuple[NodeId, ...]:
    """Return the members after a replacement. Raises: Rejected."""
    places = dict(replaced)
    if len(places) != len(replaced) or len(set(places.values())) != len(places):
        raise Rejected("a node is replaced, or put in a place, twice")
    for node in places:
        if node not in before:
            raise Rejected(f"{node} is no member of the NNS subnet")
    return tuple(sorted(places.get(n, n) for n in before))


def collect_dealings(
    plan: KeyPlan, records: VersionedRecords, world: World, say: Say
) -> tuple[KeyDealing, ...]:
    """Have the new members deal each other keys, and look at what they got.

    A dealer is left out when it does not answer, deals nonsense, or gives a share that its receiver
    can't use. Raises: Unavailable when a new member does not answer: it could not sign either.
    """
    nodes = [registered(records, m, "nns") for m in plan.members]
    dealt: list[KeyDealing] = []
    for node in nodes:
        raw = _post_raw(node, "/new_keys/deal", canonical.encode(plan), world)
        made = canonical.decode(Dealt, raw).dealings
        try:
            new_committee.check_dealings(records, plan, made)
            if [d.dealer for d in made] != [node.id, node.id]:
                raise NotVerified("it handed out another node's dealings")
        except ReprisError as error:
            say(f"the dealings of {node.name} are left out: {error}")
            continue
        dealt += made
    bad: set[str] = set()
    everything = canonical.encode(Dealt(plan, tuple(dealt)))
    for node in nodes:
        found = json.loads(_post_raw(node, "/new_keys/look", everything, world))
        for dealer in found:
            say(f"{node.name} can't use its share of {dealer}'s dealing: it is left out")
        bad.update(found)
    kept = tuple(d for d in dealt if str(d.dealer) not in bad)
    say(f"{len(kept) // 2} of {len(nodes)} new members dealt keys to all")
    return kept


def last_applied(settings: NodeSettings) -> Bundle | None:
    """Return the recovery that this node went through last."""
    path = settings.folder / "nns_recovery.applied"
    return nns_recovery.decode(path.read_bytes()) if path.exists() else None


def _known(base: CatchUpPackage | int, settings: NodeSettings) -> CatchUpPackage:
    """Return a package to begin from: the one in force, else this node's own signed one."""
    if not isinstance(base, int):
        return base
    own = stored_cup.read(settings.cup_path)
    if own.epoch != base or not own.is_signed:
        raise NotVerified("this node has no signed catch-up package of the present epoch")
    return own


def collect_deltas(
    subnet: SubnetEntry, root_key: bytes, world: World
) -> tuple[list[bytes], VersionedRecords]:
    """Collect the certified registry from whichever node shows the newest. Raises: Unavailable."""
    best: tuple[list[bytes], VersionedRecords] | None = None
    for node in subnet.nodes:
        agent = Agent([node.http_url], root_key, timeout_s=5.0, world=world)
        raws: list[bytes] = []
        try:
            records = certified_registry.fetch(agent, answers=raws)
        except ReprisError:
            continue  # down or lying: another one is asked
        if best is None or records.version > best[1].version:
            best = (raws, records)
    if best is None:
        raise Unavailable("no node of the NNS subnet shows a certified registry")
    return best


def replay(
    settings: NodeSettings,
    records: VersionedRecords,
    package: CatchUpPackage,
    height: int,
    order: Order,
    world: World,
) -> dict[str, Any]:
    """Replay on a node's own folder, with the release that the subnet ran."""
    version = records.view(package.subnet, package.registry_version).replica_version
    record = parse(pb.ReplicaVersionRecord, records.need(keys.replica_version(version)))
    folder = settings.releases / record.release_package_sha256_hex
    out = settings.data / "replay-build"
    try:
        return world.replay(folder, settings.folder, height, out, order)
    finally:
        shutil.rmtree(out, ignore_errors=True)


# --- looking, signing, applying ---------------------------------------------------------------


def read(path: Path) -> Bundle:
    try:
        return nns_recovery.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there is no bundle {path}") from error


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle would do, for whoever is to sign it."""
    r = bundle.recovery
    evidence = attestation.decode(r.evidence)
    good, faults = nns_recovery.ballots_of(bundle)
    changes = []
    if r.release is not None:
        changes.append(f"release {r.release.version} ({r.release.sha256_hex})")
    if r.module is not None:
        changes.append(f"code of {r.module.canister}: {sha256(r.module.module).hex()}")
    if r.keys is not None:
        names = ", ".join(n.short for n in r.keys.members)
        key = judging.new_root_key(r) or b""
        changes.append(f"members {names}, with a new root key {key.hex()}")
    return {
        "subject": r.subject,
        "subnet": r.subnet,
        "state_height": r.state_height,
        "state_hash": r.state_hash,
        "attested_by": [str(a.node) for a in evidence.attestations],
        "cup_height": r.height,
        "registry_version": r.registry_version,
        "changes": changes or ["none besides the registry's record of the recovery"],
        "new_state_hash": r.new_state_hash,
        "deadline_s": r.deadline_s,
        "ballots": [str(b.voter) for b in good],
        "bad_ballots": faults,
    }


def verify(bundle: Bundle, folder: Path, say: Say) -> dict[str, Any]:
    """Judge a bundle on one's own node and re-derive its state by replay. Raises: NotVerified."""
    settings, records, _ = open_node(folder)
    local = stored_cup.read(settings.cup_path)
    world = World()
    now_s = world.now_ns() // SECOND
    verdict = judging.judge(
        bundle, settings.root_key, records, local, last_applied(settings), now_s
    )
    _check_shares(bundle, settings)
    say(f"the evidence holds; replaying to {bundle.recovery.state_height} on this node")
    newest = cup.decode(attestation.decode(bundle.recovery.evidence).cup)
    r = bundle.recovery
    result = replay(settings, verdict.records, newest, r.state_height, r.order, world)
    for name, expected in (("state_hash", r.state_hash), ("new_state_hash", r.new_state_hash)):
        if result[name] != expected.hex():
            raise NotVerified(f"replay on this node gives another {name}: {result[name]}")
    return {
        "holds": True,
        "state_hash": r.state_hash,
        "new_state_hash": r.new_state_hash,
        "signed": len(verdict.signed),
        "needed": verdict.needed,
        "nodes": len(verdict.before),
    }


def _check_shares(bundle: Bundle, settings: NodeSettings) -> None:
    """A node that is to be a member must be able to use what was dealt to it."""
    new = bundle.recovery.keys
    if new is None or settings.node not in new.members:
        return
    plan, secret = bundle.recovery.key_plan(new), settings.secrets().dealing
    bad = new_committee.bad_dealers(plan, new.dealings, settings.node, secret)
    if bad:
        raise NotVerified(f"this node can't use what {bad[0]} dealt to it: build the bundle anew")


def sign(bundle: Bundle, key: Ed25519Key, *, yes: bool = True) -> Ballot:
    """Sign a bundle offline."""
    choice = ballots.YES if yes else ballots.NO
    r = bundle.recovery
    return ballots.sign(ballots.NNS_RECOVERY, r.subject, choice, r.deadline_s, key)


def read_ballots(paths: list[Path]) -> list[Ballot]:
    out = []
    for path in paths:
        try:
            out.append(ballots.from_plain(json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            raise Malformed(f"{path} is no ballot: {error}") from error
    return out


def apply(bundle: Bundle, node: NodeEntry, world: World | None = None) -> dict[str, Any]:
    """Hand a bundle with its ballots to a node's orchestrator. Raises: the reason of a refusal."""
    return _post(node, "/nns_recovery", bundle.encode(), world or World())


def status(nodes: tuple[NodeEntry, ...], probe: Agent) -> list[dict[str, Any]]:
    """Return one row a node: what it knows of a recovery, and how its replica is."""
    rows = []
    for node in nodes:
        row: dict[str, Any] = {"node": node.name, "id": str(node.id)}
        try:
            with probe.world.client(10.0) as client:
                response = client.get(node.orchestrator_url + "/nns_recovery")
            found = response.json() if response.status_code == 200 else {"state": "none"}
        except httpx2.HTTPError:
            found = {"state": "unreachable"}
        row["recovery"] = found["state"]
        signed, needed = found.get("signed"), found.get("needed")
        row["signed"] = f"{len(signed)} of {needed}" if signed is not None else None
        row["height"] = found.get("height")
        row["note"] = found.get("note")
        row["epoch"] = row["certified"] = None
        try:
            replica = probe.node_status(node.http_url)
            row["replica"], row["epoch"] = replica["status"], replica["epoch"]
            row["certified"] = replica["certified_height"]
        except ReprisError:
            row["replica"] = "unreachable"
        rows.append(row)
    return rows
