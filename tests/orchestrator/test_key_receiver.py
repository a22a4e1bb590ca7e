"""Complaints of shares that the NNS deals to a node: made until they were taken."""

from __future__ import annotations

from pathlib import Path

import httpx2

from orchestrator.key_receiver import KeyReceiver
from replica.client.agent import Agent, World
from replica.client.local_registry import LocalRegistry
from replica.protocol.ids import NodeId, Principal
from replica.runtime.settings import NodeSettings

URLS = [f"http://node-{i}" for i in range(4)]


class Nodes(World):
    """Four nodes of the NNS, some of which can't be reached or refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.refusing: set[str] = set()
        self.told: list[str] = []

    def client(self, timeout_s: float) -> httpx2.Client:
        def answer(request: httpx2.Request) -> httpx2.Response:
            name = f"http://{request.url.host}"
            if name in self.down:
                raise httpx2.ConnectError("refused")
            self.told.append(name)
            return httpx2.Response(400 if name in self.refusing else 202)

        return httpx2.Client(transport=httpx2.MockTransport(answer))


def test_a_complaint_is_repeated_until_more_than_f_nodes_took_it(tmp_path: Path) -> None:
    nodes, said = Nodes(), list[str]()
    settings = NodeSettings(
        tmp_path, NodeId(Principal(b"\x01")), 1, 2, 3, (), b"", tmp_path / "releases", 1, 1
    )
    records = LocalRegistry(settings.registry_path, writable=True)
    receiver = KeyReceiver(settings, records, Agent([], b"", world=nodes), said.append)
    nodes.down, nodes.refusing = set(URLS[:2]), {URLS[2]}
    receiver._tell(URLS, b"a complaint", "abcde")
    assert nodes.told == URLS[2:], "one took it, and that one may lie"
    nodes.down = {URLS[0]}
    nodes.refusing.clear()
    nodes.told.clear()
    receiver._tell(URLS, b"a complaint", "abcde")
    receiver._tell(URLS, b"a complaint", "abcde")
    assert nodes.told == URLS[1:], "it was taken, and not told again"
    assert [text for text in said if "complains" in text] == [said[0]]
