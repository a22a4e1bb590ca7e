"""Certifier: collects the subnet's signature on the state tree of every executed height.

Works on a pool of its own. A share whose root is not ours is kept: with a valid signature it is
evidence of a divergence.
"""

from __future__ import annotations

from replica.consensus.aggregator import combine
from replica.consensus.pool import (
    AddValidated,
    HandleInvalid,
    MoveToValidated,
    Mutation,
    PurgeBelow,
    RemoveUnvalidated,
)
from replica.consensus.reader import GAP_MAX, Reader, Status
from replica.protocol import hash_tree
from replica.protocol.artifacts import (
    Certification,
    CertificationShare,
    certification_message,
)
from replica.protocol.errors import Malformed
from replica.protocol.hashing import leb128
from replica.protocol.ids import Height


def witness_fault(root: bytes, witness: bytes, height: int) -> str | None:
    """Return what is wrong with the claim that a root is the state tree of a height."""
    try:
        tree = hash_tree.decode(witness)
    except Malformed as error:
        return str(error)
    if tree.digest != root:
        return "the height's witness does not hash to the root"
    if hash_tree.lookup_leaf(tree, (b"metadata", b"height")) != leb128(height):
        return "the witness shows another height"
    return None


def step(reader: Reader) -> list[Mutation]:
    """Return the first of: new shares of ours, verdicts, aggregates, purges."""
    return _sign(reader) or _validate(reader) or _aggregate(reader) or _purge(reader)


def _sign(reader: Reader) -> list[Mutation]:
    if reader.status is Status.HALTED:
        return []
    state, epoch = reader.context.state, reader.chain.cup.epoch
    out: list[Mutation] = []
    for h in state.uncertified_heights():
        if h <= reader.chain.cup.height or reader.pool.validated.has(Certification, h):
            continue
        transcript = reader.high(h)
        secret = reader.context.keys.shares.get(transcript.public_key)
        mine = reader.pool.validated.at(CertificationShare, h)
        if secret is None or any(s.signer == reader.node for s in mine):
            continue
        found = state.certified_root_at(h)
        if found is None:
            continue
        root, witness = found
        signature = reader.context.scheme.sign_threshold(secret, certification_message(root))
        share = CertificationShare(epoch, Height(h), root, witness, reader.node, signature)
        out.append(AddValidated(share))
    return out


def _heights(reader: Reader, kind: type) -> list[int]:
    top = reader.chain.finalized_height + GAP_MAX
    certified = reader.context.state.certified_height
    return [h for h in reader.pool.unvalidated.heights(kind) if certified < h <= top]


def _validate(reader: Reader) -> list[Mutation]:
    pool, scheme = reader.pool, reader.context.scheme
    out: list[Mutation] = []
    for h in _heights(reader, Certification):
        for full in pool.unvalidated.at(Certification, h):
            if pool.validated.has(Certification, h):
                out.append(RemoveUnvalidated(full))
                continue
            fault = witness_fault(full.root, full.witness, h)
            key = reader.high(h).public_key
            if fault is None and not scheme.verify_threshold(
                key, certification_message(full.root), full.signature
            ):
                fault = "wrong signature"
            out.append(HandleInvalid(full, fault) if fault else MoveToValidated(full))
    if out:
        return out
    for h in _heights(reader, CertificationShare):
        transcript = reader.high(h)
        signers = {bytes(s.signer) for s in pool.validated.at(CertificationShare, h)}
        for share in pool.unvalidated.at(CertificationShare, h):
            if pool.validated.has(Certification, h) or bytes(share.signer) in signers:
                out.append(RemoveUnvalidated(share))
                continue
            signers.add(bytes(share.signer))
            index = transcript.index_of(share.signer)
            fault = witness_fault(share.root, share.witness, h)
            if index is None:
                fault = "the signer is not in the committee"
            elif fault is None and not scheme.verify_threshold(
                transcript.share_keys[index], certification_message(share.root), share.signature
            ):
                fault = "wrong signature"
            out.append(HandleInvalid(share, fault) if fault else MoveToValidated(share))
    return out


def _aggregate(reader: Reader) -> list[Mutation]:
    pool = reader.pool
    out: list[Mutation] = []
    for h in pool.validated.heights(CertificationShare):
        if h < reader.chain.cup.height or pool.validated.has(Certification, h):
            continue
        groups: dict[tuple[bytes, bytes], list[CertificationShare]] = {}
        for share in pool.validated.at(CertificationShare, h):
            groups.setdefault((share.root, share.witness), []).append(share)
        for (root, witness), shares in groups.items():
            message = certification_message(root)
            signature = combine(reader, reader.high(h), message, shares)
            if signature is not None:
                epoch = reader.chain.cup.epoch
                out.append(AddValidated(Certification(epoch, Height(h), root, witness, signature)))
    return out


def _purge(reader: Reader) -> list[Mutation]:
    """Keep full certifications back to the CUP, shares of what is not certified yet."""
    pool, cup = reader.pool, reader.chain.cup.height
    out: list[Mutation] = []
    certified = Height(max(reader.context.state.certified_height + 1, cup))
    for kind, height in ((CertificationShare, certified), (Certification, cup)):
        sections = (pool.validated, pool.unvalidated)
        if any(h < height for s in sections for h in s.heights(kind)):
            out.append(PurgeBelow(Height(height), (kind,), True, True))
    stale = [h for h in pool.unvalidated.heights(Certification) if h < certified]
    if stale:
        out.append(PurgeBelow(certified, (Certification,), False, True))
    return out


def divergence(reader: Reader) -> tuple[CertificationShare, CertificationShare] | None:
    """Return two valid shares for different roots at the first uncertified height, if any."""
    height = reader.context.state.certified_height + 1
    shares = reader.pool.validated.at(CertificationShare, height)
    for other in shares[1:]:
        if other.root != shares[0].root:
            return shares[0], other
    return None
