"""Keeps the local registry store up to date with deltas certified by the NNS.

A poll asks the NNS from one version before the newest held, so that every answer also shows whether
the NNS still certifies what is held: two certified contents of one version are proof that the root
key was misused, and stop the orchestrator. Answers are kept and handed on to peers: they prove
themselves, so a node cut off from the NNS learns from any other node of its subnet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import httpx2

from replica.client import certified_registry
from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol import registry_transport
from replica.protocol.errors import Conflict, NotFound, ReprisError
from replica.protocol.ids import RegistryVersion
from replica.protocol.registry_transport import CertifiedDeltas

ANSWERS_MAX = 64


class RegistryReplicator:
    def __init__(
        self,
        records: LocalRegistry,
        agent: Agent,
        root_key: bytes,
        peers: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        """`peers`: base URLs of the other orchestrators of this node's subnet."""
        self.records, self.agent, self.root_key, self.peers = records, agent, root_key, peers
        self.certified_time_ns = 0
        self.failures = 0
        self.last_error = ""
        self._answers: deque[tuple[int, int, bytes]] = deque(maxlen=ANSWERS_MAX)

    def poll(self) -> bool:
        """Fetch, verify and store what is new; True when anything was. Raises: Conflict."""
        since = RegistryVersion(max(0, self.records.version - 1))
        try:
            found, raw = certified_registry.ask(self.agent, since, self.root_key)
        except (ReprisError, httpx2.HTTPError) as error:
            self.failures += 1
            self.last_error = str(error)
            return self._poll_peers()
        self.failures, self.last_error = 0, ""
        if self._take(since, found, raw):
            return True
        self.agent.next_node()  # one that is stuck answers as well, always with the same
        return False

    def _poll_peers(self) -> bool:
        """Ask the other orchestrators for certified answers they got."""
        since = self.records.version
        for url in self.peers():
            try:
                raw = self.agent.get_bytes(url, f"/registry_deltas?since={since}")
                found = registry_transport.verify_response(raw, since, self.root_key)
            except ReprisError:
                continue  # down, with nothing newer, or lying: the next one is asked
            if self._take(since, found, raw):
                return True
        return False

    def _take(self, since: RegistryVersion, found: CertifiedDeltas, raw: bytes) -> bool:
        for delta in found.deltas:
            if delta.version <= self.records.version:
                held = self.records.deltas[delta.version - 1]
                if held.batch != delta.batch:
                    raise Conflict(
                        f"the NNS certified two contents of registry version {delta.version}: "
                        "the root key may have been misused; this orchestrator acts no more"
                    )
        self.certified_time_ns = max(self.certified_time_ns, found.time_ns)
        fresh = [d for d in found.deltas if d.version > self.records.version]
        if not fresh:
            return False
        self.records.append(fresh)
        self._answers.append((since, self.records.version, raw))
        return True

    def certified_since(self, since: int) -> bytes:
        """Return a certified answer that carries a reader on from a version. Raises: NotFound."""
        for first, last, raw in self._answers:
            if first <= since < last:
                return raw
        raise NotFound(f"no certified answer here that goes on from version {since}")
