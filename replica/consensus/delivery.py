"""Batch delivery: hands finalized blocks to execution, in order, each with its randomness."""

from __future__ import annotations

from dataclasses import dataclass

from replica.consensus.reader import Reader, Status
from replica.protocol import canonical
from replica.protocol.artifacts import Data, Summary
from replica.protocol.crypto.dkg import KeyResult
from replica.protocol.hashing import domain, sha256
from replica.protocol.ids import Epoch, Height, RegistryVersion, TimeNs


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one execution round."""

    height: Height
    epoch: Epoch
    time_ns: TimeNs
    registry_version: RegistryVersion
    randomness: bytes
    """32 bytes from the random tape."""
    ingress: tuple[bytes, ...]
    is_checkpoint: bool
    """The block opens an interval: the state after it becomes a checkpoint."""
    keys: tuple[KeyResult, ...] = ()
    """Keys for other subnets that were asked for."""


def next_batch(reader: Reader) -> Batch | None:
    """Return the batch after the executed height; None while a part of it is missing."""
    chain = reader.chain
    height = Height(reader.context.state.latest_height + 1)
    if height > chain.finalized_height:
        return None
    entry, tape = chain.finalized_block(height), chain.tapes.get(height)
    if entry is None or tape is None:
        return None
    if entry.block.context.registry_version > reader.context.registry.latest_version:
        return None  # n - f others have it already; execution reads the registry at this version
    is_checkpoint = isinstance(entry.payload, Summary)
    if not is_checkpoint and reader.status is not Status.RUNNING and reader.should_halt(height):
        return None
    return Batch(
        height=height,
        epoch=chain.cup.epoch,
        time_ns=entry.block.context.time_ns,
        registry_version=entry.block.context.registry_version,
        randomness=sha256(domain("random_tape_domain") + canonical.encode(tape)),
        ingress=entry.payload.ingress if isinstance(entry.payload, Data) else (),
        is_checkpoint=is_checkpoint,
        keys=entry.payload.results if isinstance(entry.payload, Summary) else (),
    )
