"""Connections between replicas, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from nns.genesis import NodeSecrets, _make_node
from replica.p2p import transport as t
from replica.p2p import wire
from replica.p2p.transport import Handlers, Peer, Transport
from replica.protocol import artifacts
from replica.protocol.artifacts import Artifact, NotarizationShare, Run, Tape, TapeShare
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.ids import Epoch, Height, NodeId
from replica.protocol.signed import ITEMS_MAX, Question, Signed
from replica.runtime.settings import Secrets


def tape(height: int) -> Tape:
    return Tape(Epoch(1), Height(height), b"s" * 48)


QUESTION = Question(Epoch(1), Run("v1", Height(0)), Height(7))
"""The peers are in this run."""


def share(node: NodeId, height: int) -> NotarizationShare:
    return NotarizationShare(Epoch(1), Height(height), bytes(32), node, b"s" * 48)


class Node:
    """A transport, and what arrived there."""

    def __init__(self, secrets: NodeSecrets, held: list[Artifact]) -> None:
        self.secrets, self.held, self.port = secrets, held, free_port()
        self.got: list[tuple[NodeId, Artifact]] = []
        self.lines: list[str] = []
        self.connected: list[NodeId] = []
        self.signed = Signed()
        self.answers: list[tuple[NodeId, Signed]] = []
        self.useful = True
        self.link: Transport

    @property
    def peer(self) -> Peer:
        s = self.secrets
        return Peer(s.node, "127.0.0.1", self.port, s.tls_certificate_der)

    def _artifact(self, node: NodeId, artifact: Artifact) -> bool:
        self.got.append((node, artifact))
        return self.useful

    def build(self, peers: list[Peer]) -> None:
        s = self.secrets
        handlers = Handlers(
            artifact=self._artifact,
            is_worth_decoding=lambda _kind, height, _node: height < 10**6,
            ingress=lambda _node, _raw: True,
            advert=lambda _node, _advert: None,
            offered=lambda: list(self.held),
            answer=lambda ask: [a for a in self.held if ask.first <= a.height <= ask.last],
            serve_state=lambda _: None,
            connected=self.connected.append,
            signed_by=lambda _node, question: self.signed if question == QUESTION else None,
            signed_answer=lambda node, answer: self.answers.append((node, answer)),
            log=self.lines.append,
        )
        keys = Secrets(
            Ed25519Key(s.signing_seed),
            s.committee,
            {},
            s.dealing,
            s.tls_key_pem.encode(),
            s.tls_certificate_pem.encode(),
        )
        self.link = Transport(s.node, self.port, keys, peers, handlers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_three(test: Callable[[Node, Node, Node], Coroutine[Any, Any, None]]) -> None:
    """Run a test on three nodes that are connected."""

    async def run() -> None:
        nodes = [Node(_make_node(f"n{i}"), [tape(100 * i + 1)]) for i in range(3)]
        for node in nodes:
            node.build([n.peer for n in nodes])
        for node in nodes:
            await node.link.start()
        try:
            await until(lambda: all(len(n.got) == 2 for n in nodes))
            await test(*nodes)
        finally:
            for node in nodes:
                await node.link.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.01)


def test_what_is_asked_for_is_sent_again() -> None:
    async def test(one: Node, two: Node, _three: Node) -> None:
        one.got.clear()
        one.link.ask(two.secrets.node, wire.Ask((9,), 0, 500))
        await until(lambda: one.got == [(two.secrets.node, tape(101))])
        for _ in range(20):
            one.link.ask(two.secrets.node, wire.Ask((9,), 0, 500))
        await asyncio.sleep(1.0)
        assert len(one.got) <= 4, "who asks in a loop is answered once a second"

    on_three(test)


def test_a_peer_tells_what_it_holds_of_our_signatures_once_a_second() -> None:
    async def test(one: Node, two: Node, three: Node) -> None:
        assert set(one.connected) == {two.secrets.node, three.secrets.node}
        two.signed = Signed(notarization_shares=(share(one.secrets.node, 9),))
        one.link.ask_signed(two.secrets.node, QUESTION)
        await until(lambda: one.answers == [(two.secrets.node, two.signed)])
        one.link.ask_signed(three.secrets.node, replace(QUESTION, epoch=Epoch(2)))
        for _ in range(20):
            one.link.ask_signed(two.secrets.node, QUESTION)
        await asyncio.sleep(1.0)
        assert len(one.answers) <= 2, "only the last question counts, and few are answered"
        assert {n for n, _ in one.answers} == {two.secrets.node}, "another run's is no answer"

    on_three(test)


def test_an_answer_of_more_than_was_asked_for_costs_the_peer_its_connection() -> None:
    async def test(one: Node, two: Node, _three: Node) -> None:
        many = [share(one.secrets.node, h) for h in range(ITEMS_MAX + 1)]
        two.signed = Signed(notarization_shares=tuple(many))
        before = one.connected.count(two.secrets.node)
        one.link.ask_signed(two.secrets.node, QUESTION)
        await until(lambda: one.connected.count(two.secrets.node) > before)
        assert not one.answers
        assert one.link.standings()[two.secrets.node]["faults"] == 1
        two.signed = two.signed.bounded()
        one.link.ask_signed(two.secrets.node, QUESTION)
        await until(lambda: bool(one.answers))
        assert len(one.answers[0][1].notarization_shares) == ITEMS_MAX

    on_three(test)


def test_who_sends_what_is_wrong_is_disconnected_and_named() -> None:
    async def test(one: Node, two: Node, three: Node) -> None:
        bad = two.secrets.node
        for _ in range(60):
            one.link.blame(bad, "Beacon", "wrong signature", 100)
        assert one.link.standings()[bad]["refused_for_s"] > 0.5
        assert one.link.standings()[three.secrets.node]["faults"] == 0
        assert len([x for x in one.lines if "invalid" in x]) == 1, "the log does not grow with it"
        await asyncio.sleep(0.2)
        one.got.clear()
        two.link.send(TapeShare(Epoch(1), Height(7), bad, b"s"))
        three.link.send(TapeShare(Epoch(1), Height(7), three.secrets.node, b"s"))
        await until(lambda: len(one.got) == 1)
        assert one.got[0][0] == three.secrets.node
        await until(lambda: (bad, tape(101)) in one.got), "it comes back, and offers everything"

    on_three(test)


def test_a_flood_that_leads_to_nothing_leaves_time_for_others() -> None:
    """Small and large frames, as fast as they can be sent; the others are heard in time."""

    async def test(one: Node, two: Node, three: Node) -> None:
        one.useful = False
        link = two.link._links[one.secrets.node]
        junk = wire.frame(wire.ARTIFACT, artifacts.encode(tape(10**6 + 1)))
        large = wire.frame(wire.ARTIFACT, artifacts.encode(tape(10**6))[:20] + bytes(1 << 20))
        began = time.monotonic()
        late = 0.0
        while time.monotonic() < began + 4:
            while link.queued_bytes < t.QUEUE_BYTES_MAX // 2:
                link.queued_bytes += len(junk) * 500 + len(large)
                link.queue.put_nowait(junk * 500)
                link.queue.put_nowait(large)
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - before - 0.01)
        standing = one.link.standings()[two.secrets.node]
        assert standing["slowed_frames"] and not standing["disconnections"]
        assert late < 2.0
        one.got.clear()
        three.link.send(TapeShare(Epoch(1), Height(8), three.secrets.node, b"s"))
        await until(lambda: any(n == three.secrets.node for n, _ in one.got), 2.0)

    on_three(test)
