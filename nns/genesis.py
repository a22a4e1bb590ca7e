"""Genesis: the first registry content and the keys of all nodes, made by a trusted dealer.

Whoever runs this sees every secret once. That is right for a local swarm and for tests; the keys
of later committees don't come from here.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from replica.client import local_registry as keys
from replica.protocol import cup
from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.crypto.scheme import Dealing, deal_bls, threshold_high, threshold_low
from replica.protocol.ids import (
    Height,
    NodeId,
    Principal,
    RegistryVersion,
    SubnetId,
    canister_id,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import serialize
from replica.protocol.registry_transport import UPSERT, Mutation

Entropy = Callable[[int], bytes]
"""Returns so many secret random bytes."""
CANISTERS_PER_SUBNET = 1 << 20
GENESIS_VERSION = RegistryVersion(1)
APPLICATION, SYSTEM = 1, 2


@dataclass(frozen=True)
class SubnetPlan:
    """One subnet to be made."""

    name: str
    nodes: int
    is_nns: bool
    interval_length: int
    unit_delay_ms: int
    notary_delay_ms: int
    backoff_ms: int
    stall_limit_ms: int
    trusted_bundles: tuple[bytes, ...] = ()


@dataclass
class NodeSecrets:
    """All that one node is handed by the dealer."""

    name: str
    node: NodeId
    signing_seed: bytes
    committee: bytes
    dealing: bytes
    tls_key_pem: str
    tls_certificate_pem: str
    tls_certificate_der: bytes
    operator_seed: bytes
    http_port: int = 0
    p2p_port: int = 0
    orchestrator_port: int = 0
    shares: dict[bytes, bytes] = field(default_factory=dict)

    def to_plain(self) -> dict[str, object]:
        return {
            "signing": self.signing_seed.hex(),
            "committee": self.committee.hex(),
            "dealing": self.dealing.hex(),
            "shares": {k.hex(): v.hex() for k, v in self.shares.items()},
            "tls_key": self.tls_key_pem,
            "tls_certificate": self.tls_certificate_pem,
        }


@dataclass
class Subnet:
    plan: SubnetPlan
    id: SubnetId
    public_key: bytes
    nodes: list[NodeSecrets]


@dataclass
class Genesis:
    subnets: list[Subnet]
    spares: list[NodeSecrets]
    """Registered nodes that are in no subnet."""
    mutations: list[Mutation]

    @property
    def nodes(self) -> list[NodeSecrets]:
        return [n for s in self.subnets for n in s.nodes] + self.spares

    @property
    def nns(self) -> Subnet:
        return next(s for s in self.subnets if s.plan.is_nns)

    @property
    def root_key(self) -> bytes:
        return bls.public_key_to_der(self.nns.public_key)

    def batch(self) -> bytes:
        """Return the first registry version as the registry's init argument takes it."""
        message = pb.RegistryAtomicMutateRequest()
        for m in sorted(self.mutations, key=lambda m: m.key):
            message.mutations.add(mutation_type=UPSERT, key=m.key.encode(), value=m.value or b"")
        return serialize(message)


def make(
    plans: list[SubnetPlan],
    release: str,
    release_sha256: str,
    initializer: Principal,
    ports: list[int],
    time_ns: int,
    spare_nodes: int = 0,
    entropy: Entropy = secrets.token_bytes,
) -> Genesis:
    """Deal all keys and write the first registry version.

    `release`: version id all subnets start with. `initializer`: who may create the first canisters.
    `ports`: three for each node, in the order of the plans, then of the spare nodes. `time_ns`:
    time of the genesis blocks.
    """
    remaining = iter(ports)
    subnets = [(plan, _make_nodes(plan.name, plan.nodes, remaining, entropy)) for plan in plans]
    spares = _make_nodes("spare", spare_nodes, remaining, entropy)
    mutations: list[Mutation] = []
    for node in spares:
        _add_node(node, mutations)
    made = [_make_subnet(p, n, release, time_ns, mutations, entropy) for p, n in subnets]
    _add(mutations, keys.SUBNET_LIST, pb.SubnetListRecord(subnets=[bytes(s.id) for s in made]))
    nns = next(s for s in made if s.plan.is_nns)
    _add(mutations, keys.NNS_SUBNET, pb.SubnetId(principal_id=pb.PrincipalId(raw=nns.id)))
    _add(mutations, keys.ROUTING_TABLE, _routing_table(made))
    whitelist = pb.ProvisionalWhitelist(list_type=1, set=[pb.PrincipalId(raw=initializer)])
    _add(mutations, keys.WHITELIST, whitelist)
    record = pb.ReplicaVersionRecord(release_package_sha256_hex=release_sha256)
    _add(mutations, keys.replica_version(release), record)
    blessed = pb.BlessedReplicaVersions(blessed_version_ids=[release])
    _add(mutations, "blessed_replica_versions", blessed)
    return Genesis(made, spares, mutations)


def _add(mutations: list[Mutation], key: str, message: object) -> None:
    mutations.append(Mutation(key, serialize(message)))  # type: ignore[arg-type]


def _make_nodes(name: str, count: int, ports: Iterator[int], entropy: Entropy) -> list[NodeSecrets]:
    nodes = [_make_node(f"{name}-{i}", entropy) for i in range(count)]
    for node in nodes:
        node.http_port, node.p2p_port = next(ports), next(ports)
        node.orchestrator_port = next(ports)
    return nodes


def _make_node(name: str, entropy: Entropy = secrets.token_bytes) -> NodeSecrets:
    seed = entropy(32)
    key = Ed25519Key(seed)
    tls_key = ed25519.Ed25519PrivateKey.from_private_bytes(entropy(32))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(key.principal)[:60])])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(tls_key.public_key())
        .serial_number(int.from_bytes(entropy(16), "big") + 1)
        .not_valid_before(start)
        .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        .sign(tls_key, algorithm=None)
    )
    encoding = serialization.Encoding
    return NodeSecrets(
        name=name,
        node=NodeId(key.principal),
        signing_seed=seed,
        committee=_scalar(entropy).to_bytes(32, "big"),
        dealing=_scalar(entropy).to_bytes(32, "big"),
        tls_key_pem=tls_key.private_bytes(
            encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        tls_certificate_pem=certificate.public_bytes(encoding.PEM).decode(),
        tls_certificate_der=certificate.public_bytes(encoding.DER),
        operator_seed=entropy(32),
    )


def _scalar(entropy: Entropy) -> int:
    return int.from_bytes(entropy(48), "big") % (bls.ORDER - 1) + 1


def _deal(nodes: list[NodeSecrets], threshold: int, entropy: Entropy) -> Dealing:
    coefficients = [_scalar(entropy) for _ in range(threshold)]
    dealing = deal_bls([n.node for n in nodes], threshold, coefficients)
    for node in nodes:
        index = dealing.transcript.index_of(node.node)
        assert index is not None
        node.shares[dealing.transcript.share_keys[index]] = dealing.shares[index]
    return dealing


def _make_subnet(
    plan: SubnetPlan,
    nodes: list[NodeSecrets],
    release: str,
    time_ns: int,
    mutations: list[Mutation],
    entropy: Entropy,
) -> Subnet:
    low = _deal(nodes, threshold_low(plan.nodes), entropy)
    high = _deal(nodes, threshold_high(plan.nodes), entropy)
    public_key = high.transcript.public_key
    subnet = SubnetId(Principal.self_authenticating(bls.public_key_to_der(public_key)))
    for node in nodes:
        _add_node(node, mutations)
    record = pb.SubnetRecord(
        membership=sorted(bytes(n.node) for n in nodes),
        unit_delay_millis=plan.unit_delay_ms,
        initial_notary_delay_millis=plan.notary_delay_ms,
        replica_version_id=release,
        dkg_interval_length=plan.interval_length,
        start_as_nns=plan.is_nns,
        subnet_type=SYSTEM if plan.is_nns else APPLICATION,
        max_ingress_messages_per_block=1000,
        certification_backoff_millis=plan.backoff_ms,
        trusted_bundle_hashes=list(plan.trusted_bundles),
        stall_limit_millis=plan.stall_limit_ms,
    )
    _add(mutations, keys.subnet_record(subnet), record)
    contents = pb.CatchUpPackageContents(height=0, time=time_ns, genesis=pb.GenesisArgs(height=0))
    for dealing, tag, field_name in (
        (low, dkg.LOW, "initial_ni_dkg_transcript_low_threshold"),
        (high, dkg.HIGH, "initial_ni_dkg_transcript_high_threshold"),
    ):
        transcript = cup.transcript_to_record(
            dealing.transcript, subnet, Height(0), tag, GENESIS_VERSION
        )
        getattr(contents, field_name).CopyFrom(transcript)
    _add(mutations, keys.cup_contents(subnet), contents)
    key = pb.PublicKey(version=0, algorithm=2, key_value=public_key)
    _add(mutations, keys.threshold_key(subnet), key)
    return Subnet(plan, subnet, public_key, nodes)


def _add_node(node: NodeSecrets, mutations: list[Mutation]) -> None:
    operator = Ed25519Key(node.operator_seed)
    record = pb.NodeRecord(
        http=pb.ConnectionEndpoint(ip_addr="127.0.0.1", port=node.http_port),
        p2p=pb.ConnectionEndpoint(ip_addr="127.0.0.1", port=node.p2p_port),
        orchestrator=pb.ConnectionEndpoint(ip_addr="127.0.0.1", port=node.orchestrator_port),
        node_operator_id=operator.principal,
    )
    _add(mutations, keys.node_record(node.node), record)
    operator_record = pb.NodeOperatorRecord(
        node_operator_principal_id=operator.principal, public_key_der=operator.public_key_der
    )
    _add(mutations, keys.node_operator_record(operator.principal), operator_record)
    signing = pb.PublicKey(algorithm=7, key_value=Ed25519Key(node.signing_seed).public_key)
    _add(mutations, keys.node_key(node.node, keys.NODE_SIGNING), signing)
    committee_public = bls.public_key(int.from_bytes(node.committee, "big"))
    proof = bls.VERIFIER.prove_possession(node.committee)
    committee = pb.PublicKey(algorithm=1, key_value=committee_public, proof_data=proof)
    _add(mutations, keys.node_key(node.node, keys.COMMITTEE_SIGNING), committee)
    dealing = pb.PublicKey(algorithm=1, key_value=dkg.public_key(node.dealing))
    _add(mutations, keys.node_key(node.node, keys.DKG_DEALING), dealing)
    certificate = pb.X509PublicKeyCert(certificate_der=node.tls_certificate_der)
    _add(mutations, keys.tls_certificate(node.node), certificate)


def _routing_table(subnets: list[Subnet]) -> pb.RoutingTable:
    table = pb.RoutingTable()
    ordered = sorted(subnets, key=lambda s: not s.plan.is_nns)
    for number, subnet in enumerate(ordered):
        first = canister_id(number * CANISTERS_PER_SUBNET)
        last = canister_id((number + 1) * CANISTERS_PER_SUBNET - 1)
        entry = table.entries.add()
        entry.range.start_canister_id.principal_id.raw = first
        entry.range.end_canister_id.principal_id.raw = last
        entry.subnet_id.principal_id.raw = subnet.id
    return table
