"""Finds catch-up packages: the local file, the registry's, and the newest signed one of peers."""

from __future__ import annotations

from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol import cup
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import ReprisError
from replica.protocol.ids import SubnetId
from replica.runtime import stored_cup
from replica.runtime.settings import NodeSettings


class CupProvider:
    def __init__(self, settings: NodeSettings, records: LocalRegistry, agent: Agent) -> None:
        self.settings, self.records, self.agent = settings, records, agent
        self._position = 0

    def local(self) -> CatchUpPackage | None:
        """Read the local CUP; one that is damaged counts as none."""
        try:
            return stored_cup.read(self.settings.cup_path)
        except (FileNotFoundError, ReprisError):
            return None

    def store(self, package: CatchUpPackage) -> None:
        """Replace the local CUP; the replica, which may be running, does that as well.

        When its write comes last, the CUP is an older one until the next check.
        """
        stored_cup.write(self.settings.cup_path, package, aside=".fetched")

    def registry(self, subnet: SubnetId) -> CatchUpPackage | None:
        return self.records.registry_cup(subnet)

    def peers(self, subnet: SubnetId, *, ask_all: bool) -> CatchUpPackage | None:
        """Ask one peer in turn (all, when nothing is known yet) for a signed CUP."""
        view = self.records.view(subnet, self.records.version)
        members = [m for m in view.members if m != self.settings.node]
        if not members:
            return None
        if not ask_all:
            self._position += 1
            members = [members[self._position % len(members)]]
        key = self.records.subnet_public_key(subnet)
        best: CatchUpPackage | None = None
        for member in members:
            url = self.records.http_url(member)
            try:
                package = cup.decode(self.agent.get_bytes(url, "/_/catch_up_package"))
                if not package.is_signed or package.subnet != subnet:
                    continue
                package.verify(key)
            except ReprisError:
                continue  # down, or lying: the next peer is asked next time
            if best is None or package.height > best.height:
                best = package
        return best
