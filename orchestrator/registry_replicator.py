"""Keeps the local registry store up to date with deltas certified by the NNS."""

from __future__ import annotations

import httpx2

from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol import registry_transport
from replica.protocol.errors import Conflict, ReprisError
from replica.protocol.ids import REGISTRY
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import serialize


class RegistryReplicator:
    def __init__(self, records: LocalRegistry, agent: Agent, root_key: bytes) -> None:
        self.records, self.agent, self.root_key = records, agent, root_key
        self.certified_time_ns = 0
        self.failures = 0
        self.last_error = ""

    def poll(self) -> bool:
        """Fetch, verify and store what is new; True when anything was."""
        since = self.records.version
        request = serialize(pb.RegistryGetChangesSinceRequest(version=since))
        try:
            raw = self.agent.query(REGISTRY, "get_certified_changes_since", request)
            found = registry_transport.verify_response(raw, since, self.root_key)
        except (ReprisError, httpx2.HTTPError) as error:
            self.failures += 1
            self.last_error = str(error)
            return False
        self.failures, self.last_error = 0, ""
        self.certified_time_ns = max(self.certified_time_ns, found.time_ns)
        for delta in found.deltas:
            if delta.version <= self.records.version:
                held = self.records.deltas[delta.version - 1]
                if held.batch != delta.batch:
                    raise Conflict(
                        f"two certified contents of registry version {delta.version}: stopping"
                    )
        self.records.append(found.deltas)
        return bool(found.deltas)
