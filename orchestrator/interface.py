"""What an orchestrator answers over HTTP, apart from any server.

Everything a caller hands in is checked by whom it is for; nobody has to prove who he is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replica.protocol.ballot import BALLOT_BYTES_MAX
from replica.protocol.errors import Malformed, NotFound, ReprisError
from replica.protocol.nns_recovery import BUNDLE_BYTES_MAX

if TYPE_CHECKING:
    from orchestrator.agent import Orchestrator

DEALINGS_BYTES_MAX = 4 << 20
BYTES, JSON, TEXT, ZIP = (
    "application/octet-stream",
    "application/json",
    "text/plain",
    "application/zip",
)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    media: str


Query = Mapping[str, str]


class Interface:
    def __init__(self, orchestrator: Orchestrator) -> None:
        self.it = orchestrator
        it = orchestrator
        self._gets: dict[str, Callable[[Query], Answer]] = {
            "/status": lambda _: _json(it.status()),
            "/attestation": lambda q: _bytes(it.attest(_number(q, "height"))),
            "/registry_deltas": lambda q: _bytes(
                it.replicator.certified_since(_number(q, "since"))
            ),
            "/nns_recovery": lambda _: _json(it.recovery.status()),
            "/root_key_successor": lambda q: _bytes(it.trust.successor_of(_hex(q, "of"))),
        }
        self._posts: dict[str, tuple[int, Callable[[bytes], Answer]]] = {
            "/halt": (BALLOT_BYTES_MAX, lambda b: _json(it.halt(b))),
            "/nns_recovery": (BUNDLE_BYTES_MAX, lambda b: _json(it.recovery.stage(b))),
            "/new_keys/deal": (DEALINGS_BYTES_MAX, lambda b: _bytes(it.key_maker.deal(b))),
            "/new_keys/look": (DEALINGS_BYTES_MAX, lambda b: _json(it.key_maker.look(b))),
        }

    def body_bytes_max(self, path: str) -> int:
        """How long a body may be that is posted to a path."""
        return self._posts[path][0] if path in self._posts else 0

    def answer(self, method: str, path: str, query: Query, body: bytes) -> Answer:
        try:
            if method == "GET" and path in self._gets:
                return self._gets[path](query)
            if method == "GET" and path.startswith("/release/"):
                package = self.it.releases.package(path.removeprefix("/release/"))
                return Answer(200, package, ZIP)
            if method == "POST" and path in self._posts:
                return self._posts[path][1](body)
            raise NotFound(f"{method} {path[:80]}: there is nothing here")
        except ReprisError as error:
            return Answer(error.http_status, str(error).encode(), TEXT)


def _json(plain: object) -> Answer:
    return Answer(200, json.dumps(plain).encode(), JSON)


def _bytes(body: bytes) -> Answer:
    return Answer(200, body, BYTES)


def _number(query: Query, name: str) -> int:
    text = query.get(name, "")
    if not text.isdecimal() or len(text) > 20:
        raise Malformed(f"{name} is not a natural number")
    return int(text)


def _hex(query: Query, name: str) -> bytes:
    try:
        return bytes.fromhex(query.get(name, ""))
    except ValueError as error:
        raise Malformed(f"{name} is not hexadecimal") from error
