"""The registry as a client sees it: every version fetched with its certificate and verified."""

from __future__ import annotations

from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.protocol import registry_transport
from replica.protocol.ids import REGISTRY, RegistryVersion
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import serialize
from replica.protocol.registry_transport import CertifiedDeltas


def ask(agent: Agent, since: RegistryVersion, root_key: bytes) -> tuple[CertifiedDeltas, bytes]:
    """Return what followed a version, and the NNS's answer that proves it to whoever is shown it.

    `agent`: of the NNS. `root_key`: DER. An answer may stop short of the newest version, which it
    names. Raises: NotVerified, Unavailable.
    """
    request = serialize(pb.RegistryGetChangesSinceRequest(version=since))
    raw = agent.query(REGISTRY, "get_certified_changes_since", request)
    return registry_transport.verify_response(raw, since, root_key), raw


def fetch(
    agent: Agent, records: VersionedRecords | None = None, answers: list[bytes] | None = None
) -> VersionedRecords:
    """Fetch all versions that `records` (default: empty) lacks, and add the answers to `answers`.

    Raises: NotVerified, Unavailable.
    """
    records = records if records is not None else VersionedRecords()
    while True:
        found, raw = ask(agent, records.version, agent.root_key)
        for delta in found.deltas:
            records.apply(delta)
        if answers is not None:
            answers.append(raw)
        if records.version >= found.current_version:
            return records
