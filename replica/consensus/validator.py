"""Validator: gives every artifact from a peer its verdict.

A check that fails for good makes the artifact invalid; one whose premise is still missing (a
parent, a beacon, a registry version, the right time) leaves it waiting in the unvalidated pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replica.consensus import dkg
from replica.consensus.block_places import equivocation_proof
from replica.consensus.door import is_by_its_maker
from replica.consensus.pool import (
    AddValidated,
    HandleInvalid,
    MoveToValidated,
    Mutation,
    Prove,
    RemoveUnvalidated,
)
from replica.consensus.reader import (
    CUP_HOLD_BACK_NS,
    CUP_HOLD_BACK_REPLAYING_NS,
    GAP_MAX,
    Reader,
    Status,
)
from replica.consensus.summary import next_summary
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BlockProposal,
    Cup,
    Data,
    EquivocationProof,
    Finalization,
    Notarization,
    Summary,
    Tape,
)
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.errors import Rejected, Unavailable
from replica.protocol.ids import Height, NodeId

Verdicts = list[Mutation]


def _invalid(artifact: Artifact, reason: str) -> HandleInvalid:
    return HandleInvalid(artifact, reason)


def _waiting(reader: Reader, kind: type[Any], heights: Callable[[Reader], range]) -> list[Any]:
    """Return what peers sent of a kind, at heights that are asked for when there is anything."""
    unvalidated = reader.pool.unvalidated
    found = unvalidated.heights(kind)
    if not found:
        return []
    wanted = heights(reader)
    known = [h for h in found if h in wanted and reader.knows(h)]
    return [a for h in known for a in unvalidated.at(kind, h)]


# --- beacons and tapes ------------------------------------------------------------------------


def beacons(reader: Reader) -> Verdicts:
    chain = reader.chain
    height = Height(chain.beacon_height + 1)
    if not reader.pool.unvalidated.has(Beacon, height):
        return []
    parent = artifacts.beacon_hash(chain.beacons[chain.beacon_height])
    key = reader.low(height).public_key
    message = artifacts.beacon_message(reader.subnet, chain.cup.epoch, height, parent)
    out: Verdicts = []
    is_here = False
    for beacon in reader.pool.unvalidated.at(Beacon, height):
        if is_here or beacon.parent != parent:  # it may follow what we don't know
            out.append(RemoveUnvalidated(beacon))
        elif reader.context.scheme.verify_threshold(key, message, beacon.signature):
            out.append(MoveToValidated(beacon))
            is_here = True
        else:
            out.append(_invalid(beacon, "wrong signature"))
    return out


def tapes(reader: Reader) -> Verdicts:
    chain = reader.chain
    out: Verdicts = []
    here: set[int] = set()
    for tape in _waiting(reader, Tape, lambda r: r.tape_heights):
        message = artifacts.tape_message(reader.subnet, chain.cup.epoch, tape.height)
        key = reader.low(tape.height).public_key
        if tape.height in chain.tapes or tape.height in here:
            out.append(RemoveUnvalidated(tape))
        elif reader.context.scheme.verify_threshold(key, message, tape.signature):
            out.append(MoveToValidated(tape))
            here.add(tape.height)
        else:
            out.append(_invalid(tape, "wrong signature"))
    return out


# --- notarizations and finalizations -------------------------------------------------------------


def _multi_signature_fault(reader: Reader, artifact: Any, message: bytes) -> str | None:
    """Return what is wrong with a notarization or finalization; None when it is good."""
    settings = reader.settings_at(artifact.height)
    signers: tuple[NodeId, ...] = artifact.signers
    if len(set(signers)) != len(signers) or len(signers) < settings.quorum:
        return "too few signers"
    if any(s not in settings.keys for s in signers):
        return "a signer is not in the committee"
    keys = [settings.keys[s].committee for s in signers]
    if not reader.context.scheme.verify_multi(keys, message, artifact.signature):
        return "wrong signature"
    return None


def _notarization_message(reader: Reader, artifact: Any) -> bytes:
    return artifacts.notarization_message(
        reader.subnet, reader.chain.cup.epoch, reader.run, artifact.height, artifact.block
    )


def _finalization_message(reader: Reader, artifact: Any) -> bytes:
    return artifacts.finalization_message(
        reader.subnet, reader.chain.cup.epoch, reader.run, artifact.height, artifact.block
    )


def _above_finalized(reader: Reader) -> range:
    chain = reader.chain
    top = min(chain.notarized_height, chain.cup.summary.next_start + GAP_MAX)
    return range(chain.finalized_height + 1, min(top + 1, reader.known_until) + 1)


def notarizations(reader: Reader) -> Verdicts:
    """Judge them also before their blocks are here: those are let in then, whatever else waits."""
    chain, pool = reader.chain, reader.pool
    out: Verdicts = []
    proven: set[bytes] = set()
    for artifact in _waiting(reader, Notarization, _above_finalized):
        height, block = artifact.height, artifact.block
        is_proven = block in proven or pool.is_proven(height, block)
        if chain.is_notarized(height, block):
            out.append(RemoveUnvalidated(artifact))
        elif block in chain.blocks or not is_proven:
            fault = _multi_signature_fault(
                reader, artifact, _notarization_message(reader, artifact)
            )
            if fault:
                out.append(_invalid(artifact, fault))
            elif block in chain.blocks:
                out.append(MoveToValidated(artifact))
            else:
                proven.add(block)
                out.append(Prove(artifact))
    return out


def finalizations(reader: Reader) -> Verdicts:
    chain = reader.chain
    out: Verdicts = []
    for artifact in _waiting(reader, Finalization, _above_finalized):
        if chain.is_notarized(artifact.height, artifact.block) and artifact.block in chain.blocks:
            fault = _multi_signature_fault(
                reader, artifact, _finalization_message(reader, artifact)
            )
            out.append(_invalid(artifact, fault) if fault else MoveToValidated(artifact))
    return out


# --- blocks --------------------------------------------------------------------------------------


def blocks(reader: Reader) -> Verdicts:
    out: Verdicts = []
    for proposal in _waiting(reader, BlockProposal, _above_finalized):
        verdict = _block(reader, proposal)
        if verdict is not None:
            out.append(verdict)
            if isinstance(verdict, MoveToValidated | AddValidated):
                break  # the next verdict may depend on this one
    return out


def _block(reader: Reader, proposal: BlockProposal) -> Mutation | None:
    chain, block = reader.chain, proposal.block
    hash_ = artifacts.block_hash(block)
    if hash_ in chain.blocks:
        return RemoveUnvalidated(proposal)
    fault = _integrity_fault(reader, proposal)
    if fault:
        return _invalid(proposal, fault)
    ranks = reader.ranks(block.height)
    if ranks is None or block.parent not in chain.blocks:
        return None
    if not 0 <= block.rank < len(ranks) or ranks[block.rank] != proposal.maker:
        return RemoveUnvalidated(proposal)
    if not is_by_its_maker(reader, proposal):  # found at the door already, as a rule
        return _invalid(proposal, "wrong signature")
    if not chain.is_notarized(block.height - 1, block.parent):
        return None
    if _has_notarization(reader, proposal, hash_):
        return MoveToValidated(proposal)
    return _new_block(reader, proposal, hash_)


def _integrity_fault(reader: Reader, proposal: BlockProposal) -> str | None:
    block = proposal.block
    if block.subnet != reader.subnet:
        return "a block of another subnet"
    if block.run != reader.run:
        return "a block of another run"  # also when it is notarized: releases never mix
    if artifacts.payload_hash(proposal.payload) != block.payload_hash:
        return "the payload is not the one the block names"
    return None


def _has_notarization(reader: Reader, proposal: BlockProposal, hash_: bytes) -> bool:
    """Fast path: n - f members signed for it, so its payload need not be judged again."""
    return reader.pool.is_proven(proposal.height, hash_)


def _new_block(reader: Reader, proposal: BlockProposal, hash_: bytes) -> Mutation | None:
    """Judge a block that is not notarized yet."""
    chain, block = reader.chain, proposal.block
    if block.height != chain.notarized_height + 1 and chain.notarized.get(block.height):
        return None
    rivals = reader.proposals_at(block.height)
    for rival in rivals:
        if rival.maker == proposal.maker and rival.block.rank == block.rank:
            return _equivocation(reader, rival, proposal, hash_)
    makers, out = reader.makers(block.height), reader.disqualified(block.height)
    if makers is None or proposal.maker not in makers or proposal.maker in out:
        return None
    if any(r.block.rank < block.rank and r.maker not in out for r in rivals):
        return None
    start = reader.round_start_ns(block.height)
    if start is None:
        return None
    if not reader.is_due(start + reader.maker_delay_ns(block.rank, block.height)):
        return None
    try:
        fault = _content_fault(reader, proposal)
    except Unavailable:
        return None
    if fault is None:
        return MoveToValidated(proposal)
    # What follows from registry, clock and state is not its sender's fault: those may be ours.
    return RemoveUnvalidated(proposal) if fault else None


def _content_fault(reader: Reader, proposal: BlockProposal) -> str | None:
    """Return what is wrong; None: nothing; "": not to be judged yet."""
    chain, block = reader.chain, proposal.block
    parent = chain.blocks[block.parent].block
    context, before = block.context, parent.context
    registry, state = reader.context.registry, reader.context.state
    if (
        context.registry_version < before.registry_version
        or context.certified_height < before.certified_height
        or context.time_ns <= before.time_ns
        or context.certified_height > parent.height
    ):
        return "its context does not follow its parent's"
    if context.registry_version > registry.latest_version:
        return ""
    if context.certified_height > state.certified_height:
        return ""
    # A stalled clock must not stop the subnet: time also passes since the parent was seen.
    # (A recovery's package is from the future: it is later than all that may have been finalized.)
    parent_seen = reader.pool.validated.first_time_at(Notarization, parent.height)
    elapsed = reader.now_ns - (reader.pool_started_ns if parent_seen is None else parent_seen)
    # The slack is the wall clock's alone: added to what passed since the parent, each block of a
    # dishonest maker would carry its own lead over to the next.
    here = max(reader.wall_ns + CLOCK_SLACK_NS, before.time_ns + elapsed)
    if not reader.is_due(reader.now_ns + context.time_ns - here):
        return ""
    return _payload_fault(reader, proposal)


CLOCK_SLACK_NS = 50_000_000
"""How far a maker's clock may run ahead before its block has to wait."""


def _payload_fault(reader: Reader, proposal: BlockProposal) -> str | None:
    block, payload = proposal.block, proposal.payload
    expected = next_summary(reader, block.parent, block.height, block.context)
    if isinstance(payload, Summary):
        return None if payload == expected else "its summary is not the one that is due"
    if expected is not None:
        return "a summary is due at this height"
    if reader.status is not Status.RUNNING:
        return None if payload == Data() else "a halting subnet makes empty blocks"
    fault = dkg.payload_fault(reader, block.parent, block.height, payload.dkg)
    if fault:
        return fault
    past = reader.payloads_since(block.parent, block.context.certified_height)
    try:
        reader.context.payloads.check(payload, past, block.context)
    except Rejected as error:
        return str(error)
    return None


def _equivocation(
    reader: Reader, known: BlockProposal, other: BlockProposal, hash_: bytes
) -> Mutation | None:
    proofs = reader.pool.validated.at(EquivocationProof, other.height)
    if any(p.maker == other.maker for p in proofs):
        return None
    first = (artifacts.block_hash(known.block), known.signature)
    return AddValidated(equivocation_proof(other, first, (hash_, other.signature)))


def equivocation_proofs(reader: Reader) -> Verdicts:
    out: Verdicts = []
    proven: set[tuple[int, NodeId]] = set()
    for proof in _waiting(reader, EquivocationProof, _above_finalized):
        known = reader.pool.validated.owned(EquivocationProof, proof.height, proof.maker)
        if known or (proof.height, proof.maker) in proven:  # more proves nothing more
            out.append(RemoveUnvalidated(proof))
            continue
        if proof.run != reader.run:
            out.append(RemoveUnvalidated(proof))
            continue
        keys = reader.settings_at(proof.height).keys.get(proof.maker)
        pairs = ((proof.hash_1, proof.signature_1), (proof.hash_2, proof.signature_2))
        good = (
            keys is not None
            and proof.hash_1 != proof.hash_2
            and all(
                verify_ed25519(
                    keys.signing,
                    artifacts.block_message(reader.subnet, proof.epoch, proof.run, proof.height, h),
                    s,
                )
                for h, s in pairs
            )
        )
        if good:
            proven.add((proof.height, proof.maker))
        out.append(MoveToValidated(proof) if good else _invalid(proof, "it proves nothing"))
    return out


# --- catch-up packages ---------------------------------------------------------------------------


def cups(reader: Reader) -> Verdicts:
    """The door has looked at the signature; one package waits, the highest."""
    chain, waiting = reader.chain, reader.pool.unvalidated
    out: Verdicts = []
    for artifact in list(waiting.of_kind(Cup)):
        if artifact.height <= chain.cup.height:
            out.append(RemoveUnvalidated(artifact))
        elif not _held_back(reader, artifact, cup.package_of(artifact)):
            out.append(MoveToValidated(artifact))
    return out


def _held_back(reader: Reader, artifact: Cup, package: cup.CatchUpPackage) -> bool:
    """Whether replaying is likely to get there sooner than fetching the state would."""
    state = reader.context.state.latest_height
    if state >= package.height:
        return False
    if package.height - state > package.summary.interval_length:
        return False
    replaying = reader.chain.finalized_height >= package.height
    patience = CUP_HOLD_BACK_REPLAYING_NS if replaying else CUP_HOLD_BACK_NS
    return not reader.is_due(reader.pool.unvalidated.time_of(artifact) + patience)
