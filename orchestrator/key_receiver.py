"""Looks at the shares of keys that the NNS deals to this node, and complains of bad ones."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from replica.client import key_receiver
from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry
from replica.protocol import artifacts
from replica.protocol.crypto.dkg import BlsDkg
from replica.protocol.crypto.scheme import faults_max
from replica.protocol.errors import ReprisError
from replica.runtime.settings import NodeSettings

KNOWN_MAX = 1_000


class KeyReceiver:
    def __init__(
        self,
        settings: NodeSettings,
        records: LocalRegistry,
        agent: Agent,
        log: Callable[[str], None],
    ) -> None:
        self.settings, self.records, self.agent, self.log = settings, records, agent, log
        self._position = 0
        self._said: dict[bytes, bool] = {}
        """Complaints, and whether they were taken."""

    def step(self) -> None:
        """Ask one node of the NNS in turn what it deals to us; complain to all of them."""
        urls = self._nns_urls()
        if not urls:
            return
        self._position += 1
        url = urls[self._position % len(urls)]
        try:
            offers = key_receiver.decode(self.agent.get_bytes(url, "/_/key_generation"))
        except ReprisError:
            return  # down or lying: the next one is asked next time
        if not offers.offers:
            return
        secret = self.settings.secrets().dealing
        for complaint in key_receiver.complaints(BlsDkg(), offers, self.settings.node, secret):
            self._tell(urls, artifacts.encode(complaint), complaint.dealer.short)

    def _tell(self, urls: list[str], raw: bytes, dealer: str) -> None:
        """Complain until more nodes have taken it than may lie; these pass it on to the others."""
        if self._said.get(raw):
            return
        if raw not in self._said:
            self.log(f"complains of the share that {dealer} dealt to this node")
        taken = 0
        for url in urls:
            try:
                self.agent.client.post(url + "/_/complaint", content=raw).raise_for_status()
                taken += 1
            except httpx2.HTTPError as error:
                self.log(f"{url} does not take the complaint: {error}")
        if len(self._said) >= KNOWN_MAX:
            self._said.clear()
        self._said[raw] = taken > faults_max(len(urls))

    def _nns_urls(self) -> list[str]:
        try:
            nns = self.records.nns()
        except ReprisError:
            return []
        members = self.records.view(nns, self.records.version).members
        return [self.records.http_url(member) for member in members]
