"""Block maker: proposes the next block when this node's rank has its turn."""

from __future__ import annotations

from replica.consensus import dkg
from replica.consensus.pool import AddValidated, Mutation
from replica.consensus.reader import Reader, Status
from replica.consensus.summary import next_summary
from replica.protocol import artifacts
from replica.protocol.artifacts import Block, BlockProposal, Data, Payload, ValidationContext
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, Rank, RegistryVersion, TimeNs


def make(reader: Reader) -> list[Mutation]:
    if reader.status is Status.HALTED:
        return []
    chain = reader.chain
    height = Height(chain.notarized_height + 1)
    proposals = reader.proposals_at(height)
    if any(p.maker == reader.node for p in proposals):
        return []
    makers = reader.makers(height)
    if makers is None or reader.node not in makers:
        return []
    parents = chain.notarized_at(chain.notarized_height)
    if not parents:
        return []
    rank = Rank(makers.index(reader.node))
    better = [p for p in proposals if p.block.rank < rank]
    if better:  # an equivocator's block must not silence the next rank
        out = reader.disqualified(height)
        if any(p.maker not in out for p in better):
            return []
    start = reader.round_start_ns(height)
    if start is None or not reader.is_due(start + reader.maker_delay_ns(rank, height)):
        return []
    parent = parents[0]
    context = _context(reader, parent.block)
    if context is None:
        return []
    summary = next_summary(reader, parent.hash, height, context)
    payload: Payload
    if summary is not None:
        payload = summary
    elif reader.status is not Status.RUNNING:
        payload = Data()
    else:
        ingress = _ingress(reader, parent.hash, height, context)
        payload = Data(ingress, dkg.select(reader, parent.hash, height))
    block = Block(
        version=reader.run.release,
        run_start=reader.run.start,
        subnet=reader.subnet,
        epoch=chain.cup.epoch,
        height=height,
        rank=rank,
        parent=parent.hash,
        payload_hash=artifacts.payload_hash(payload),
        context=context,
    )
    message = artifacts.block_message(
        reader.subnet, block.epoch, reader.run, height, artifacts.block_hash(block)
    )
    signature = reader.context.keys.signing.sign(message)
    return [AddValidated(BlockProposal(block, payload, reader.node, signature))]


def _ingress(
    reader: Reader, parent: bytes, height: Height, context: ValidationContext
) -> tuple[bytes, ...]:
    """Choose requests that no ancestor holds: neither those executed here, nor those on the way.

    A node whose state lags behind what others have certified looks further back; one that still
    fetches its state can't tell, and leaves them to others.
    """
    executed = reader.context.state.latest_height
    if executed < reader.chain.cup.height:
        return ()
    past = reader.payloads_since(parent, min(context.certified_height, executed))
    count_max = reader.settings_at(height).ingress_per_block_max
    return reader.context.payloads.build(past, context, count_max).ingress


def _context(reader: Reader, parent: Block) -> ValidationContext | None:
    """Return a context greater than the parent's; None while there is none."""
    registry = reader.context.registry
    before = parent.context
    version = RegistryVersion(max(registry.stable_version(reader.now_ns), before.registry_version))
    try:
        settings = registry.subnet(version)
    except Unavailable:
        return None
    time_ns = max(reader.wall_ns, before.time_ns + settings.notary_delay_ns + 1)
    certified = Height(max(reader.context.state.certified_height, before.certified_height))
    if certified > parent.height:
        return None
    return ValidationContext(version, certified, TimeNs(time_ns))
