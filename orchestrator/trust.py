"""The root key that this node trusts, and what came of it: `root_key.der`, `root_keys/`.

Each node that follows the successor of a lost root key keeps the recovery that proves it, and hands
it to whoever still trusts the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from replica.client import succession
from replica.client.agent import Agent
from replica.protocol.errors import NotFound
from replica.protocol.hashing import sha256
from replica.protocol.nns_recovery import Bundle
from replica.runtime.durable import make_folder, write_durably
from replica.runtime.settings import NodeSettings


class Trust:
    def __init__(
        self,
        settings: NodeSettings,
        agent: Agent,
        log: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """`agent`: of the NNS. `changed`: called once another root key is trusted, which settings
        show that are loaded anew."""
        self.settings, self.agent, self.log, self.changed = settings, agent, log, changed
        self.folder = settings.folder / "root_keys"

    def successor_of(self, key_hash: bytes) -> bytes:
        """Return the recovery that put another key in the place of one, by the SHA-256 of its DER.

        Raises: NotFound.
        """
        path = self.folder / f"after-{key_hash.hex()}.bundle"
        if len(key_hash) != 32 or not path.exists():
            raise NotFound("no other root key is known here to have followed that one")
        return path.read_bytes()

    def follow(self, bundle: Bundle) -> None:
        """Trust the key that a recovery brings. Raises: NotVerified and more: it is no successor.

        First the proof, then the key: who trusts the new one can say why.
        """
        key = succession.successor(bundle, self.settings.root_key)
        make_folder(self.folder)
        name = f"after-{sha256(self.settings.root_key).hex()}.bundle"
        write_durably(self.folder / name, replace(bundle, package=b"").encode())
        write_durably(self.settings.root_key_path, key)
        self.log("trusts a new root key, which the operators of the former NNS have signed")
        self.changed()

    def look_for_successor(self, urls: Iterable[str]) -> None:
        """Ask other orchestrators whether the key has a successor, and follow it."""
        try:
            bundle, _ = succession.find(self.agent, urls, self.settings.root_key)
        except NotFound:
            return  # the NNS may just be down
        self.follow(bundle)
