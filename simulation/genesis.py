"""The beginning of a simulated subnet: keys, the registry's first version, the genesis CUP."""

from __future__ import annotations

from hashlib import sha256

from replica.client import local_registry as keys
from replica.client.local_registry import VersionedRecords
from replica.consensus.reader import SecretKeys
from replica.protocol import cup
from replica.protocol.crypto import bls, dkg
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.crypto.scheme import (
    Dealing,
    deal_bls,
    deal_double,
    threshold_high,
    threshold_low,
)
from replica.protocol.ids import Height, NodeId, Principal, RegistryVersion, SubnetId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import serialize
from replica.protocol.registry_transport import Delta, Mutation, encode_batch
from simulation.plan import Plan
from simulation.scheduler import GENESIS_NS

RELEASE = "v1"
"""The first release."""
SUBNET = SubnetId(Principal(b"simulated subnet"))
UNIT_DELAY_MS, NOTARY_DELAY_MS, BACKOFF_MS = 200, 20, 10


def scalar(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest(), "big") % bls.ORDER


class Genesis:
    """What the trusted dealer of a simulation hands out."""

    def __init__(self, plan: Plan) -> None:
        self.subnet = SUBNET
        count = plan.nodes + plan.spares + plan.outsiders
        signing = [Ed25519Key(sha256(f"node {i}".encode()).digest()) for i in range(count)]
        everyone = [NodeId(k.principal) for k in signing]
        ids = everyone[: plan.nodes]
        self.members = tuple(sorted(ids))
        self.outsiders = tuple(sorted(everyone[plan.nodes + plan.spares :]))
        self.low = _deal(plan, ids, threshold_low(plan.nodes), "low")
        self.high = _deal(plan, ids, threshold_high(plan.nodes), "high")
        self.secrets: list[SecretKeys] = []
        public: dict[NodeId, tuple[bytes, bytes, bytes]] = {}
        for i, node in enumerate(everyone):
            secret = scalar(f"committee {i}").to_bytes(32, "big")
            key = bls.public_key(scalar(f"committee {i}")) if plan.real_bls else secret
            dealing = scalar(f"dealing {i}").to_bytes(32, "big")
            sealing = dkg.public_key(dealing) if plan.real_bls else dealing
            public[node] = (signing[i].public_key, key, sealing)
            shares = {}
            for deal in (self.low, self.high):
                index = deal.transcript.index_of(node)
                if index is None:
                    continue
                shares[deal.transcript.share_keys[index]] = deal.shares[index]
            self.secrets.append(SecretKeys(node, signing[i], secret, shares, dealing))
        self.records = VersionedRecords()
        publish(self.records, self._mutations(plan, public))
        package = self.records.registry_cup(SUBNET)
        assert package is not None
        self.package = package

    def _mutations(
        self, plan: Plan, public: dict[NodeId, tuple[bytes, bytes, bytes]]
    ) -> list[Mutation]:
        record = pb.SubnetRecord(
            membership=[bytes(n) for n in self.members],
            unit_delay_millis=UNIT_DELAY_MS,
            initial_notary_delay_millis=NOTARY_DELAY_MS,
            replica_version_id=RELEASE,
            dkg_interval_length=plan.interval,
            subnet_type=2 if plan.outsiders else 1,
            max_ingress_messages_per_block=100,
            certification_backoff_millis=BACKOFF_MS,
            stall_limit_millis=5000,
        )
        contents = pb.CatchUpPackageContents(time=GENESIS_NS, genesis=pb.GenesisArgs())
        for name, dealing, tag in (
            ("initial_ni_dkg_transcript_low_threshold", self.low, dkg.LOW),
            ("initial_ni_dkg_transcript_high_threshold", self.high, dkg.HIGH),
        ):
            made = cup.transcript_to_record(
                dealing.transcript, SUBNET, Height(0), tag, RegistryVersion(1)
            )
            getattr(contents, name).CopyFrom(made)
        high_key = pb.PublicKey(key_value=self.high.transcript.public_key)
        mutations = [
            Mutation(keys.subnet_record(SUBNET), serialize(record)),
            Mutation(keys.cup_contents(SUBNET), serialize(contents)),
            Mutation(keys.threshold_key(SUBNET), serialize(high_key)),
        ]
        purposes = (keys.NODE_SIGNING, keys.COMMITTEE_SIGNING, keys.DKG_DEALING)
        for node, values in sorted(public.items()):
            for purpose, value in zip(purposes, values):
                key = pb.PublicKey(key_value=value)
                mutations.append(Mutation(keys.node_key(node, purpose), serialize(key)))
        return mutations


def publish(records: VersionedRecords, mutations: list[Mutation]) -> RegistryVersion:
    """Add a version to a registry that is a list of versions."""
    version = RegistryVersion(records.version + 1)
    records.apply(Delta(version, encode_batch(tuple(mutations))))
    return version


def _deal(plan: Plan, ids: list[NodeId], threshold: int, tag: str) -> Dealing:
    if not plan.real_bls:
        return deal_double(ids, threshold, tag.encode())
    return deal_bls(ids, threshold, [scalar(f"{tag} {k}") for k in range(threshold)])
