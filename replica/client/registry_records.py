"""The registry's records in memory: their keys, and look-ups by version.

Every look-up names a version; what is held can answer for any it has.
"""

from __future__ import annotations

from bisect import bisect_right

from replica.client.subnet_view import MS, NodeKeys, SubnetView
from replica.protocol import cup
from replica.protocol.errors import Malformed, NotFound, Unavailable
from replica.protocol.ids import NodeId, Principal, RegistryVersion, SubnetId
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.nns_recovery import RECOVERY_RECORD
from replica.protocol.registry_transport import Delta

SUBNET_LIST = "subnet_list"
NNS_SUBNET = "nns_subnet_id"
ROUTING_TABLE = "routing_table"
WHITELIST = "provisional_whitelist"


DEALINGS_PER_BLOCK = 4
"""Unless the registry says otherwise: intervals of tests and drills are short."""


def subnet_record(subnet: Principal) -> str:
    return f"subnet_record_{subnet}"


def cup_contents(subnet: Principal) -> str:
    return f"catch_up_package_contents_{subnet}"


def threshold_key(subnet: Principal) -> str:
    return f"crypto_threshold_signing_public_key_{subnet}"


def node_record(node: Principal) -> str:
    return f"node_record_{node}"


def node_operator_record(operator: Principal) -> str:
    return f"node_operator_record_{operator}"


NODE_SIGNING, COMMITTEE_SIGNING, DKG_DEALING = 1, 3, 4
"""Purposes of node keys in `crypto_record_<node>_<purpose>`."""


def node_key(node: Principal, purpose: int) -> str:
    return f"crypto_record_{node}_{purpose}"


def tls_certificate(node: Principal) -> str:
    return f"crypto_tls_cert_{node}"


def replica_version(version: str) -> str:
    return f"replica_version_{version}"


class VersionedRecords:
    """Registry content in memory, at every version held."""

    def __init__(self) -> None:
        self.version = RegistryVersion(0)
        self._records: dict[str, tuple[list[int], list[bytes | None]]] = {}
        self.deltas: list[Delta] = []

    def apply(self, delta: Delta) -> None:
        """Raises: Malformed for a gap."""
        if delta.version != self.version + 1:
            raise Malformed(
                f"registry delta {delta.version} does not follow version {self.version}"
            )
        for mutation in delta.mutations:
            versions, values = self._records.setdefault(mutation.key, ([], []))
            versions.append(delta.version)
            values.append(mutation.value)
        self.version = delta.version
        self.deltas.append(delta)

    def get(self, key: str, version: int | None = None) -> bytes | None:
        found = self.get_versioned(key, version)
        return None if found is None else found[0]

    def get_versioned(
        self, key: str, version: int | None = None
    ) -> tuple[bytes, RegistryVersion] | None:
        """Return a value and the version that wrote it, as of a version (default: the latest)."""
        at = self.version if version is None else version
        if at > self.version:
            raise Unavailable(f"registry version {at} is not here yet; {self.version} is")
        versions, values = self._records.get(key, ([], []))
        position = bisect_right(versions, at) - 1
        value = values[position] if position >= 0 else None
        return None if value is None else (value, RegistryVersion(versions[position]))

    def keys(self, prefix: str = "", version: int | None = None) -> list[str]:
        known = list(self._records)  # an orchestrator's other threads may add some meanwhile
        return sorted(k for k in known if k.startswith(prefix) and self.get(k, version) is not None)

    # -- records by meaning

    def need(self, key: str, version: int | None = None) -> bytes:
        value = self.get(key, version)
        if value is None:
            raise NotFound(f"the registry has no {key} at version {version or self.version}")
        return value

    def subnets(self, version: int | None = None) -> list[SubnetId]:
        record = parse(pb.SubnetListRecord, self.need(SUBNET_LIST, version))
        return [SubnetId(Principal(s)) for s in record.subnets]

    def nns(self) -> SubnetId:
        record = parse(pb.SubnetId, self.need(NNS_SUBNET))
        return SubnetId(Principal(record.principal_id.raw))

    def subnet_of(self, node: NodeId, version: int | None = None) -> SubnetId | None:
        for subnet in self.subnets(version):
            record = parse(pb.SubnetRecord, self.need(subnet_record(subnet), version))
            if bytes(node) in record.membership:
                return subnet
        return None

    def subnet_public_key(self, subnet: SubnetId, version: int | None = None) -> bytes:
        """Return the subnet's 96-byte threshold key."""
        return parse(pb.PublicKey, self.need(threshold_key(subnet), version)).key_value

    def view(self, subnet: SubnetId, version: RegistryVersion) -> SubnetView:
        """Raises: Unavailable, NotFound."""
        record = parse(pb.SubnetRecord, self.need(subnet_record(subnet), version))
        members = tuple(sorted(NodeId(Principal(m)) for m in record.membership))
        keys = {m: self.node_keys(m, version) for m in members}
        return SubnetView(
            version=version,
            members=members,
            keys=keys,
            replica_version=record.replica_version_id,
            interval_length=record.dkg_interval_length,
            unit_delay_ns=record.unit_delay_millis * MS,
            notary_delay_ns=record.initial_notary_delay_millis * MS,
            backoff_ns=record.certification_backoff_millis * MS,
            ingress_per_block_max=record.max_ingress_messages_per_block,
            is_halted=record.is_halted,
            halt_at_cup_height=record.halt_at_cup_height,
            stall_limit_ns=record.stall_limit_millis * MS,
            recalled_versions=tuple(record.recalled_replica_version_ids),
            trusted_bundles=tuple(record.trusted_bundle_hashes),
            is_system=record.subnet_type == 2,
            dealings_per_block_max=record.dkg_dealings_per_block or DEALINGS_PER_BLOCK,
            cup_version=self.epoch(subnet, version),
        )

    def epoch(self, subnet: SubnetId, version: int | None = None) -> RegistryVersion:
        """Return the version that opened the subnet's epoch: its CUP's, or an NNS recovery's."""
        found = [self.get_versioned(cup_contents(subnet), version)]
        if self.get(NNS_SUBNET) is not None and subnet == self.nns():
            found.append(self.get_versioned(RECOVERY_RECORD, version))
        return max([f[1] for f in found if f is not None], default=RegistryVersion(0))

    def node_keys(self, node: NodeId, version: int | None = None) -> NodeKeys:
        """Raises: Unavailable, NotFound."""
        signing, committee, dealing = [
            parse(pb.PublicKey, self.need(node_key(node, purpose), version)).key_value
            for purpose in (NODE_SIGNING, COMMITTEE_SIGNING, DKG_DEALING)
        ]
        return NodeKeys(signing, committee, dealing)

    def http_url(self, node: Principal) -> str:
        """Return where a node's replica serves clients. Raises: NotFound."""
        return _url(parse(pb.NodeRecord, self.need(node_record(node))).http)

    def orchestrator_url(self, node: Principal) -> str:
        """Return where a node's orchestrator answers. Raises: NotFound."""
        return _url(parse(pb.NodeRecord, self.need(node_record(node))).orchestrator)

    def registry_cup(
        self, subnet: SubnetId, version: int | None = None
    ) -> cup.CatchUpPackage | None:
        """Rebuild the unsigned CUP in force at a version (default: the latest)."""
        found = self.get_versioned(cup_contents(subnet), version)
        if found is None:
            return None
        contents, at = found
        return cup.from_registry(subnet, contents, at, self.need(subnet_record(subnet), at))


def _url(endpoint: pb.ConnectionEndpoint) -> str:
    return f"http://{endpoint.ip_addr}:{endpoint.port}"
