"""Beacon and tape makers: shares of the subnet's randomness, with the low threshold."""

from __future__ import annotations

from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader, Status
from replica.protocol import artifacts
from replica.protocol.artifacts import BeaconShare, TapeShare
from replica.protocol.ids import Height


def make_beacon(reader: Reader) -> list[Mutation]:
    """Sign the next beacon once a block at this one's height is notarized."""
    chain = reader.chain
    height = chain.beacon_height
    if reader.status is Status.HALTED or height > chain.notarized_height:
        return []
    following = Height(height + 1)
    transcript = reader.low(following)
    if reader.has_signed(BeaconShare, following):
        return []
    secret = reader.share_of(transcript)
    if secret is None:
        return []
    parent = artifacts.beacon_hash(chain.beacons[height])
    epoch = chain.cup.epoch
    message = artifacts.beacon_message(reader.subnet, epoch, following, parent)
    signature = reader.context.scheme.sign_threshold(secret, message)
    return [AddValidated(BeaconShare(epoch, following, parent, reader.node, signature))]


def make_tape(reader: Reader) -> list[Mutation]:
    """Sign the tapes of all heights up to one above the finalized tip."""
    if reader.status is Status.HALTED:
        return []
    chain, epoch = reader.chain, reader.chain.cup.epoch
    out: list[Mutation] = []
    for h in reader.tape_heights:
        height = Height(h)
        if h in chain.tapes:
            continue
        low = reader.low(height)
        if reader.has_signed(TapeShare, height):
            continue
        secret = reader.share_of(low)
        if secret is None:
            continue
        message = artifacts.tape_message(reader.subnet, epoch, height)
        signature = reader.context.scheme.sign_threshold(secret, message)
        out.append(AddValidated(TapeShare(epoch, height, reader.node, signature)))
    return out
