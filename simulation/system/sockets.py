"""HTTP between simulated machines: requests take time, get lost with their servers, are cut off.

Real clients (httpx) with another transport, real applications behind it, no sockets in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx2

from replica import replay as replaying
from replica.client.agent import Task, World
from replica.protocol.errors import MachineFault, Unavailable
from replica.protocol.nns_recovery import Order
from simulation.scheduler import MS, draw
from simulation.system.disk import PowerLost
from simulation.system.fibers import Fibers, Lock

OPERATOR = -1
"""Index of the machine on which people work; nobody cuts it off."""
TIMEOUT_S = 3.0
REPLAY_S = 0.3
ASKED_AGAIN, AGAIN_MS = 0.05, 400
"""How many requests arrive a second time, beside the first, and how long after it."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    media_type: str = "application/octet-stream"


class Server(Protocol):
    """Something that listens on a port."""

    machine: int

    def is_up(self) -> bool: ...

    def is_stuck(self) -> bool:
        """Whether it takes connections and answers nothing."""
        ...

    def answer(self, method: str, path: str, query: str, body: bytes) -> Reply:
        """Runs in the asking fiber, and may wait in it."""
        ...


class Wires:
    """Who listens where, and how long it takes to get there."""

    def __init__(
        self, fibers: Fibers, seed: int, reachable: Callable[[int, int], bool], delay_ms: int
    ) -> None:
        self.fibers, self.seed, self.reachable, self.delay_ms = fibers, seed, reachable, delay_ms
        self.servers: dict[int, Server] = {}
        self.count = self.asked_again = 0
        self.again = ASKED_AGAIN

    def _travel(self, port: int) -> None:
        self.count += 1
        share = draw(self.seed, "http", self.count, port)
        self.fibers.sleep(MS // 2 + int(share * self.delay_ms * MS))

    def exchange(self, source: int, request: httpx2.Request) -> httpx2.Response:
        """Carry a request there and the answer back. Raises: httpx errors, as a socket would."""
        port = request.url.port or 80
        limit = request.extensions.get("timeout", {}).get("read") or TIMEOUT_S
        self._travel(port)
        server = self.servers.get(port)
        if server is None or not server.is_up():
            raise httpx2.ConnectError("[Errno 111] Connection refused")
        if not self.reachable(source, server.machine) or not self.reachable(server.machine, source):
            self.fibers.sleep(int(limit * 1e9))
            raise httpx2.ConnectTimeout("timed out")
        if server.is_stuck():
            self.fibers.sleep(int(limit * 1e9))
            raise httpx2.ReadTimeout("timed out")
        if draw(self.seed, "again", self.count) < self.again:
            self.asked_again += 1
            self.fibers.spawn(partial(self._ask_again, port, server, request))
        reply = self._answer(server, request)
        self._travel(port)
        if reply is None or self.servers.get(port) is not server or not server.is_up():
            raise httpx2.ReadError("[Errno 104] Connection reset by peer")
        if not self.reachable(server.machine, source):
            self.fibers.sleep(int(limit * 1e9))
            raise httpx2.ReadTimeout("timed out")
        headers = {"content-type": reply.media_type}
        return httpx2.Response(reply.status, headers=headers, content=reply.body, request=request)

    def _answer(self, server: Server, request: httpx2.Request) -> Reply | None:
        """Return what the server says; None: its process is gone."""
        path, query = request.url.path, request.url.query.decode()
        try:
            return server.answer(request.method, path, query, request.content)
        except (ConnectionResetError, PowerLost):
            return None

    def _ask_again(self, port: int, server: Server, request: httpx2.Request) -> None:
        """Somebody asks the same, or gave up waiting and asks anew: the answer is of no use."""
        share = draw(self.seed, "asked", port, self.fibers.scheduler.now)
        self.fibers.sleep(int(share * AGAIN_MS * MS))
        if self.servers.get(port) is server and server.is_up() and not server.is_stuck():
            self._answer(server, request)


class Transport(httpx2.BaseTransport):
    def __init__(self, wires: Wires, source: int) -> None:
        self.wires, self.source = wires, source

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        return self.wires.exchange(self.source, request)


class AsyncTransport(httpx2.AsyncBaseTransport):
    """For coroutines that have a fiber of their own: it is the fiber that waits."""

    def __init__(self, wires: Wires, source: int) -> None:
        self.wires, self.source = wires, source

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        return self.wires.exchange(self.source, request)


class Surroundings(World):
    """Time, sockets and entropy of whatever runs on one machine."""

    def __init__(
        self,
        wires: Wires,
        source: int,
        entropy: Callable[[int], bytes],
        spawn: Callable[[Callable[[], None]], Task] | None = None,
    ) -> None:
        self._wires, self._source = wires, source
        fibers = wires.fibers
        self._spawn = spawn if spawn is not None else fibers.spawn
        super().__init__(
            now_ns=lambda: fibers.scheduler.now,
            monotonic_s=lambda: fibers.scheduler.now / 1e9,
            pause=lambda seconds: fibers.sleep(int(seconds * 1e9)),
            entropy=entropy,
        )

    def replay(
        self, release: Path, node: Path, height: int, out: Path, order: Order | None = None
    ) -> dict[str, Any]:
        self.pause(REPLAY_S / 2)
        try:
            result = replaying.replay(node, height, out, order)
        except MachineFault as fault:  # a process of its own: whoever asked goes on
            raise Unavailable(f"replay to {height} failed: {fault}") from fault
        self.pause(REPLAY_S / 2)
        return result

    def client(self, timeout_s: float) -> httpx2.Client:
        return httpx2.Client(transport=Transport(self._wires, self._source), timeout=timeout_s)

    def spawn(self, work: Callable[[], None]) -> Task:
        return self._spawn(work)

    def lock(self) -> Lock:
        return Lock(self._wires.fibers)

    def each(self, work: Callable[[Any], Any], items: Any) -> list[Any]:
        """Do something with each of them at once, a fiber each."""
        results: list[Any] = [None] * len(items)
        errors: list[Exception] = []

        def one(index: int, item: Any) -> None:
            try:
                results[index] = work(item)
            except Exception as error:  # raised again in the fiber that waits
                errors.append(error)

        tasks = [self._spawn(partial(one, i, item)) for i, item in enumerate(items)]
        for task in tasks:
            task.join()
        if errors:
            raise errors[0]
        return results
