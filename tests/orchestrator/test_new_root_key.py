"""An NNS of which more than f nodes are gone: new members, a new root key, and who believes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nns.genesis import NodeSecrets
from replica.client import local_registry as keys
from replica.client import new_committee, succession
from replica.client import nns_recovery as judging
from replica.client.local_registry import VersionedRecords
from replica.protocol import attestation, canonical, certificate, hash_tree, nns_recovery
from replica.protocol import registry_transport as transport
from replica.protocol.crypto import bls
from replica.protocol.crypto.dkg import HIGH, BlsDkg
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import ReprisError
from replica.protocol.hashing import leb128
from replica.protocol.ids import REGISTRY, NodeId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse, serialize
from replica.protocol.nns_recovery import Bundle, KeyDealing, KeyPlan, NewKeys, Recovery
from replica.protocol.registry_transport import Mutation, decode_batch, encode_batch
from replica.runtime.settings import Secrets
from tests.nns.harness import START_NS
from tests.orchestrator.test_nns_recovery import Nns, Node, batch_of
from tests.orchestrator.test_nns_recovery import nns as nns  # a fixture


@dataclass
class Lost:
    """Two of the four nodes are gone; two spare ones are to join the others."""

    nns: Nns
    members: tuple[NodeId, ...]

    def secrets_of(self, node: NodeId) -> Secrets:
        found = next(n for n in self.nns.made.nodes if n.node == node)
        return secrets_of(found)

    @property
    def plan(self) -> KeyPlan:
        r = self.nns.bundle.recovery
        return KeyPlan(r.subnet, r.registry_version, r.height, self.members)

    def deal(self) -> tuple[KeyDealing, ...]:
        out: list[KeyDealing] = []
        for node in self.members:
            out += new_committee.deal(self.nns.records, self.plan, node, self.secrets_of(node))
        return tuple(out)

    def recovery(self, new: NewKeys, **changes: Any) -> Recovery:
        evidence = attestation.decode(self.nns.bundle.recovery.evidence)
        staying = [a for a in evidence.attestations if a.node in self.members][:2]
        evidence = replace(evidence, attestations=tuple(staying))
        base = replace(
            self.nns.bundle.recovery, evidence=canonical.encode(evidence), keys=new, **changes
        )
        try:
            key = judging.new_root_key(base)
        except ReprisError:
            key = bytes(96)
        batch = with_committee(self.nns, base.height, new.members, key or b"")
        return replace(base, registry_batch=batch) if "registry_batch" not in changes else base

    def bundle(self, new: NewKeys, *operators: int, **changes: Any) -> Bundle:
        made = replace(self.nns.bundle, recovery=self.recovery(new, **changes))
        subject = made.recovery.subject
        ballots = [self.nns.ballot(self.nns.operator(n), subject=subject) for n in operators]
        return made.with_ballots(tuple(ballots))

    def certified_anew(self, bundle: Bundle) -> bytes:
        """The version that the recovery wrote, certified by those who hold the new root key."""
        version = bundle.recovery.registry_version
        tree = hash_tree.build(
            transport.delta_tree({version: bundle.recovery.registry_batch}, version)
        )
        state = hash_tree.build(
            {
                b"canister": {bytes(REGISTRY): {b"certified_data": tree.digest}},
                b"time": leb128(START_NS),
            }
        )
        high, shares = self.verdict(bundle).package.summary.high, {}
        message = certificate.state_root_message(state.digest)
        for index, node in enumerate(high.committee):
            secret = BlsDkg().share_of(high, node, self.secrets_of(node).dealing)
            assert secret is not None
            shares[index] = bls.VERIFIER.sign_threshold(secret, message)
        signature = bls.VERIFIER.combine_threshold(message, shares, high)
        return transport.encode_response(tree, certificate.Certificate(state, signature).encode())

    def verdict(self, bundle: Bundle) -> judging.Verdict:
        records = VersionedRecords()
        return judging.judge(bundle, self.nns.made.root_key, records, None, None, 0)


def secrets_of(node: NodeSecrets) -> Secrets:
    return Secrets(
        Ed25519Key(node.signing_seed), node.committee, node.shares, node.dealing, b"", b""
    )


def with_committee(nns: Nns, height: int, members: tuple[NodeId, ...], key: bytes) -> bytes:
    """The version that the recovery writes, as the registry writes it."""
    plain = batch_of(nns.made, nns.records, height)
    name = keys.threshold_key(nns.made.nns.id)
    public = parse(pb.PublicKey, nns.records.need(name))
    public.key_value = key
    out = []
    for m in decode_batch(plain):
        if m.key == keys.subnet_record(nns.made.nns.id):
            record = parse(pb.SubnetRecord, m.value or b"")
            del record.membership[:]
            record.membership.extend(bytes(n) for n in members)
            m = Mutation(m.key, serialize(record))
        out.append(m)
    return encode_batch((*out, Mutation(name, serialize(public))))


@pytest.fixture(scope="module")
def lost(nns: Nns) -> Iterator[Lost]:
    evidence = attestation.decode(nns.bundle.recovery.evidence)
    staying = [a.node for a in evidence.attestations[:2]]
    spares = [n.node for n in nns.made.spares[:2]]
    yield Lost(nns, tuple(sorted([*staying, *spares])))


@pytest.fixture(scope="module")
def new(lost: Lost) -> NewKeys:
    return NewKeys(lost.members, lost.deal())


def test_the_new_members_hold_the_new_root_key(lost: Lost, new: NewKeys) -> None:
    bundle = nns_recovery.decode(lost.bundle(new, 0, 1, 2).encode())
    verdict = lost.verdict(bundle)
    assert verdict.has_quorum and verdict.package.summary.receivers == lost.members
    low, high = verdict.package.summary.low, verdict.package.summary.high
    assert high.public_key == verdict.records.subnet_public_key(lost.nns.subnet.id)
    assert bls.public_key_to_der(high.public_key) != lost.nns.made.root_key
    for transcript in (low, high):
        message, shares = b"is it theirs?", {}
        for node in lost.members[: transcript.threshold]:
            secret = BlsDkg().share_of(transcript, node, lost.secrets_of(node).dealing)
            assert secret is not None
            index = transcript.index_of(node)
            assert index is not None
            shares[index] = bls.VERIFIER.sign_threshold(secret, message)
        signature = bls.VERIFIER.combine_threshold(message, shares, transcript)
        assert bls.VERIFIER.verify_threshold(transcript.public_key, message, signature)


def test_whoever_trusts_the_old_key_comes_to_trust_the_new_one(lost: Lost, new: NewKeys) -> None:
    bundle = lost.bundle(new, 0, 1, 2)
    expected = bls.public_key_to_der(judging.new_root_key(bundle.recovery) or b"")
    assert succession.successor(bundle, lost.nns.made.root_key) == expected
    with pytest.raises(ReprisError, match="nodes have signed the new root key; 3 are needed"):
        succession.successor(lost.bundle(new, 0, 1), lost.nns.made.root_key)
    with pytest.raises(ReprisError):
        succession.successor(bundle, expected)
    with pytest.raises(ReprisError, match="keeps the root key"):
        succession.successor(lost.nns.signed(0, 1, 2), lost.nns.made.root_key)


def test_a_dealing_whose_share_can_not_be_opened_is_found(lost: Lost, new: NewKeys) -> None:
    victim = lost.members[2]
    made = list(new.dealings)
    liar = next(i for i, d in enumerate(made) if d.tag == HIGH and d.dealer == lost.members[0])
    sealed = list(made[liar].dealing.sealed)
    sealed[2] = bytes([sealed[2][0] ^ 1]) + sealed[2][1:]
    made[liar] = replace(made[liar], dealing=replace(made[liar].dealing, sealed=tuple(sealed)))
    secret, bad, plan = lost.secrets_of(victim).dealing, tuple(made), lost.plan
    assert new_committee.bad_dealers(plan, new.dealings, victim, secret) == []
    assert new_committee.bad_dealers(plan, bad, victim, secret) == [lost.members[0]]
    other = lost.members[1]
    assert not new_committee.bad_dealers(plan, bad, other, lost.secrets_of(other).dealing)
    good = NewKeys(new.members, tuple(d for d in made if d.dealer != lost.members[0]))
    assert lost.verdict(lost.bundle(good, 0, 1, 2)).has_quorum, "three of four dealt well"


def test_what_is_refused(lost: Lost, new: NewKeys) -> None:
    nodes = sorted(n.node for n in lost.nns.subnet.nodes)
    spares = [n.node for n in lost.nns.made.spares]
    taken = lost.nns.made.subnets[1].nodes[0].node

    def fault(new: NewKeys, **changes: Any) -> str:
        with pytest.raises(ReprisError) as caught:
            lost.verdict(lost.bundle(new, 0, 1, 2, **changes))
        return str(caught.value)

    staying = [m for m in lost.members if m not in spares]
    three = tuple(sorted([*staying, next(n for n in nodes if n not in staying), spares[0]]))
    assert "up to 1 (f) leave the root key alone" in fault(NewKeys(three, ()))
    one = tuple(sorted([staying[0], *spares]))
    assert "1 of the new members attest the state; 2 (f + 1)" in fault(NewKeys(one, ()))
    other = tuple(sorted([*staying, taken]))
    assert "a member of another subnet" in fault(NewKeys(other, ()))
    unknown = tuple(sorted([*staying, NodeId(type(taken)(b"nobody"))]))
    assert "not a registered node" in fault(NewKeys(unknown, ()))
    assert "not in order" in fault(NewKeys(new.members[::-1], new.dealings))
    assert "0 new members dealt a key; 2 (f + 1)" in fault(NewKeys(new.members, ()))
    assert "there twice" in fault(NewKeys(new.members, new.dealings + new.dealings[:1]))
    first = new.dealings[0]
    forged = replace(first, signature=bytes(64))
    assert "not signed by it" in fault(NewKeys(new.members, (forged, *new.dealings[1:])))
    batch = with_committee(lost.nns, lost.nns.bundle.recovery.height, new.members, b"\x0b" * 96)
    assert "another root key" in fault(new, registry_batch=batch)


def test_fewer_attestations_do_only_where_members_are_gone(lost: Lost, new: NewKeys) -> None:
    recovery = replace(lost.recovery(new), keys=None)
    bundle = replace(lost.nns.bundle, recovery=recovery)
    with pytest.raises(ReprisError, match="3 are needed"):
        lost.verdict(bundle)


def test_a_surviving_node_adopts_it(lost: Lost, new: NewKeys, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", lost.nns)
    told = node.recovery.stage(lost.bundle(new, 0, 1).encode())
    assert told["state"] == "waiting"
    told = node.recovery.stage(lost.bundle(new, 2).encode())
    assert told["state"] == "quorum"
    node.run()
    local = node.cups.local()
    assert local is not None and local.height == lost.nns.bundle.recovery.height
    assert local.summary.receivers == lost.members
    assert node.records.view(lost.nns.subnet.id, node.records.version).members == lost.members
    assert [judging.new_root_key(b.recovery) for b in node.followed] == [
        local.summary.high.public_key
    ]
