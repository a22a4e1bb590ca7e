"""The node's signed word about a halted subnet: replay to R, then attest and promise.

R is asked for by whoever plans the recovery (the highest proven of all nodes' evidence); this node
checks by replay that it holds that state before it signs.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from replica.client.agent import Agent
from replica.protocol import canonical
from replica.protocol.attestation import Attestation
from replica.protocol.errors import Conflict, Rejected
from replica.protocol.ids import Epoch, Height, RegistryVersion, SubnetId
from replica.runtime.durable import rename, sync_folder
from replica.runtime.settings import NodeSettings


class Attestor:
    def __init__(self, settings: NodeSettings, agent: Agent) -> None:
        self.settings, self.agent = settings, agent
        self.key = settings.secrets().signing
        self._made: dict[tuple[int, int], bytes] = {}

    def attest(self, subnet: SubnetId, height: int, release: Path) -> bytes:
        """Return a signed attestation of the state at `height` (canonical bytes).

        Raises: Conflict when the replica is not halted, Unavailable, Rejected.
        """
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
        replayed = self.agent.world.replay(
            release, self.settings.folder, height, self.settings.data / "replay"
        )
        keep_checkpoint(self.settings, Path(replayed["checkpoint"]))
        # The promise is durable before the word is given.
        self.settings.promise(status["epoch"], status["registry_version"])
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


def keep_checkpoint(settings: NodeSettings, checkpoint: Path) -> None:
    """Hang a replayed checkpoint beside the replica's own, under its height."""
    target = settings.data / "checkpoints" / checkpoint.name
    if not target.exists():
        aside = target.with_name(f"replayed-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(checkpoint, aside, copy_function=os.link)
        sync_folder(aside)
        rename(aside, target)
    shutil.rmtree(settings.data / "replay", ignore_errors=True)
