"""The IC's HTTP interface of one replica: call, query, read_state, status.

Source: interface specification "HTTPS interface"; reference/interface.md §A1-A4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from replica.execution import round as execution
from replica.execution.state_manager import Certified
from replica.node import Replica
from replica.protocol import cbor, certificate, envelope, hash_tree
from replica.protocol.errors import (
    LimitExceeded,
    Malformed,
    NotAuthorized,
    ReprisError,
    Unavailable,
)
from replica.protocol.hashing import domain
from replica.protocol.ids import MANAGEMENT_CANISTER, Principal

BODY_BYTES_MAX = 5 << 20
COMPLAINT_BYTES_MAX = 4096
SYNC_CALL_WAIT_S = 10.0


def build(replica: Replica, wait_certified: Callable[[], Awaitable[None]]) -> FastAPI:
    """Return the application of a replica.

    `wait_certified` returns once another height was certified.
    """
    app = FastAPI(title="reprise replica", openapi_url=None, docs_url=None, redoc_url=None)
    interface = Interface(replica, wait_certified)
    for version in ("v2", "v3", "v4"):
        canister = f"/api/{version}/canister/{{id}}"
        app.add_route(f"{canister}/call", interface.call(sync=version != "v2"), methods=["POST"])
    for version in ("v2", "v3"):
        canister = f"/api/{version}/canister/{{id}}"
        app.add_route(f"{canister}/query", interface.query, methods=["POST"])
        app.add_route(f"{canister}/read_state", interface.read_state, methods=["POST"])
        app.add_route(
            f"/api/{version}/subnet/{{id}}/read_state", interface.read_state, methods=["POST"]
        )
    app.add_route("/api/v2/status", interface.status, methods=["GET"])
    app.add_route("/_/catch_up_package", interface.catch_up_package, methods=["POST", "GET"])
    app.add_route("/_/status", interface.node_status, methods=["GET"])
    app.add_route("/_/evidence", interface.evidence, methods=["GET"])
    app.add_route("/_/key_generation", interface.key_generation, methods=["GET"])
    app.add_route("/_/complaint", interface.complaint, methods=["POST"])
    app.add_exception_handler(ReprisError, _on_error)
    return app


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ReprisError)
    return Response(str(error), status_code=error.http_status, media_type="text/plain")


def _cbor(value: Any, status_code: int = 200) -> Response:
    body = cbor.dumps(value, tagged=True)
    return Response(body, status_code=status_code, media_type="application/cbor")


async def _body(http: Request, bytes_max: int) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > bytes_max:
            raise LimitExceeded(f"a request body has at most {bytes_max} bytes here")
    return bytes(body)


class Interface:
    def __init__(self, replica: Replica, wait_certified: Callable[[], Awaitable[None]]) -> None:
        self.replica, self._wait_certified = replica, wait_certified

    async def _request(self, http: Request, kind: str) -> envelope.Request:
        body = await _body(http, BODY_BYTES_MAX)
        if kind == "call":
            self.replica.ingress.check_room()  # before the work of checking it
        request = envelope.decode(body, self.replica.clock())
        if request.kind != kind:
            raise Malformed(f"this endpoint takes a {kind}, not a {request.kind}")
        return request

    def _effective(self, http: Request) -> Principal:
        return Principal.from_text(http.path_params["id"])

    def _certified(self) -> Certified:
        found = self.replica.state.certified
        if found is None:
            raise Unavailable("no certified state is here yet; try again in a second")
        return found

    def _served(self) -> Certified:
        """Return the state that is asked. Raises: Unavailable while clients have seen a newer one:
        theirs must not go back."""
        found = self._certified()
        if self.replica.is_behind():
            raise Unavailable(
                f"this replica is behind: its state is of height {found.snapshot.height}, and "
                f"{self.replica.known_certified()} is certified; ask another one, or try again in "
                "a second"
            )
        return found

    def _certificate(self, paths: list[tuple[bytes, ...]]) -> bytes:
        found = self._certified()
        tree = hash_tree.witness(found.tree, [(b"time",), *paths])
        delegation = None
        if self.replica.delegation is not None:
            delegation = certificate.Delegation(self.replica.subnet, self.replica.delegation)
        made = certificate.Certificate(tree, found.certification.signature, delegation)
        return made.encode()

    # -- endpoints

    def call(self, *, sync: bool) -> Any:
        async def endpoint(http: Request) -> Response:
            request = await self._request(http, "call")
            effective = self._effective(http)
            if request.canister_id not in (effective, MANAGEMENT_CANISTER):
                raise Malformed("the effective canister id is not the called one")
            self.replica.submit(request)
            if not sync:
                return Response(status_code=202)
            return await self._wait(request)

        return endpoint

    async def _wait(self, request: envelope.Request) -> Response:
        """Answer with the certificate once the request is done; 202 when it takes longer."""
        path = (b"request_status", request.request_id)
        end = asyncio.get_running_loop().time() + SYNC_CALL_WAIT_S
        while True:
            found = self.replica.state.certified
            if found is not None:
                status = found.snapshot.ingress.get(request.request_id)
                if status is not None and status.status in ("replied", "rejected"):
                    body = self._certificate([path])
                    return _cbor({"status": "replied", "certificate": body})
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                return Response(status_code=202)
            try:
                await asyncio.wait_for(self._wait_certified(), left)
            except TimeoutError:
                return Response(status_code=202)

    async def query(self, http: Request) -> Response:
        request = await self._request(http, "query")
        if request.canister_id != self._effective(http):
            raise Malformed("the effective canister id is not the called one")
        found = self._served()
        data = self._certificate([(b"canister", bytes(request.canister_id), b"certified_data")])
        answer = execution.query(found.snapshot, self.replica.store.for_query(), request, data)
        timestamp = self.replica.clock()
        signed: dict[str, Any] = {"request_id": request.request_id, "timestamp": timestamp}
        body: dict[str, Any]
        if answer.reply is not None:
            body = {"status": "replied", "reply": {"arg": answer.reply}}
        else:
            body = {
                "status": "rejected",
                "reject_code": answer.reject_code,
                "reject_message": answer.reject_message,
                "error_code": answer.error_code,
            }
        message = domain("ic-response") + envelope.hash_of_map({**body, **signed})
        signature = {
            "timestamp": timestamp,
            "signature": self.replica.secrets.signing.sign(message),
            "identity": bytes(self.replica.settings.node),
        }
        return _cbor({**body, "signatures": [signature]})

    async def read_state(self, http: Request) -> Response:
        request = await self._request(http, "read_state")
        found = self._served()
        for path in request.paths:
            self._check_path(request, path, self._effective(http), found)
        return _cbor({"certificate": self._certificate(list(request.paths))})

    def _check_path(
        self,
        request: envelope.Request,
        path: tuple[bytes, ...],
        effective: Principal,
        found: Certified,
    ) -> None:
        """Raises: NotAuthorized, Malformed for paths that this sender may not see."""
        head = path[0] if path else b""
        if head in (b"time", b"subnet", b"api_boundary_nodes", b"canister_ranges", b"metadata"):
            return
        if head == b"request_status" and len(path) >= 2:
            if len(path[1]) != 32:
                raise Malformed("a request id has 32 bytes")
            ids = {p[1] for p in request.paths if p[:1] == (b"request_status",) and len(p) > 1}
            if len(ids) > 1:
                raise Malformed("one read_state can ask for one request only")
            status = found.snapshot.ingress.get(path[1])
            if status is not None and status.sender != request.sender:
                raise NotAuthorized("only its sender may read a request's status")
            return
        if head == b"canister" and len(path) >= 3 and path[1] == bytes(effective):
            if path[2] in (b"module_hash", b"controllers", b"metadata"):
                return
        raise NotAuthorized(f"the path {[p.hex() for p in path][:4]} may not be read")

    async def status(self, _http: Request) -> Response:
        return _cbor(
            {
                "root_key": self.replica.settings.root_key,
                "impl_version": self.replica.version,
                "replica_health_status": self.replica.health(),
            }
        )

    async def catch_up_package(self, _http: Request) -> Response:
        return Response(self.replica.package.encode(), media_type="application/x-protobuf")

    async def node_status(self, _http: Request) -> Response:
        return JSONResponse(self.replica.status())

    async def evidence(self, _http: Request) -> Response:
        return _cbor(self.replica.evidence())

    async def key_generation(self, _http: Request) -> Response:
        """Show what is dealt to nodes of other subnets: they alone can tell a bad share."""
        return Response(self.replica.key_offers().encode(), media_type="application/octet-stream")

    async def complaint(self, http: Request) -> Response:
        self.replica.complain(await _body(http, COMPLAINT_BYTES_MAX))
        return Response(status_code=202)
