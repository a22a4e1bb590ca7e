"""Connections between the replicas of a subnet: TLS 1.3, certificates pinned by the registry.

Every node dials every peer and pushes over the connection it dialled: first all it currently
offers, then what is new. A peer that reconnects is offered everything again, so nothing is lost
for good; what a peer sent us is not sent back to it. Queues are bounded: a peer that falls too
far behind is disconnected and starts over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from replica.p2p import gossip, wire
from replica.p2p.gossip import Evidence
from replica.protocol import artifacts, canonical
from replica.protocol.artifacts import Artifact
from replica.protocol.errors import ReprisError
from replica.protocol.ids import NodeId
from replica.runtime.settings import Secrets

BURST_BYTES = 1 << 16
"""So much of what waits is encrypted and sent in one go."""
QUEUE_BYTES_MAX = 32 << 20
KNOWN_MAX = 1_024
"""Artifacts remembered for each peer: of some fifty rounds; older ones are not sent again."""
ENCODED_MAX = 512
"""Artifacts whose bytes are kept, for the next peer that is to be sent them."""
REDIAL_S_MIN, REDIAL_S_MAX = 0.1, 2.0
RPC_TIMEOUT_S = 10.0
OUTSTANDING_MAX = 16


@dataclass(frozen=True)
class Peer:
    node: NodeId
    host: str
    port: int
    certificate_der: bytes


@dataclass
class Handlers:
    """What the transport calls; all run on the event loop."""

    artifact: Callable[[NodeId, Artifact], None]
    is_late: Callable[[type, int], bool]
    """(kind, height): whether an artifact need not even be decoded."""
    ingress: Callable[[bytes], None]
    advert: Callable[[NodeId, wire.Advert], None]
    offered: Callable[[], list[Artifact]]
    serve_state: Callable[[wire.StateRequest], bytes | None]
    invalid: Callable[[NodeId, str], None]


@dataclass
class _Link:
    """Our dialled connection to one peer."""

    peer: Peer
    queue: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    queued_bytes: int = 0
    connected: bool = False
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    pending: dict[int, asyncio.Future[bytes | None]] = field(default_factory=dict)
    drop: asyncio.Event = field(default_factory=asyncio.Event)
    evidence: Evidence = field(default_factory=Evidence)
    """What the peer has shown to hold, since it connected."""


class Transport:
    def __init__(
        self, node: NodeId, port: int, secrets: Secrets, peers: list[Peer], handlers: Handlers
    ) -> None:
        self.node, self.port, self.secrets, self.handlers = node, port, secrets, handlers
        self._links: dict[NodeId, _Link] = {}
        self._by_certificate: dict[bytes, NodeId] = {}
        self._number = 0
        self._server_context = self._context(server=True)
        self._dialling: dict[NodeId, asyncio.Task[None]] = {}
        self._update_links(peers)
        self._encoded: OrderedDict[Artifact, tuple[bytes, bytes]] = OrderedDict()

    # -- life

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._server_context
        )
        self._dial_all()

    async def stop(self) -> None:
        tasks = list(self._dialling.values())
        for task in tasks:
            task.cancel()
        self._server.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def update(self, peers: list[Peer]) -> None:
        """Connect to who is new and drop who is a peer no more."""
        self._update_links(peers)
        self._dial_all()

    def _update_links(self, peers: list[Peer]) -> None:
        wanted = {p.node: p for p in peers if p.node != self.node}
        for node in [n for n, link in self._links.items() if wanted.get(n) != link.peer]:
            del self._links[node]
            task = self._dialling.pop(node, None)
            if task is not None:
                task.cancel()
        for node, peer in wanted.items():
            if node not in self._links:
                self._links[node] = _Link(peer)
                # Only ever added: who is a peer no more is turned away by its missing link.
                pem = x509.load_der_x509_certificate(peer.certificate_der).public_bytes(
                    Encoding.PEM
                )
                self._server_context.load_verify_locations(cadata=pem.decode())
                self._by_certificate[sha256(peer.certificate_der).digest()] = node

    def _dial_all(self) -> None:
        for node, link in self._links.items():
            if node not in self._dialling:
                self._dialling[node] = asyncio.create_task(self._keep_dialling(link))

    def _context(self, *, server: bool) -> ssl.SSLContext:
        purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        with tempfile.NamedTemporaryFile() as file:  # the library reads keys from files only
            file.write(self.secrets.tls_key_pem + self.secrets.tls_certificate_pem)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    @property
    def connected(self) -> list[NodeId]:
        return [n for n, link in self._links.items() if link.connected]

    # -- sending

    def send(self, artifact: Artifact) -> None:
        """Offer an artifact to all peers that don't have it, some kinds a little later."""
        if gossip.is_lazy(artifact, self.node):
            loop = asyncio.get_running_loop()
            loop.call_later(gossip.LAZY_NS / 1e9, self._send_now, artifact)
        else:
            self._send_now(artifact)

    def _send_now(self, artifact: Artifact) -> None:
        id_, raw = self._encode(artifact)
        for link in self._links.values():
            if link.connected and id_ not in link.known and not link.evidence.covers(artifact):
                self._remember(link, id_)
                self._push(link, raw)

    def send_ingress(self, raw: bytes) -> None:
        for link in self._links.values():
            if link.connected:
                self._push(link, wire.frame(wire.INGRESS, raw))

    def advertise(self, advert: wire.Advert) -> None:
        for link in self._links.values():
            if link.connected:
                self._push(link, wire.record_frame(wire.ADVERT, advert))

    def refresh(self) -> None:
        """Ask all peers to offer everything again."""
        for link in self._links.values():
            link.known.clear()
            if link.connected:
                self._push(link, wire.frame(wire.REFRESH, b""))

    async def request_state(
        self, node: NodeId, height: int, root: bytes, kind: str, index: int
    ) -> bytes | None:
        """Ask one peer for a part of a checkpoint; None: it has none, or didn't answer."""
        link = self._links[node]
        if not link.connected or len(link.pending) >= OUTSTANDING_MAX:
            return None
        self._number += 1
        number = self._number
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        link.pending[number] = future
        request = wire.StateRequest(number, height, root, kind, index)
        self._push(link, wire.record_frame(wire.REQUEST, request))
        try:
            return await asyncio.wait_for(future, RPC_TIMEOUT_S)
        except TimeoutError:
            return None
        finally:
            link.pending.pop(number, None)

    def _encode(self, artifact: Artifact) -> tuple[bytes, bytes]:
        found = self._encoded.get(artifact)
        if found is None:
            body = artifacts.encode(artifact)
            found = self._encoded[artifact] = (
                sha256(body).digest(),
                wire.frame(wire.ARTIFACT, body),
            )
            if len(self._encoded) > ENCODED_MAX:
                self._encoded.popitem(last=False)
        return found

    def _remember(self, link: _Link, id_: bytes) -> None:
        link.known[id_] = None
        if len(link.known) > KNOWN_MAX:
            link.known.popitem(last=False)

    def _push(self, link: _Link, raw: bytes) -> None:
        link.queued_bytes += len(raw)
        if link.queued_bytes > QUEUE_BYTES_MAX:
            link.drop.set()
            return
        link.queue.put_nowait(raw)

    # -- dialling

    async def _keep_dialling(self, link: _Link) -> None:
        pause = REDIAL_S_MIN
        context = self._context(server=False)
        certificate = x509.load_der_x509_certificate(link.peer.certificate_der)
        context.load_verify_locations(cadata=certificate.public_bytes(Encoding.PEM).decode())
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    link.peer.host, link.peer.port, ssl=context
                )
                if self._node_of(writer) == link.peer.node:
                    pause = REDIAL_S_MIN
                    await self._serve_link(link, reader, writer)
            except (OSError, ssl.SSLError, asyncio.IncompleteReadError, ReprisError):
                pass  # the peer is down or restarting: that is what redialling is for
            link.connected = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, REDIAL_S_MAX)

    async def _serve_link(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        link.queue, link.queued_bytes = asyncio.Queue(), 0
        link.known.clear()
        link.evidence = Evidence()
        link.drop.clear()
        link.connected = True
        for artifact in self.handlers.offered():
            id_, raw = self._encode(artifact)
            self._remember(link, id_)
            self._push(link, raw)
        writing = asyncio.create_task(self._write_queue(link, writer))
        reading = asyncio.create_task(self._read_responses(link, reader))
        dropping = asyncio.create_task(link.drop.wait())
        try:
            await asyncio.wait({writing, reading, dropping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.connected = False
            for task in (writing, reading, dropping):
                task.cancel()
            await asyncio.gather(writing, reading, dropping, return_exceptions=True)
            for future in link.pending.values():
                if not future.done():
                    future.set_result(None)
            writer.close()

    async def _write_queue(self, link: _Link, writer: asyncio.StreamWriter) -> None:
        while True:
            burst = [await link.queue.get()]
            size = len(burst[0])
            while size < BURST_BYTES and not link.queue.empty():
                burst.append(link.queue.get_nowait())
                size += len(burst[-1])
            link.queued_bytes -= size
            writer.write(b"".join(burst))
            if link.queue.empty():
                await writer.drain()

    async def _read_responses(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while True:
            kind, body = await wire.read_frame(reader)
            if kind == wire.RESPONSE:
                response = canonical.decode(wire.StateResponse, body)
                future = link.pending.get(response.number)
                if future is not None and not future.done():
                    future.set_result(response.data)

    # -- being dialled

    def _node_of(self, writer: asyncio.StreamWriter) -> NodeId | None:
        tls = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        return self._by_certificate.get(sha256(der).digest()) if der else None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = self._node_of(writer)
        if node is None or node not in self._links:
            writer.close()
            return
        link = self._links[node]
        try:
            while True:
                kind, body = await wire.read_frame(reader)
                self._handle(link, kind, body, writer)
                if kind == wire.REQUEST:
                    await writer.drain()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the peer went away; it will dial again
        except ReprisError as error:
            self.handlers.invalid(node, str(error))
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def _handle(self, link: _Link, kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == wire.ARTIFACT:
            self._remember(link, sha256(body).digest())
            peeked = artifacts.peek(body)
            if peeked is None or not self.handlers.is_late(*peeked):
                artifact = artifacts.decode(body)
                link.evidence.note(artifact)
                self.handlers.artifact(link.peer.node, artifact)
        elif kind == wire.INGRESS:
            self.handlers.ingress(body)
        elif kind == wire.ADVERT:
            self.handlers.advert(link.peer.node, canonical.decode(wire.Advert, body))
        elif kind == wire.REFRESH:
            link.evidence = Evidence()
            for artifact in self.handlers.offered():
                id_, raw = self._encode(artifact)
                self._remember(link, id_)
                self._push(link, raw)
        elif kind == wire.REQUEST:
            request = canonical.decode(wire.StateRequest, body)
            response = wire.StateResponse(request.number, self.handlers.serve_state(request))
            writer.write(wire.record_frame(wire.RESPONSE, response))
