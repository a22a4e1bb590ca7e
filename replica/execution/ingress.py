"""Users' requests: the pool of those waiting for a block, and what a block may hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from replica.protocol import envelope
from replica.protocol.artifacts import Data, Payload, ValidationContext
from replica.protocol.errors import LimitExceeded, Malformed, Rejected, Unavailable
from replica.protocol.ids import CanisterId, NodeId

POOL_MAX, POOL_BYTES_MAX = 4000, 64 << 20
"""What may wait, shared evenly by who has something waiting: this node's users, and each peer."""
SUBMITTED_MAX = 2000
"""With so many waiting, users are told to come later: what peers have taken in still finds room,
and nobody waits long for an answer. Shared in the same way."""
TOO_MANY = "too many requests are waiting; try again in a few seconds"
BLOCK_BYTES_MAX = 4 << 20
DECODED_MAX, DECODED_BYTES_MAX = 3 * POOL_MAX, 32 << 20
"""Requests, the oldest of which is forgotten first, that need not be checked again."""

Source = NodeId | None
"""Who handed a request in: a peer, or (None) a user of this node."""


class _Queue:
    """What waits from one source, oldest first."""

    def __init__(self) -> None:
        self.requests: dict[bytes, envelope.Request] = {}
        self.bytes = 0


class IngressPool:
    """Requests that were checked at the edge; the block maker picks from here.

    However much one source hands in, it takes no other's place here and, in a block, no more bytes
    than another one that has as much waiting.
    """

    def __init__(
        self,
        is_known: Callable[[bytes], bool],
        has_room: Callable[[], bool] = lambda: True,
        is_callable: Callable[[CanisterId], bool] = lambda _: True,
    ) -> None:
        """`is_known`: whether the state has this request id already. `has_room`: whether this
        node's disk can hold what follows from more requests. `is_callable`: whether there is such
        a canister."""
        self._queues: dict[Source, _Queue] = {}
        self._sources: dict[bytes, Source] = {}
        self._is_known, self._has_room, self._is_callable = is_known, has_room, is_callable

    def __len__(self) -> int:
        return len(self._sources)

    def is_full(self, source: Source) -> bool:
        """Whether nothing more is taken from a source now, whatever it is."""
        return not self._has_room() or not self._finds_room(source, 0, POOL_MAX)

    def check_room(self) -> None:
        """Raises: Unavailable when no user's request is taken now, whatever it is."""
        if not self._has_room():
            raise Unavailable("this node's disk is nearly full: it takes no requests; ask another")
        if not self._finds_room(None, 0, SUBMITTED_MAX):
            raise Unavailable(TOO_MANY)

    def submit(self, request: envelope.Request) -> bool:
        """Admit a user's checked request; False when it is here.

        Raises: Unavailable when the pool or the disk is full.
        """
        if request.request_id in self._sources:
            return False
        self.check_room()
        return self._add(request, None, SUBMITTED_MAX)

    def add(self, request: envelope.Request, peer: NodeId) -> bool:
        """Admit what a peer passed on, once it is checked; False when it is here or was executed.

        Raises: Rejected when there is no such canister here, else as `submit`.
        """
        if not self._is_callable(request.canister_id):
            raise Rejected("there is no such canister")
        return not self._is_known(request.request_id) and self._add(request, peer, POOL_MAX)

    def _add(self, request: envelope.Request, source: Source, count_max: int) -> bool:
        if request.request_id in self._sources:
            return False
        size_bytes = len(request.raw)
        if not self._finds_room(source, size_bytes, count_max):
            raise Unavailable(TOO_MANY)
        queue = self._queues.setdefault(source, _Queue())
        queue.requests[request.request_id] = request
        queue.bytes += size_bytes
        self._sources[request.request_id] = source
        _decoded.add(request)
        return True

    def _finds_room(self, source: Source, size_bytes: int, count_max: int) -> bool:
        """Whether a source's share holds so much more; one request it always does."""
        queue = self._queues.get(source)
        if queue is None:
            return True
        shares = len(self._queues)
        is_small = queue.bytes + size_bytes <= POOL_BYTES_MAX // shares
        return is_small and len(queue.requests) < max(1, count_max // shares)

    def executed(self, ingress: Sequence[bytes]) -> None:
        """Let go of a block's requests: others find room at once."""
        for raw in ingress:
            request = _decoded.get(raw)
            if request is not None and request.request_id in self._sources:
                self._remove(request)

    def purge(self, now_ns: int) -> None:
        """Forget what has expired or was executed."""
        for queue in list(self._queues.values()):
            for id_, request in list(queue.requests.items()):
                if request.ingress_expiry_ns < now_ns or self._is_known(id_):
                    self._remove(request)

    def _remove(self, request: envelope.Request) -> None:
        source = self._sources.pop(request.request_id)
        queue = self._queues[source]
        del queue.requests[request.request_id]
        queue.bytes -= len(request.raw)
        if not queue.requests:
            del self._queues[source]

    # the port of consensus

    def build(self, past: Sequence[Payload], context: ValidationContext, count_max: int) -> Data:
        if not self._has_room():
            return Data(())
        taken = {raw for payload in past if isinstance(payload, Data) for raw in payload.ingress}
        self.purge(context.time_ns)
        return Data(tuple(islice(self._in_turn(taken), count_max)))

    def _in_turn(self, taken: Container[bytes]) -> Iterator[bytes]:
        """Yield what fits a block and is not taken, next from whose requests have fewest bytes."""
        turns = [
            (0, turn, iter(q.requests.values())) for turn, q in enumerate(self._queues.values())
        ]
        size = 0
        while turns:
            given, turn, waiting = heappop(turns)
            raw = next((r.raw for r in waiting if r.raw not in taken), None)
            if raw is not None and size + len(raw) <= BLOCK_BYTES_MAX:
                yield raw
                size += len(raw)
                heappush(turns, (given + len(raw), turn, waiting))

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


class _Decoded:
    """Requests that were checked, by envelope."""

    def __init__(self) -> None:
        self._requests: OrderedDict[bytes, envelope.Request] = OrderedDict()
        """(In a plain dictionary, finding the oldest passes over all that were removed.)"""
        self._bytes = 0

    def get(self, raw: bytes) -> envelope.Request | None:
        return self._requests.get(raw)

    def add(self, request: envelope.Request) -> None:
        if request.raw in self._requests:
            return
        self._requests[request.raw] = request
        self._bytes += len(request.raw)
        while len(self._requests) > DECODED_MAX or self._bytes > DECODED_BYTES_MAX:
            oldest, _ = self._requests.popitem(last=False)
            self._bytes -= len(oldest)


_decoded = _Decoded()


def decode_cached(raw: bytes, now_ns: int) -> envelope.Request:
    """Decode and check a request; a repeated check only looks at the expiry again."""
    found = _decoded.get(raw)
    if found is not None:
        envelope._check_expiry(found, now_ns)
        return found
    request = envelope.decode(raw, now_ns)
    _decoded.add(request)
    return request
