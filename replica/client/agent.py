"""The agent: talks to a subnet over the IC interface and believes nothing that isn't certified.

Used by the command line, the drills and the orchestrators alike. A call is resent with the same
envelope until it is answered or certified time has passed its expiry: only then is it known that
it was not and will not be executed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2

from replica.client import replaying
from replica.protocol import cbor, certificate, envelope
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Malformed, NotVerified, Rejected, ReprisError, Unavailable
from replica.protocol.hashing import leb128_decode
from replica.protocol.ids import ANONYMOUS, CanisterId, Principal, SubnetId
from replica.protocol.nns_recovery import Order

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE_MAX = 16
EXPIRY_NS = 240 * 1_000_000_000
HEADERS = {"content-type": "application/cbor"}


class CallRejected(Rejected):
    """The canister or the subnet answered, certified, that it did not do it."""

    code = "call-rejected"

    def __init__(self, reject_code: int, message: str, error_code: str = "") -> None:
        super().__init__(message)
        self.reject_code, self.error_code = reject_code, error_code


class Task(Protocol):
    """Something that runs beside."""

    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


@dataclass
class World:
    """What surrounds whoever acts: time, sockets, entropy, threads, processes.

    Simulations have another one.
    """

    now_ns: Callable[[], int] = time.time_ns
    monotonic_s: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    entropy: Callable[[int], bytes] = secrets.token_bytes

    def client(self, timeout_s: float) -> httpx2.Client:
        return httpx2.Client(timeout=timeout_s, trust_env=False)

    def replay(
        self, release: Path, node: Path, height: int, out: Path, order: Order | None = None
    ) -> dict[str, Any]:
        """Replay a node's blocks in a process of its own; see `replica.replay.replay`."""
        return replaying.run(release, node, height, out, order)

    def spawn(self, work: Callable[[], None]) -> Task:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def lock(self) -> AbstractContextManager[object]:
        """Return what one of them holds at a time, and the others wait for."""
        return threading.Lock()

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Do something with each of them at once; return the results in their order."""
        with ThreadPoolExecutor(max_workers=AT_ONCE_MAX) as pool:
            return list(pool.map(work, items))


@dataclass
class Agent:
    """One identity's access to the nodes of one subnet."""

    urls: Sequence[str]
    root_key: bytes
    key: Ed25519Key | None = None
    timeout_s: float = 12.0
    world: World = field(default_factory=World)
    _client: httpx2.Client | None = None
    _position: int = field(default=0)

    @property
    def client(self) -> httpx2.Client:
        if self._client is None:
            self._client = self.world.client(self.timeout_s)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def sender(self) -> Principal:
        return self.key.principal if self.key is not None else ANONYMOUS

    def next_node(self) -> None:
        """Ask another node from now on."""
        self._position += 1

    def _post(self, path: str, body: bytes, attempts: int = 0) -> httpx2.Response:
        """Post to one node after another until one answers. Raises: Unavailable, Rejected."""
        last = "no node was asked"
        for _ in range(attempts or len(self.urls)):
            url = self.urls[self._position % len(self.urls)]
            try:
                response = self.client.post(url + path, content=body, headers=HEADERS)
            except httpx2.HTTPError as error:
                last = f"{url}: {error or type(error).__name__}"
                self._position += 1
                continue
            if response.status_code < 400:
                return response
            last = f"{url}: {response.status_code} {response.text[:300]}"
            if response.status_code < 500 and response.status_code != 429:
                raise Rejected(response.text[:600])
            self._position += 1
        raise Unavailable(last)

    def _content(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {
            "request_type": kind,
            "sender": bytes(self.sender),
            "ingress_expiry": self.world.now_ns() + EXPIRY_NS,
            **fields,
        }

    # -- queries and reads

    def query(self, canister: CanisterId, method: str, arg: bytes) -> bytes:
        """Ask one node; its answer is not certified. Raises: CallRejected, Unavailable."""
        content = self._content("query", canister_id=bytes(canister), method_name=method, arg=arg)
        _, body = envelope.sign_request(content, self.key)
        response = self._post(f"/api/v3/canister/{canister}/query", body)
        plain = cbor.loads(response.content)
        if plain["status"] == "replied":
            return bytes(plain["reply"]["arg"])
        raise CallRejected(
            plain["reject_code"], plain["reject_message"], plain.get("error_code", "")
        )

    def read_state(
        self,
        paths: Sequence[Sequence[bytes]],
        canister: Principal | None = None,
        subnet: SubnetId | None = None,
    ) -> certificate.Certificate:
        """Read certified paths. Raises: NotVerified when the certificate does not hold."""
        content = self._content("read_state", paths=[list(p) for p in paths])
        _, body = envelope.sign_request(content, self.key)
        where = f"subnet/{subnet}" if subnet is not None else f"canister/{canister}"
        response = self._post(f"/api/v3/{where}/read_state", body)
        raw = cbor.loads(response.content)["certificate"]
        return certificate.verify(raw, self.root_key, canister)

    # -- calls

    def call(
        self,
        canister: CanisterId,
        method: str,
        arg: bytes,
        effective: Principal | None = None,
        wait_s: float = 60.0,
        on_retry: Callable[[str], None] = lambda _: None,
    ) -> bytes:
        """Call, resending until a certified answer is there.

        Raises: CallRejected; Unavailable when no certified answer came within `wait_s`.
        """
        content = self._content(
            "call",
            canister_id=bytes(canister),
            method_name=method,
            arg=arg,
            nonce=self.world.entropy(16),
        )
        request_id, body = envelope.sign_request(content, self.key)
        target = effective if effective is not None else canister
        end = self.world.monotonic_s() + wait_s
        while True:
            try:
                answer = self._try_call(target, request_id, body)
                if answer is not None:
                    return answer
            except (Unavailable, NotVerified) as error:
                on_retry(str(error))
            self.next_node()  # this one may be cut off, or stuck
            if self.world.monotonic_s() > end:
                raise Unavailable(
                    f"no certified answer within {wait_s:.0f} s; the request may still be executed "
                    "until it expires"
                )
            self.world.pause(0.2)

    def _try_call(self, target: Principal, request_id: bytes, body: bytes) -> bytes | None:
        response = self._post(f"/api/v4/canister/{target}/call", body)
        if response.status_code == 200:
            plain = cbor.loads(response.content)
            if "certificate" in plain:
                return self._outcome(plain["certificate"], target, request_id)
        return self._poll(target, request_id)

    def _poll(self, target: Principal, request_id: bytes) -> bytes | None:
        content = self._content("read_state", paths=[[b"request_status", request_id]])
        _, body = envelope.sign_request(content, self.key)
        response = self._post(f"/api/v3/canister/{target}/read_state", body)
        return self._outcome(cbor.loads(response.content)["certificate"], target, request_id)

    def _outcome(self, raw: bytes, target: Principal, request_id: bytes) -> bytes | None:
        """Return the certified reply; None while there is none. Raises: CallRejected."""
        canister = None if target == Principal(b"") else target
        verified = certificate.verify(raw, self.root_key, canister)
        path = (b"request_status", request_id)
        status = verified.leaf(*path, b"status")
        if status == b"replied":
            reply = verified.leaf(*path, b"reply")
            if reply is None:
                raise NotVerified("the certificate shows no reply")
            return reply
        if status == b"rejected":
            code = leb128_decode(verified.leaf(*path, b"reject_code") or b"\0")
            text = (verified.leaf(*path, b"reject_message") or b"").decode("utf-8", "replace")
            error_code = (verified.leaf(*path, b"error_code") or b"").decode()
            raise CallRejected(code, text, error_code)
        return None

    # -- node endpoints outside the interface

    def node_status(self, url: str) -> dict[str, Any]:
        """Read one node's /_/status. Raises: Unavailable."""
        return dict(self._get(url, "/_/status").json())

    def orchestrator_status(self, url: str) -> dict[str, Any]:
        """Read what one node's orchestrator says of itself. Raises: Unavailable."""
        return dict(self._get(url, "/status").json())

    def get_bytes(self, url: str, path: str) -> bytes:
        return self._get(url, path).content

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Do something with each of them at once; return the results in their order."""
        return self.world.each(work, items)

    def _get(self, url: str, path: str) -> httpx2.Response:
        try:
            response = self.client.get(url + path)
            response.raise_for_status()
        except httpx2.HTTPError as error:
            raise Unavailable(f"{url}{path}: {error or type(error).__name__}") from error
        return response


__all__ = ["Agent", "CallRejected", "Malformed", "ReprisError"]
