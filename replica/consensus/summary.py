"""The summary block: what every node derives alike from the chain that ends before it."""

from __future__ import annotations

from collections.abc import Sequence

from replica.client.subnet_view import RegistryView
from replica.consensus import dkg
from replica.consensus.reader import Reader
from replica.protocol.artifacts import Summary, ValidationContext
from replica.protocol.crypto.dkg import KeyResult, OpenRequest
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.ids import Height


def next_summary(
    reader: Reader, parent: bytes, height: int, context: ValidationContext
) -> Summary | None:
    """Return the summary due at a height, or None when the height takes a data payload.

    `context`: that of the block it is for. Raises: Unavailable while its registry version is not
    here.
    """
    last = reader.chain.summary_of(parent)
    if last is None or height != last.next_start:
        return None
    registry = reader.context.registry
    following = registry.subnet(context.registry_version)
    next_low, next_high, *remote = dkg.outcome(reader, parent, last)
    results, again = _results(last, remote)
    opened = (*again, *_new_requests(reader, last, context, following.is_system))
    return Summary(
        registry_version=last.next_registry_version,
        height=Height(height),
        interval_length=last.next_interval_length,
        next_interval_length=following.interval_length,
        low=last.next_low or last.low,
        high=last.next_high or last.high,
        next_registry_version=context.registry_version,
        receivers=following.members,
        run_start=_run_start(registry, last, Height(height)),
        next_low=next_low,
        next_high=next_high,
        requests=opened[: dkg.REQUESTS_MAX],
        results=results,
    )


def _run_start(registry: RegistryView, last: Summary, height: Height) -> Height:
    """Return where the run of the interval that begins at a height began."""
    before = registry.subnet(last.registry_version).replica_version
    here = registry.subnet(last.next_registry_version).replica_version
    return last.run_start if here == before else height


def _results(
    last: Summary, keys: Sequence[Transcript | None]
) -> tuple[tuple[KeyResult, ...], tuple[OpenRequest, ...]]:
    """Return what came of the requests of an interval, and those to be dealt for once more."""
    results, again = [], []
    for opened, low, high in zip(last.requests, keys[::2], keys[1::2], strict=True):
        number = opened.request.number
        if low is not None and high is not None:
            results.append(KeyResult(number, low, high))
        elif opened.attempt >= dkg.ATTEMPTS_MAX:
            results.append(KeyResult(number, None, None))
        else:
            again.append(OpenRequest(opened.request, opened.attempt + 1))
    return tuple(results), tuple(again)


def _new_requests(
    reader: Reader, last: Summary, context: ValidationContext, is_system: bool
) -> tuple[OpenRequest, ...]:
    """Return the requests in the certified state that no interval has dealt for yet.

    Raises: Unavailable when the state of that height is not here.
    """
    if not is_system:
        return ()
    known = {o.request.number for o in last.requests} | {r.number for r in last.results}
    return tuple(
        OpenRequest(request, 1)
        for request in reader.context.state.key_requests_at(context.certified_height)
        if request.number not in known and request.registry_version <= context.registry_version
    )
