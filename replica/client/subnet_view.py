"""A subnet's record as the node side uses it, and the port through which the registry is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from replica.protocol.crypto.scheme import faults_max, threshold_high
from replica.protocol.ids import NodeId, RegistryVersion

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """Public keys of a member."""

    signing: bytes
    """Ed25519, 32 bytes."""
    committee: bytes
    """Multi-signature key, 96 bytes."""
    dealing: bytes
    """Key under which shares are sealed for this node, 48 bytes."""


@dataclass(frozen=True)
class SubnetView:
    """One subnet at one registry version."""

    version: RegistryVersion
    members: tuple[NodeId, ...]
    """In ascending order."""
    keys: dict[NodeId, NodeKeys] = field(hash=False)
    replica_version: str
    interval_length: int
    unit_delay_ns: int
    notary_delay_ns: int
    backoff_ns: int
    """Notary delay added for each height that certification lags behind finalization."""
    ingress_per_block_max: int
    is_halted: bool
    halt_at_cup_height: bool
    stall_limit_ns: int
    recalled_versions: tuple[str, ...] = ()
    trusted_bundles: tuple[bytes, ...] = ()
    is_system: bool = False
    dealings_per_block_max: int = 4
    cup_version: RegistryVersion = RegistryVersion(0)
    """Version that wrote the registry's CUP of this subnet: the epoch that it opens."""

    @cached_property
    def quorum(self) -> int:
        """n - f."""
        return threshold_high(len(self.members))

    @cached_property
    def faults_max(self) -> int:
        return faults_max(len(self.members))


class RegistryView(Protocol):
    """What consensus and execution read of the registry, for their own subnet."""

    @property
    def latest_version(self) -> RegistryVersion: ...

    def subnet(self, version: RegistryVersion) -> SubnetView:
        """Raises: Unavailable when this version is not here yet."""
        ...

    def node_keys(self, node: NodeId, version: RegistryVersion) -> NodeKeys:
        """Return the keys of any node, also one that is not a member.

        Raises: Unavailable, NotFound.
        """
        ...

    def stable_version(self, now_ns: int) -> RegistryVersion:
        """Return the newest version that arrived long enough ago to be at every node."""
        ...
