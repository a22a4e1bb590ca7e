"""Users' requests: the pool of those waiting for a block, and what a block may hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from replica.protocol import envelope
from replica.protocol.artifacts import Data, Payload, ValidationContext
from replica.protocol.errors import LimitExceeded, Malformed, Rejected, Unavailable

POOL_MAX = 4000
SUBMITTED_MAX = 2000
"""With so many waiting, users are told to come later: what peers have taken in still finds room,
and nobody waits long for an answer."""
BLOCK_BYTES_MAX = 4 << 20
DECODED_MAX = 3 * POOL_MAX
"""Requests, the oldest of which is forgotten first, that need not be checked again."""


class IngressPool:
    """Requests that were checked at the edge; the block maker picks from here."""

    def __init__(
        self, is_known: Callable[[bytes], bool], has_room: Callable[[], bool] = lambda: True
    ) -> None:
        """`is_known`: whether the state has this request id already. `has_room`: whether this
        node's disk can hold what follows from more requests."""
        self._requests: dict[bytes, envelope.Request] = {}
        self._is_known, self._has_room = is_known, has_room

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def is_full(self) -> bool:
        return len(self._requests) >= POOL_MAX or not self._has_room()

    def submit(self, request: envelope.Request) -> bool:
        """Admit a user's checked request; False when it is here.

        Raises: Unavailable when the pool or the disk is full.
        """
        if not self._has_room():
            raise Unavailable("this node's disk is nearly full: it takes no requests; ask another")
        return self._add(request, SUBMITTED_MAX)

    def add(self, request: envelope.Request) -> bool:
        """Admit what a peer passed on, once it is checked; else as `submit`."""
        return self._add(request, POOL_MAX)

    def _add(self, request: envelope.Request, count_max: int) -> bool:
        if request.request_id in self._requests:
            return False
        if len(self._requests) >= count_max:
            raise Unavailable("too many requests are waiting; try again in a few seconds")
        self._requests[request.request_id] = request
        _remember(request)
        return True

    def purge(self, now_ns: int) -> None:
        """Forget what has expired or was executed."""
        for id_, request in list(self._requests.items()):
            if request.ingress_expiry_ns < now_ns or self._is_known(id_):
                del self._requests[id_]

    # the port of consensus

    def build(self, past: Sequence[Payload], context: ValidationContext, count_max: int) -> Data:
        if not self._has_room():
            return Data(())
        taken = {raw for payload in past if isinstance(payload, Data) for raw in payload.ingress}
        self.purge(context.time_ns)
        chosen: list[bytes] = []
        size = 0
        for request in self._requests.values():
            if request.raw in taken:
                continue
            if len(chosen) >= count_max or size + len(request.raw) > BLOCK_BYTES_MAX:
                break
            chosen.append(request.raw)
            size += len(request.raw)
        return Data(tuple(chosen))

    def check(self, payload: Payload, past: Sequence[Payload], context: ValidationContext) -> None:
        """Raises: Rejected for a request that is repeated, expired or wrongly signed."""
        if not isinstance(payload, Data):
            raise Malformed("not a data payload")
        taken = {raw for p in past if isinstance(p, Data) for raw in p.ingress}
        size = 0
        for raw in payload.ingress:
            if raw in taken:
                raise Rejected("the block repeats a request of its ancestors")
            taken.add(raw)
            size += len(raw)
            if size > BLOCK_BYTES_MAX:
                raise LimitExceeded("the block holds too many bytes of requests")
            if decode_cached(raw, context.time_ns).kind != "call":
                raise Malformed("only calls belong in a block")


_decoded: OrderedDict[bytes, envelope.Request] = OrderedDict()
"""By envelope. (In a plain dictionary, finding the oldest passes over all that were removed.)"""


def decode_cached(raw: bytes, now_ns: int) -> envelope.Request:
    """Decode and check a request; a repeated check only looks at the expiry again."""
    found = _decoded.get(raw)
    if found is not None:
        envelope._check_expiry(found, now_ns)
        return found
    request = envelope.decode(raw, now_ns)
    _remember(request)
    return request


def _remember(request: envelope.Request) -> None:
    while len(_decoded) >= DECODED_MAX:
        _decoded.popitem(last=False)
    _decoded[request.raw] = request
