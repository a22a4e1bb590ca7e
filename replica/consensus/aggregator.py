"""Aggregator: combines enough shares on one content into the full artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BeaconShare,
    Cup,
    CupShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.ids import Height


def make(reader: Reader) -> list[Mutation]:
    found = (
        _beacon(reader)
        + _tapes(reader)
        + _notarizations(reader)
        + _finalizations(reader)
        + _cups(reader)
    )
    return [AddValidated(a) for a in found]


def combine(
    reader: Reader, transcript: Transcript, message: bytes, shares: Sequence[Any]
) -> bytes | None:
    """Combine threshold shares; None when there are too few."""
    by_index: dict[int, bytes] = {}
    for share in shares:
        index = transcript.index_of(share.signer)
        if index is not None:
            by_index[index] = share.signature
    if len(by_index) < transcript.threshold:
        return None
    return reader.context.scheme.combine_threshold(
        message, transcript.threshold, by_index, transcript.share_keys
    )


def _beacon(reader: Reader) -> list[Artifact]:
    chain = reader.chain
    height = Height(chain.beacon_height + 1)
    parent = artifacts.beacon_hash(chain.beacons[chain.beacon_height])
    shares = [s for s in reader.pool.validated.at(BeaconShare, height) if s.parent == parent]
    if not shares:
        return []
    epoch = chain.cup.epoch
    message = artifacts.beacon_message(reader.subnet, epoch, height, parent)
    signature = combine(reader, reader.low(height), message, shares)
    return [] if signature is None else [Beacon(epoch, height, parent, signature)]


def _tapes(reader: Reader) -> list[Artifact]:
    chain, epoch = reader.chain, reader.chain.cup.epoch
    first = max(reader.context.state.latest_height, chain.cup.height) + 1
    out: list[Artifact] = []
    for h in range(first, chain.finalized_height + 2):
        height = Height(h)
        shares = reader.pool.validated.at(TapeShare, height)
        if h in chain.tapes or not shares:
            continue
        message = artifacts.tape_message(reader.subnet, epoch, height)
        signature = combine(reader, reader.low(height), message, shares)
        if signature is not None:
            out.append(Tape(epoch, height, signature))
    return out


def _grouped(shares: Sequence[Any]) -> dict[bytes, list[Any]]:
    groups: dict[bytes, list[Any]] = {}
    for share in shares:
        groups.setdefault(share.block, []).append(share)
    return groups


def _multi(reader: Reader, height: int, shares: list[Any]) -> tuple[Any, bytes] | None:
    by_signer = {s.signer: s.signature for s in shares}
    if len(by_signer) < reader.settings_at(height).quorum:
        return None
    signers = tuple(sorted(by_signer))
    return signers, reader.context.scheme.combine_multi([by_signer[s] for s in signers])


def _notarizations(reader: Reader) -> list[Artifact]:
    chain = reader.chain
    height = Height(chain.notarized_height + 1)
    out: list[Artifact] = []
    for block, shares in _grouped(reader.pool.validated.at(NotarizationShare, height)).items():
        combined = _multi(reader, height, shares)
        if combined and not chain.is_notarized(height, block):
            out.append(Notarization(chain.cup.epoch, height, block, *combined))
    return out


def _finalizations(reader: Reader) -> list[Artifact]:
    chain = reader.chain
    out: list[Artifact] = []
    for h in range(chain.finalized_height + 1, chain.notarized_height + 1):
        groups = _grouped(reader.pool.validated.at(FinalizationShare, h))
        for block, shares in groups.items():
            combined = _multi(reader, h, shares)
            if combined and block in chain.blocks:
                out.append(Finalization(chain.cup.epoch, Height(h), block, *combined))
    return out


def _cups(reader: Reader) -> list[Artifact]:
    chain = reader.chain
    for h in reversed(reader.pool.validated.heights(CupShare)):
        if h <= chain.cup.height:
            return []
        shares = reader.pool.validated.at(CupShare, h)
        content = content_at(reader, h)
        if content is None:
            continue
        hash_ = cup.content_hash(content)
        matching = [s for s in shares if s.content_hash == hash_]
        entry = chain.finalized_block(h)
        if entry is None or not isinstance(entry.payload, artifacts.Summary):
            continue
        message = cup.signed_message(content)
        signature = combine(reader, entry.payload.high, message, matching)
        if signature is not None:
            package = cup.CatchUpPackage(content, signature)
            return [Cup(chain.cup.epoch, Height(h), package.encode())]
    return []


def content_at(reader: Reader, height: int) -> bytes | None:
    """Return what this node signs as the CUP of a summary height; None until all is known."""
    chain = reader.chain
    entry, beacon = chain.finalized_block(height), chain.beacons.get(height)
    root = reader.context.state.checkpoint_root_at(height)
    if entry is None or beacon is None or root is None:
        return None
    if not isinstance(entry.payload, artifacts.Summary):
        return None
    return cup.content(entry.block, entry.payload, beacon, root)
