"""The registry as a client sees it: every version fetched with its certificate and verified."""

from __future__ import annotations

from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.protocol import registry_transport
from replica.protocol.ids import REGISTRY
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import serialize


def fetch(agent: Agent, records: VersionedRecords | None = None) -> VersionedRecords:
    """Fetch all versions that `records` (default: empty) lacks.

    Raises: NotVerified, Unavailable.
    """
    records = records if records is not None else VersionedRecords()
    while True:
        request = serialize(pb.RegistryGetChangesSinceRequest(version=records.version))
        raw = agent.query(REGISTRY, "get_certified_changes_since", request)
        found = registry_transport.verify_response(raw, records.version, agent.root_key)
        for delta in found.deltas:
            records.apply(delta)
        if records.version >= found.current_version:
            return records
