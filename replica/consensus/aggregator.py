"""Aggregator: combines enough shares on one content into the full artifact, kind by kind.

Also gives shares from peers their verdict: see `shares`, which checks them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from replica.consensus.pool import AddValidated, Mutation, RemoveUnvalidated
from replica.consensus.reader import Reader
from replica.consensus.shares import MemberCommittee, ThresholdCommittee, gather
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    Beacon,
    BeaconShare,
    Cup,
    CupShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Run,
    Tape,
    TapeShare,
)
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.ids import Epoch, Height, SubnetId


def threshold(reader: Reader, transcript: Transcript) -> ThresholdCommittee:
    return ThresholdCommittee(reader.context.scheme, transcript)


def beacons(reader: Reader) -> list[Mutation]:
    chain, epoch = reader.chain, reader.chain.cup.epoch
    height = Height(chain.beacon_height + 1)
    transcript = reader.low(height)
    if reader.pool.count_at(BeaconShare, height) < transcript.threshold:
        return []
    parent = artifacts.beacon_hash(chain.beacons[chain.beacon_height])
    message = artifacts.beacon_message(reader.subnet, epoch, height, parent)
    out: list[Mutation] = [
        RemoveUnvalidated(s)  # it does not follow our beacon
        for s in reader.pool.unvalidated.at(BeaconShare, height)
        if s.parent != parent
    ]
    verdicts, found = gather(
        reader,
        BeaconShare,
        height,
        threshold(reader, transcript),
        message,
        lambda s: s.parent == parent,
    )
    out += verdicts
    if found:
        out.append(AddValidated(Beacon(epoch, height, parent, found.signature)))
    return out


def tapes(reader: Reader) -> list[Mutation]:
    chain, epoch = reader.chain, reader.chain.cup.epoch
    out: list[Mutation] = []
    for h in reader.tape_heights:
        height = Height(h)
        count = 0 if h in chain.tapes else reader.pool.count_at(TapeShare, h)
        if not count or count < reader.low(height).threshold:
            continue
        message = artifacts.tape_message(reader.subnet, epoch, height)
        committee = threshold(reader, reader.low(height))
        verdicts, found = gather(reader, TapeShare, height, committee, message)
        out += verdicts
        if found:
            out.append(AddValidated(Tape(epoch, height, found.signature)))
    return out


def _contents(reader: Reader, kind: type[Any], height: int) -> list[bytes]:
    """Return the blocks that any shares of a height are for, in order of arrival."""
    pool = reader.pool
    both = [*pool.validated.at(kind, height), *pool.unvalidated.at(kind, height)]
    return list(dict.fromkeys(s.block for s in both))


def notarizations(reader: Reader) -> list[Mutation]:
    heights = (reader.chain.notarized_height + 1,)
    message = artifacts.notarization_message
    return _agreed(reader, NotarizationShare, Notarization, message, heights, notarized=False)


def finalizations(reader: Reader) -> list[Mutation]:
    heights = range(reader.chain.finalized_height + 1, reader.chain.notarized_height + 1)
    message = artifacts.finalization_message
    return _agreed(reader, FinalizationShare, Finalization, message, heights, notarized=True)


def _agreed(
    reader: Reader,
    share: type[NotarizationShare | FinalizationShare],
    full: type[Notarization | Finalization],
    message_of: Callable[[SubnetId, Epoch, Run, Height, bytes], bytes],
    heights: Iterable[int],
    *,
    notarized: bool,
) -> list[Mutation]:
    """Combine the shares of members on blocks that are notarized already, or not yet."""
    chain, epoch = reader.chain, reader.chain.cup.epoch
    out: list[Mutation] = []
    for h in heights:
        if not reader.pool.unvalidated.has(share, h) and not reader.pool.validated.has(share, h):
            continue
        if not reader.knows(h):
            continue
        height, settings = Height(h), reader.settings_at(h)
        if reader.pool.count_at(share, h) < settings.quorum:
            continue
        committee = MemberCommittee(reader.context.scheme, settings)
        for block in _contents(reader, share, height):
            if block not in chain.blocks or chain.is_notarized(height, block) is not notarized:
                continue
            message = message_of(reader.subnet, epoch, reader.run, height, block)
            verdicts, found = gather(
                reader,
                share,
                height,
                committee,
                message,
                lambda s, block=block: s.block == block,  # type: ignore[misc]
            )
            out += verdicts
            if found:
                out.append(AddValidated(full(epoch, height, block, found.signers, found.signature)))
    return out


def cups(reader: Reader) -> list[Mutation]:
    chain, pool = reader.chain, reader.pool
    heights = {*pool.validated.heights(CupShare), *pool.unvalidated.heights(CupShare)}
    out: list[Mutation] = []
    for h in sorted((h for h in heights if h > chain.cup.height), reverse=True):
        content = content_at(reader, h)
        entry = chain.finalized_block(h)
        if content is None or entry is None or not isinstance(entry.payload, artifacts.Summary):
            continue
        hash_ = cup.content_hash(content)
        out += _other_contents(reader, h, hash_)
        committee = threshold(reader, entry.payload.high)
        verdicts, found = gather(
            reader,
            CupShare,
            h,
            committee,
            cup.signed_message(content),
            lambda s, hash_=hash_: s.content_hash == hash_,  # type: ignore[misc]
        )
        out += verdicts
        if found:
            package = cup.CatchUpPackage(content, found.signature)
            return [*out, AddValidated(Cup(chain.cup.epoch, Height(h), package.encode()))]
    return out


def _other_contents(reader: Reader, height: int, ours: bytes) -> Sequence[Mutation]:
    shares = reader.pool.unvalidated.at(CupShare, height)
    return [
        RemoveUnvalidated(s)  # whose state is wrong is not known
        for s in shares
        if s.content_hash != ours
    ]


def content_at(reader: Reader, height: int) -> bytes | None:
    """Return what this node signs as the CUP of a summary height; None until all is known."""
    chain = reader.chain
    entry, beacon = chain.finalized_block(height), chain.beacons.get(height)
    root = reader.context.state.checkpoint_root_at(height)
    if entry is None or beacon is None or root is None:
        return None
    if not isinstance(entry.payload, artifacts.Summary):
        return None
    key = (entry.hash, artifacts.beacon_hash(beacon), root)
    found = chain.cup_contents.get(key)
    if found is None:
        found = cup.content(entry.block, entry.payload, beacon, root)
        chain.cup_contents[key] = found
    return found
