"""The node's signed word about a halted subnet: replay to R, then attest and promise.

R is asked for by whoever plans the recovery (the highest proven of all nodes' evidence); this node
checks by replay that it holds that state before it signs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.replays import Promises, Replays
from replica.client.agent import Agent
from replica.protocol import canonical
from replica.protocol.attestation import Attestation
from replica.protocol.errors import Conflict, Rejected
from replica.protocol.ids import Epoch, Height, RegistryVersion, SubnetId
from replica.runtime.settings import NodeSettings


class Attestor:
    def __init__(
        self, settings: NodeSettings, agent: Agent, replays: Replays, promises: Promises
    ) -> None:
        self.settings, self.agent = settings, agent
        self.replays, self.promises = replays, promises
        self._lock = agent.world.lock()
        self.key = settings.secrets().signing
        self._made: dict[tuple[int, int], bytes] = {}

    def attest(self, subnet: SubnetId, height: int, release: Path) -> bytes:
        """Return a signed attestation of the state at `height` (canonical bytes).

        One at a time: who asks again while it is made waits for it. Raises: Conflict when the
        replica is not halted, Unavailable, Rejected.
        """
        with self._lock:
            return self._attest(subnet, height, release)

    def _attest(self, subnet: SubnetId, height: int, release: Path) -> bytes:
        url = f"http://127.0.0.1:{self.settings.http_port}"
        status = self.agent.node_status(url)
        if status["status"] != "halted":
            raise Conflict(f"the replica is {status['status']}; only a halted one is attested")
        known = self._made.get((status["epoch"], height))
        if known is not None:
            return known
        if not status["cup_height"] <= height <= status["finalized_height"]:
            raise Rejected(
                f"height {height} is not between the CUP ({status['cup_height']}) and the highest "
                f"finalized block ({status['finalized_height']}) of this node"
            )
        with self.replays.replayed(release, height) as replayed:
            self.replays.keep(Path(replayed["checkpoint"]))
        # The promise is durable before the word is given.
        self.promises.give(status["epoch"], status["registry_version"])
        unsigned = Attestation(
            subnet=subnet,
            epoch=Epoch(status["epoch"]),
            node=self.settings.node,
            registry_version=RegistryVersion(status["registry_version"]),
            cup_height=Height(status["cup_height"]),
            finalized_height=Height(status["finalized_height"]),
            certified_height=Height(status["certified_height"]),
            certified_root=bytes.fromhex(replayed["certified_root"]),
            height=Height(height),
            state_hash=bytes.fromhex(replayed["state_hash"]),
        )
        signed = canonical.encode(replace(unsigned, signature=self.key.sign(unsigned.message)))
        self._made[(status["epoch"], height)] = signed
        return signed
