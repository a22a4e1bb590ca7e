"""The summary block: what every node derives alike from the chain that ends before it."""

from __future__ import annotations

from replica.consensus import dkg
from replica.consensus.reader import Reader
from replica.protocol.artifacts import Summary, ValidationContext
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
    following = reader.context.registry.subnet(context.registry_version)
    next_low, next_high = dkg.outcome(reader, parent, last)
    return Summary(
        registry_version=last.next_registry_version,
        height=Height(height),
        interval_length=last.next_interval_length,
        next_interval_length=following.interval_length,
        low=last.next_low or last.low,
        high=last.next_high or last.high,
        next_registry_version=context.registry_version,
        receivers=following.members,
        next_low=next_low,
        next_high=next_high,
    )
