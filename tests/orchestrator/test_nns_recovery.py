"""A recovery bundle of the NNS on an orchestrator: what it takes, and all that is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nns import genesis
from orchestrator.cup_provider import CupProvider
from orchestrator.nns_recovery import NnsRecovery
from orchestrator.releases import Releases
from orchestrator.replays import Promises, Replays
from replica.client import local_registry as keys
from replica.client.agent import Agent, World
from replica.client.local_registry import LocalRegistry, VersionedRecords
from replica.protocol import ballot as ballots
from replica.protocol import canonical, certificate, hash_tree, nns_recovery
from replica.protocol import registry_transport as transport
from replica.protocol.attestation import recovery_height
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotAuthorized, ReprisError
from replica.protocol.hashing import leb128
from replica.protocol.ids import REGISTRY, Height, RegistryVersion, TimeNs
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.nns_recovery import RECOVERY_RECORD, Bundle, Recovery
from replica.protocol.registry_transport import Delta, Mutation, encode_batch
from replica.runtime.settings import NodeSettings
from tests.nns.harness import ADMIN, START_NS
from tests.nns.test_recovery import (
    CERTIFIED,
    FINALIZED,
    INTERVAL,
    STATE_HASH,
    build_evidence,
    plan,
    threshold_sign,
)

FAR = 1 << 40
FORMER = Ed25519Key(b"\x77" * 32)


@dataclass
class Nns:
    """An NNS of four nodes that is stuck; nns-3 was operated by somebody else before."""

    made: genesis.Genesis
    records: VersionedRecords
    raw: bytes
    bundle: Bundle

    @property
    def subnet(self) -> genesis.Subnet:
        return self.made.nns

    def operator(self, number: int) -> Ed25519Key:
        return Ed25519Key(self.subnet.nodes[number].operator_seed)

    def ballot(self, key: Ed25519Key, **changes: Any) -> bytes:
        made = ballots.sign(
            changes.get("purpose", ballots.NNS_RECOVERY),
            changes.get("subject", self.bundle.recovery.subject),
            changes.get("choice", ballots.YES),
            changes.get("deadline_s", FAR),
            key,
        )
        return made.encode()

    def signed(self, *numbers: int, **changes: Any) -> Bundle:
        """The bundle with some recovery changed, signed by these operators."""
        recovery = replace(self.bundle.recovery, **changes)
        made = replace(self.bundle, recovery=recovery)
        subject = recovery.subject
        return made.with_ballots(
            tuple(self.ballot(self.operator(n), subject=subject) for n in numbers)
        )


@pytest.fixture(scope="module")
def nns() -> Nns:
    made = genesis.make(
        [plan("nns", 4), plan("app", 4)],
        "aa",
        "00" * 32,
        ADMIN.principal,
        list(range(20_000, 20_033)),
        START_NS,
        spare_nodes=3,
    )
    node = made.nns.nodes[3]
    key = keys.node_record(node.node)
    present = next(m for m in made.mutations if m.key == key)
    former = parse(pb.NodeRecord, present.value or b"")
    former.node_operator_id = FORMER.principal
    first = [m for m in made.mutations if m.key != key] + [Mutation(key, serialize(former))]
    operator = keys.node_operator_record(FORMER.principal)
    record = pb.NodeOperatorRecord(
        node_operator_principal_id=FORMER.principal, public_key_der=FORMER.public_key_der
    )
    first.append(Mutation(operator, serialize(record)))
    records = VersionedRecords()
    batches = [encode_batch(tuple(first)), encode_batch((present,))]
    for number, batch in enumerate(batches, 1):
        records.apply(Delta(RegistryVersion(number), batch))
    raw = certified(made, records, batches)
    evidence, _ = build_evidence(made, records, 0)
    height = recovery_height(Height(FINALIZED), INTERVAL)
    recovery = Recovery(
        subnet=made.nns.id,
        evidence=canonical.encode(evidence),
        state_height=Height(CERTIFIED),
        state_hash=STATE_HASH,
        height=height,
        time_ns=TimeNs(START_NS + 10**12),
        registry_version=RegistryVersion(3),
        registry_batch=batch_of(made, records, height),
        release=None,
        module=None,
        keys=None,
        new_state_hash=b"\x66" * 32,
        deadline_s=FAR,
    )
    return Nns(made, records, raw, Bundle(recovery, (raw,), b""))


def certified(made: genesis.Genesis, records: VersionedRecords, batches: list[bytes]) -> bytes:
    """The registry's answer to a reader that holds nothing, signed by the NNS."""
    current = RegistryVersion(len(batches))
    contents = {RegistryVersion(v): b for v, b in enumerate(batches, 1)}
    tree = hash_tree.build(transport.delta_tree(contents, current))
    state = hash_tree.build(
        {
            b"canister": {bytes(REGISTRY): {b"certified_data": tree.digest}},
            b"time": leb128(START_NS),
        }
    )
    package = records.registry_cup(made.nns.id, 1)
    assert package is not None
    message = certificate.state_root_message(state.digest)
    signature = threshold_sign(made.nns, package, message)
    return transport.encode_response(tree, certificate.Certificate(state, signature).encode())


def batch_of(
    made: genesis.Genesis,
    records: VersionedRecords,
    height: int,
    time_ns: int = START_NS + 10**12,
    **changes: Any,
) -> bytes:
    key = keys.subnet_record(made.nns.id)
    subnet = parse(pb.SubnetRecord, records.need(key))
    for name, value in changes.items():
        setattr(subnet, name, value)
    note = pb.NnsRecoveryRecord(
        height=height,
        time=time_ns,
        state_height=CERTIFIED,
        state_hash=STATE_HASH,
    )
    mutations = (Mutation(RECOVERY_RECORD, serialize(note)), Mutation(key, serialize(subnet)))
    return encode_batch(mutations)


@dataclass
class Node:
    """One orchestrator's part in it."""

    folder: Path
    nns: Nns
    said: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    followed: list[Bundle] = field(default_factory=list)

    def __post_init__(self) -> None:
        made = self.nns.made
        (self.folder / "data").mkdir(parents=True)
        (self.folder / "releases").mkdir()
        self.settings = NodeSettings(
            self.folder,
            made.nns.nodes[0].node,
            1,
            2,
            3,
            (),
            made.root_key,
            self.folder / "releases",
            1,
            1,
        )
        self.records = LocalRegistry(self.settings.registry_path, writable=True)
        self.records.append(self.nns.records.deltas)
        self.cups = CupProvider(self.settings, self.records, Agent([], made.root_key))
        package = self.nns.records.registry_cup(made.nns.id)
        assert package is not None
        self.cups.store(package)
        self.open()

    def open(self) -> None:
        """Start, or start again after a crash."""
        releases = Releases(self.settings, self.records, list, self.said.append, World())
        self.recovery = NnsRecovery(
            self.settings,
            self.records,
            self.cups,
            releases,
            Replays(self.settings, World()),
            Promises(self.settings, World()),
            self.stops.append,
            self.said.append,
            self.followed.append,
        )

    def run(self) -> None:
        """Let it do what it would do in a few checks."""
        for _ in range(6):
            self.recovery.step()
            if self.recovery._replaying is not None:
                self.recovery._replaying.join()

    @property
    def height(self) -> int:
        local = self.cups.local()
        assert local is not None
        return local.height


@pytest.fixture
def node(tmp_path: Path, nns: Nns) -> Iterator[Node]:
    yield Node(tmp_path / "node", nns)


def refusal(node: Node, bundle: Bundle) -> str:
    with pytest.raises(ReprisError) as caught:
        node.recovery.stage(bundle.encode())
    node.run()
    assert node.height == 0 and not node.stops
    return str(caught.value)


def test_a_bundle_with_its_quorum_is_adopted(node: Node, nns: Nns) -> None:
    told = node.recovery.stage(nns.signed(0, 1, 2).encode())
    assert (told["state"], len(told["signed"]), told["needed"]) == ("quorum", 3, 3)
    node.run()
    assert node.stops and node.height == nns.bundle.recovery.height
    local = node.cups.local()
    assert local is not None and not local.is_signed
    assert (local.epoch, local.state_hash) == (3, b"\x66" * 32)
    genesis_cup = nns.records.registry_cup(nns.made.nns.id)
    assert genesis_cup is not None
    assert local.summary.high == genesis_cup.summary.high, "the root key stays"
    assert node.records.version == 3
    assert node.records.view(nns.made.nns.id, RegistryVersion(3)).cup_version == 3
    assert node.recovery.status()["state"] == "applied"
    assert "will be fetched from other nodes" in node.recovery.note


def test_ballots_come_one_by_one(node: Node, nns: Nns) -> None:
    for count, number in enumerate((2, 0, 1), 1):
        told = node.recovery.stage(nns.signed(number).encode())
        assert len(told["signed"]) == count
        node.open()  # a crash after each
        if count < 3:
            node.run()
            assert node.height == 0
    node.run()
    assert node.height == nns.bundle.recovery.height


@pytest.mark.parametrize("stage", ["stop", "append", "store"])
def test_a_crash_at_any_step_is_made_good(
    node: Node, nns: Nns, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(Exception):
        pass

    def crash(*_: object) -> None:
        raise Crash

    node.recovery.stage(nns.signed(0, 1, 2).encode())
    with monkeypatch.context() as patch:
        if stage == "stop":
            node.recovery.stop_replica = crash
        elif stage == "append":
            real = node.records.append
            patch.setattr(
                node.records, "append", lambda d: crash() if len(list(d)) == 3 else real(d)
            )
        else:
            patch.setattr(node.cups, "store", crash)
        with pytest.raises(Crash):
            node.run()
    assert node.height == 0
    node.open()
    node.run()
    assert node.height == nns.bundle.recovery.height and node.records.version == 3


def test_one_signature_short_does_nothing(node: Node, nns: Nns) -> None:
    told = node.recovery.stage(nns.signed(0, 1).encode())
    assert told["state"] == "waiting"
    node.run()
    assert node.height == 0 and node.recovery.status()["needed"] == 3


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda n: n.ballot(FORMER), "operates no node of the NNS subnet at registry version 2"),
        (lambda n: n.ballot(n.operator(2), choice=ballots.NO), "has signed no"),
        (lambda n: n.ballot(n.operator(2), deadline_s=5), "too old"),
        (lambda n: n.ballot(n.operator(2), subject=bytes(32)), "for something else"),
        (lambda n: n.ballot(n.operator(2), purpose=ballots.NODE_HALT), "for something else"),
        (lambda n: flipped(n.ballot(n.operator(2))), "not signed by it"),
        (lambda n: n.ballot(n.operator(1)), ""),
    ],
)
def test_a_third_ballot_that_counts_for_nothing(node: Node, nns: Nns, make: Any, text: str) -> None:
    told = node.recovery.stage(nns.signed(0, 1).with_ballots((make(nns),)).encode())
    assert told["state"] == "waiting" and len(told["signed"]) == 2
    assert any(text in fault for fault in told["refused"]) or not text
    node.run()
    assert node.height == 0


def test_a_recovery_that_nobody_signed_displaces_none(node: Node, nns: Nns) -> None:
    bare = nns.signed().with_ballots((nns.ballot(FORMER),))
    assert "no operator of the NNS has signed" in refusal(node, bare)
    node.recovery.stage(nns.signed(0, 1).encode())
    later = TimeNs(nns.bundle.recovery.time_ns + INTERVAL)
    note = batch_of(nns.made, nns.records, nns.bundle.recovery.height, time_ns=later)
    other = nns.signed(3, time_ns=later, registry_batch=note)
    with pytest.raises(ReprisError, match="another recovery is staged here, with 2 nodes"):
        node.recovery.stage(other.encode())
    assert node.recovery.stage(nns.signed(2).encode())["state"] == "quorum"


def test_a_wrong_registry_version_is_refused(node: Node, nns: Nns, tmp_path: Path) -> None:
    wrong = nns.signed(0, 1, 2, registry_version=RegistryVersion(4))
    assert "a wrong registry version" in refusal(node, wrong)
    short = replace(nns.signed(0, 1, 2), deltas=())
    assert "a wrong registry version" in refusal(node, short)
    ahead = Node(tmp_path / "ahead", nns)
    recovered = Delta(RegistryVersion(3), nns.bundle.recovery.registry_batch)
    later = Delta(RegistryVersion(4), recovered.batch)
    ahead.records.append([recovered, later])
    assert "a wrong registry version: this node holds 4" in refusal(ahead, nns.signed(0, 1, 2))
    forked = Node(tmp_path / "forked", nns)
    forked.records.append([Delta(RegistryVersion(3), encode_batch((Mutation("a", b"b"),)))])
    assert "another content of registry version 3" in refusal(forked, nns.signed(0, 1, 2))


def test_a_lower_height_is_refused(node: Node, nns: Nns) -> None:
    height = nns.bundle.recovery.height
    low = Height(height - INTERVAL)
    batch = batch_of(nns.made, nns.records, low)
    assert "a lower height: 41 is proven" in refusal(
        node, nns.signed(0, 1, 2, height=low, registry_batch=batch)
    )
    odd = nns.signed(0, 1, 2, height=Height(height + 1))
    assert "a lower height" in refusal(node, odd)
    package = nns.records.registry_cup(nns.made.nns.id)
    assert package is not None
    higher = nns_recovery.package_of(
        replace(
            nns.bundle.recovery, height=Height(height + 200), registry_version=RegistryVersion(2)
        ),
        package,
        "aa",
        INTERVAL - 1,
    )
    node.cups.store(higher)
    with pytest.raises(ReprisError, match=f"a lower height: the recovery is at {height}"):
        node.recovery.stage(nns.signed(0, 1, 2).encode())


def test_what_is_not_proven_or_says_too_little_is_refused(node: Node, nns: Nns) -> None:
    height = nns.bundle.recovery.height
    other = nns.signed(0, 1, 2, state_hash=b"\x01" * 32)
    assert "another state than its evidence proves" in refusal(node, other)
    early = nns.signed(0, 1, 2, time_ns=TimeNs(START_NS))
    assert "not later" in refusal(node, early)
    quiet = encode_batch((Mutation("a", b"b"),))
    assert "would change ['a']" in refusal(node, nns.signed(0, 1, 2, registry_batch=quiet))
    greedy = batch_of(nns.made, nns.records, height, unit_delay_millis=1)
    assert "more of the subnet's record" in refusal(
        node, nns.signed(0, 1, 2, registry_batch=greedy)
    )
    lying = batch_of(nns.made, nns.records, height + INTERVAL)
    assert "says something else" in refusal(node, nns.signed(0, 1, 2, registry_batch=lying))
    app = nns.signed(0, 1, 2, subnet=nns.made.subnets[1].id)
    assert "is not the NNS subnet" in refusal(node, app)


def test_an_altered_byte_never_gets_through(tmp_path: Path, nns: Nns) -> None:
    """Whatever byte is changed: refused, or without its quorum, or it changed nothing."""
    whole = nns.signed(0, 1, 2).encode()
    draw = random.Random(7)
    node = Node(tmp_path / "node", nns)
    outcomes = {"refused": 0, "waiting": 0, "unchanged": 0}
    for _ in range(150):
        position = draw.randrange(len(whole))
        altered = bytearray(whole)
        altered[position] ^= 1 << draw.randrange(8)
        node.recovery._staged = None
        try:
            told = node.recovery.stage(bytes(altered))
        except ReprisError:
            outcomes["refused"] += 1
            continue
        if told["state"] == "waiting":
            outcomes["waiting"] += 1
        else:
            assert nns_recovery.decode(bytes(altered)).recovery == nns.bundle.recovery
            outcomes["unchanged"] += 1
    assert outcomes["refused"] > 50 and outcomes["waiting"] > 0


def test_only_the_nodes_own_operator_halts_it(node: Node, nns: Nns) -> None:
    class Idle(Agent):
        def node_status(self, url: str) -> dict[str, Any]:
            return {"epoch": 1, "registry_version": 2, "status": "running"}

    agent, subnet = Idle([], nns.made.root_key), nns.made.nns.id
    subject = nns_recovery.halt_subject(node.settings.node, subnet, 1)

    def order(key: Ed25519Key, subject: bytes = subject, deadline: int = FAR) -> bytes:
        return ballots.sign(ballots.NODE_HALT, subject, ballots.YES, deadline, key).encode()

    for raw, text in (
        (order(nns.operator(1)), "does not operate this node"),
        (order(nns.operator(0), bytes(32)), "another node or epoch"),
        (order(nns.operator(0), deadline=5), "too old"),
    ):
        with pytest.raises(NotAuthorized, match=text):
            node.recovery.halt(raw, subnet, agent)
    assert node.settings.promised_epoch() is None
    assert node.recovery.halt(order(nns.operator(0)), subnet, agent) == {"halted_in_epoch": 1}
    assert node.settings.promised_epoch() == (1, 2)
