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
class Randomness:
    """32 bytes from the random tape of a height, for who asked before that height.

    The tape of a height is signed once the height before is final, which is before the block of
    the height is chosen: what that block asks for must not be answered with it.
    """

    height: Height
    tape: bytes

    def for_request(self, asked_at: Height) -> bytes:
        """Return what answers a request that a block of some height made.

        Raises: ValueError for a request that the maker of its block could have made with the
        answer in hand.
        """
        if asked_at >= self.height:
            raise ValueError(f"the tape of {self.height} answers no request of {asked_at}")
        return self.tape


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one execution round."""

    height: Height
    epoch: Epoch
    time_ns: TimeNs
    registry_version: RegistryVersion
    randomness: Randomness
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
        randomness=Randomness(
            height, sha256(domain("random_tape_domain") + canonical.encode(tape))
        ),
        ingress=entry.payload.ingress if isinstance(entry.payload, Data) else (),
        is_checkpoint=is_checkpoint,
        keys=entry.payload.results if isinstance(entry.payload, Summary) else (),
    )
