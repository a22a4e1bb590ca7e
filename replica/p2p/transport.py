"""Connections between the replicas of a subnet: TLS 1.3, certificates pinned by the registry.

Every node dials every peer and pushes over the connection it dialled: first all it currently
offers, then what is new. A peer that reconnects is offered everything again, so nothing is lost
for good; what a peer sent us is not sent back to it. What it asks for it is sent again. Queues
are bounded: a peer that falls too far behind is disconnected and starts over.

Reading is bounded for each peer: by its `standing`, and in what is taken in one turn of the event
loop. A pause leaves bytes in the socket, and so slows the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from replica.p2p import gossip, standing, wire
from replica.p2p.gossip import Evidence
from replica.protocol import artifacts, canonical
from replica.protocol.artifacts import Artifact
from replica.protocol.errors import LimitExceeded, Malformed, ReprisError
from replica.protocol.ids import NodeId
from replica.protocol.signed import Question, Signed
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
INCOMING_MAX = 2
"""Connections of one peer that are read from: its last one may not be known to be gone."""
TURN_FRAMES_MAX, TURN_BYTES_MAX = 32, 256 << 10
"""So much of one peer is taken in before others have their turn."""


@dataclass(frozen=True)
class Peer:
    node: NodeId
    host: str
    port: int
    certificate_der: bytes


@dataclass
class Handlers:
    """What the transport calls; all run on the event loop."""

    artifact: Callable[[NodeId, Artifact], bool]
    """Whether it led to something."""
    is_worth_decoding: Callable[[type, int, NodeId], bool]
    """(kind, height, peer): else an artifact is dropped as it came."""
    ingress: Callable[[NodeId, bytes], bool]
    """Whether it led to something."""
    advert: Callable[[NodeId, wire.Advert], None]
    offered: Callable[[], list[Artifact]]
    answer: Callable[[wire.Ask], list[Artifact]]
    serve_state: Callable[[wire.StateRequest], bytes | None]
    connected: Callable[[NodeId], None]
    """A connection to a peer is there: what is sent to it from now on is on its way."""
    signed_by: Callable[[NodeId, Question], Signed | None]
    """What is held of a peer's signatures; None: it asks about another run."""
    signed_answer: Callable[[NodeId, Signed], None]
    log: Callable[[str], None]
    tag: bytes = bytes(artifacts.RUN_TAG_BYTES)
    """Of the run that the replica is in: see `artifacts.run_tag`."""


@dataclass
class _Link:
    """Our dialled connection to one peer."""

    peer: Peer
    queue: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    queued_bytes: int = 0
    connected: bool = False
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    pending: dict[int, asyncio.Future[bytes | None]] = field(default_factory=dict)
    signed_number: int | None = None
    """Of the question about our signatures that the peer has not answered; see `ask_signed`."""
    drop: asyncio.Event = field(default_factory=asyncio.Event)
    evidence: Evidence = field(default_factory=Evidence)
    """What the peer has shown to hold, since it connected."""
    incoming: list[asyncio.StreamWriter] = field(default_factory=list)
    """What the peer dialled, oldest first."""


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
        self._ledger = standing.Ledger()

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

    def ask(self, node: NodeId, question: wire.Ask) -> None:
        link = self._links.get(node)
        if link is not None and link.connected:
            self._push(link, wire.record_frame(wire.ASK, question))

    def ask_signed(self, node: NodeId, question: Question) -> None:
        """Ask a peer for what it holds of our signatures; only the last answer asked for counts."""
        link = self._links.get(node)
        if link is not None and link.connected:
            self._number += 1
            link.signed_number = self._number
            request = wire.SignedRequest(self._number, question)
            self._push(link, wire.record_frame(wire.SIGNED_REQUEST, request))

    def blame(self, node: NodeId, subject: str, reason: str, size_bytes: int) -> None:
        """Hold something wrong against a peer. `subject`: of a fixed set, for the log."""
        now_s, link = time.monotonic(), self._links.get(node)
        text = f"{node.short} sent something invalid: {subject}: {reason}"
        self._log(node, subject, text, now_s)
        if self._ledger.of(node).fault(size_bytes, now_s) and link is not None:
            self._log(node, "disconnected", f"{node.short} is disconnected and refused", now_s)
            for writer in link.incoming:
                writer.close()

    def standings(self) -> dict[NodeId, dict[str, float | int]]:
        """Return how each peer behaved, for the status."""
        now_s = time.monotonic()
        return {n: self._ledger.of(n).plain(now_s) for n in self._links}

    def _log(self, node: NodeId, subject: str, text: str, now_s: float) -> None:
        line = self._ledger.line(node, subject, text, now_s)
        if line is not None:
            self.handlers.log(line)

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
                wire.frame(wire.ARTIFACT, self.handlers.tag + body),
            )
            if len(self._encoded) > ENCODED_MAX:
                self._encoded.popitem(last=False)
        return found

    def _remember(self, link: _Link, id_: bytes) -> None:
        link.known[id_] = None
        if len(link.known) > KNOWN_MAX:
            link.known.popitem(last=False)

    def _push_all(self, link: _Link, found: list[Artifact]) -> None:
        """Send one peer artifacts, whether it is thought to have them or not."""
        for artifact in found:
            id_, raw = self._encode(artifact)
            self._remember(link, id_)
            self._push(link, raw)

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
                    began_s = time.monotonic()
                    try:
                        await self._serve_link(link, reader, writer)
                    finally:  # who hangs up at once is offered everything less and less often
                        if time.monotonic() - began_s > REDIAL_S_MAX:
                            pause = REDIAL_S_MIN
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
        link.signed_number = None
        link.connected = True
        self._push_all(link, self.handlers.offered())
        self.handlers.connected(link.peer.node)
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
        node = link.peer.node
        while True:
            kind, body = await wire.read_frame(reader)
            try:
                is_awaited = self._take_answer(link, kind, body)
            except ReprisError as error:
                self.blame(node, "answer", str(error), len(body))
                raise
            if not is_awaited:
                now_s = time.monotonic()
                await asyncio.sleep(self._ledger.of(node).nothing(len(body), now_s))

    def _take_answer(self, link: _Link, kind: int, body: bytes) -> bool:
        """Return whether an answer was waited for. Raises: Malformed, LimitExceeded."""
        if kind == wire.RESPONSE:
            return self._take_response(link, canonical.decode(wire.StateResponse, body))
        if kind == wire.SIGNED_RESPONSE:
            return self._take_signed(link, wire.read_signed(body))
        raise Malformed("a peer that was dialled only answers")

    def _take_response(self, link: _Link, response: wire.StateResponse) -> bool:
        future = link.pending.get(response.number)
        if future is None or future.done():
            return False
        future.set_result(response.data)
        return True

    def _take_signed(self, link: _Link, response: wire.SignedResponse) -> bool:
        if response.number != link.signed_number:
            return False
        link.signed_number = None
        if response.answer is not None:
            self.handlers.signed_answer(link.peer.node, response.answer)
        return True

    # -- being dialled

    def _node_of(self, writer: asyncio.StreamWriter) -> NodeId | None:
        tls = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        return self._by_certificate.get(sha256(der).digest()) if der else None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = self._node_of(writer)
        link = self._links.get(node) if node is not None else None
        if node is None or link is None or not self._is_let_in(node, time.monotonic()):
            writer.close()
            return
        link.incoming.append(writer)
        if len(link.incoming) > INCOMING_MAX:
            link.incoming[0].close()
        try:
            await self._read_frames(link, reader, writer)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the peer went away; it will dial again
        except ReprisError as error:
            self.blame(node, "frame", str(error), 0)
        finally:
            link.incoming.remove(writer)
            with contextlib.suppress(OSError):
                writer.close()

    def _is_let_in(self, node: NodeId, now_s: float) -> bool:
        peer = self._ledger.of(node)
        return peer.dial(now_s) and not peer.is_barred(now_s)

    async def _read_frames(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Take in what a peer sends, no faster than its standing allows."""
        frames = size_bytes = 0
        peer = self._ledger.of(link.peer.node)
        while True:
            kind, body = await wire.read_frame(reader)
            if writer.is_closing():
                return  # what is left in the buffer of a peer that was disconnected
            now_s = time.monotonic()
            pause_s = peer.frame(kind, now_s)
            if kind in (wire.ASK, wire.SIGNED_REQUEST) and pause_s:
                is_useful = False  # once a second is answered
            else:
                is_useful = self._handle(link, kind, body, writer)
            if not is_useful:
                pause_s = max(pause_s, peer.nothing(len(body), now_s))
            if kind in (wire.REQUEST, wire.SIGNED_REQUEST):
                await writer.drain()
            frames, size_bytes = frames + 1, size_bytes + len(body)
            if pause_s or frames >= TURN_FRAMES_MAX or size_bytes >= TURN_BYTES_MAX:
                frames = size_bytes = 0
                await asyncio.sleep(pause_s)

    def _handle(self, link: _Link, kind: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Return whether a frame led to something. Raises: Malformed."""
        node = link.peer.node
        if kind == wire.ARTIFACT:
            return self._take_artifact(link, body)
        if kind == wire.INGRESS:
            return self.handlers.ingress(node, body)
        if len(body) > wire.REQUEST_BYTES_MAX:
            raise LimitExceeded(f"a frame of kind {kind} with {len(body)} bytes")
        if kind == wire.ADVERT:
            advert = canonical.decode(wire.Advert, body)
            if len(advert.states) > wire.ADVERTS_MAX:
                raise LimitExceeded(f"an advert of {len(advert.states)} checkpoints")
            self.handlers.advert(node, advert)
        elif kind == wire.ASK:
            question = canonical.decode(wire.Ask, body)
            if link.connected:
                self._push_all(link, self.handlers.answer(question))
        elif kind == wire.REQUEST:
            request = canonical.decode(wire.StateRequest, body)
            response = wire.StateResponse(request.number, self.handlers.serve_state(request))
            writer.write(wire.record_frame(wire.RESPONSE, response))
        elif kind == wire.SIGNED_REQUEST:
            asked = canonical.decode(wire.SignedRequest, body)
            found = wire.SignedResponse(asked.number, self.handlers.signed_by(node, asked.question))
            writer.write(wire.record_frame(wire.SIGNED_RESPONSE, found))
        else:
            raise Malformed("an answer to nothing")
        return True

    def _take_artifact(self, link: _Link, body: bytes) -> bool:
        node, tag = link.peer.node, self.handlers.tag
        is_of_this_run, body = body.startswith(tag), body[len(tag) :]
        peeked = artifacts.peek(body)
        if not is_of_this_run and (peeked is None or not artifacts.is_of_any_run(peeked[0])):
            return False  # not judged: its signatures say nothing here
        self._remember(link, sha256(body).digest())
        if peeked is not None and not self.handlers.is_worth_decoding(*peeked, node):
            return False
        artifact = artifacts.decode(body)
        link.evidence.note(artifact)
        return self.handlers.artifact(node, artifact)
