"""Certifier: collects the subnet's signature on the state tree of every executed height.

Works on a pool of its own. A share whose root is not ours is kept: with a valid signature it is
evidence of a divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

from replica.consensus.pool import (
    AddValidated,
    HandleInvalid,
    MoveToValidated,
    Mutation,
    PurgeBelow,
    RemoveUnvalidated,
    Section,
)
from replica.consensus.purger import SLACK
from replica.consensus.reader import GAP_MAX, Reader, Status
from replica.consensus.shares import ThresholdCommittee, gather, judge
from replica.protocol.artifacts import (
    Certification,
    CertificationShare,
    certification_message,
)
from replica.protocol.certification import witness_fault
from replica.protocol.ids import Height


def sign(reader: Reader) -> list[Mutation]:
    if reader.status is Status.HALTED:
        return []
    state, epoch = reader.context.state, reader.chain.cup.epoch
    out: list[Mutation] = []
    for h in state.uncertified_heights():
        if h <= reader.chain.cup.height or reader.pool.validated.has(Certification, h):
            continue
        high = reader.high(h)
        if reader.has_signed(CertificationShare, h):
            continue
        secret = reader.share_of(high)
        if secret is None:
            continue
        found = state.certified_root_at(h)
        if found is None:
            continue
        root, witness = found
        signature = reader.context.scheme.sign_threshold(secret, certification_message(root))
        share = CertificationShare(epoch, Height(h), root, witness, reader.node, signature)
        out.append(AddValidated(share))
    return out


def _heights(reader: Reader, section: Section, kind: type) -> list[int]:
    """Return heights at which it can be judged: a missing summary or registry version costs no
    other height its verdicts."""
    top = min(reader.chain.finalized_height + GAP_MAX, reader.known_until)
    certified = reader.context.state.certified_height
    return [h for h in section.heights(kind) if certified < h <= top]


def validate(reader: Reader) -> list[Mutation]:
    pool, scheme = reader.pool, reader.context.scheme
    out: list[Mutation] = []
    for h in _heights(reader, pool.unvalidated, Certification):
        is_here = pool.validated.has(Certification, h)
        for full in pool.unvalidated.at(Certification, h):
            if is_here:
                out.append(RemoveUnvalidated(full))
                continue
            fault = witness_fault(full.root, full.witness, reader.epoch, h)
            key = reader.high(h).public_key
            if fault is None and not scheme.verify_threshold(
                key, certification_message(full.root), full.signature
            ):
                fault = "wrong signature"
            out.append(HandleInvalid(full, fault) if fault else MoveToValidated(full))
            is_here = fault is None
    return out


def aggregate(reader: Reader) -> list[Mutation]:
    """Combine shares on one root. Shares on several roots are each checked: they are evidence."""
    pool = reader.pool
    sections = (pool.validated, pool.unvalidated)
    heights = {h for s in sections for h in _heights(reader, s, CertificationShare)}
    out: list[Mutation] = []
    for h in sorted(heights):
        if h >= reader.chain.cup.height and not pool.validated.has(Certification, h):
            out += _aggregate_at(reader, Height(h))
    return out


def _aggregate_at(reader: Reader, height: Height) -> list[Mutation]:
    waiting = _by_content(reader.pool.unvalidated.at(CertificationShare, height))
    valid = _by_content(reader.pool.validated.at(CertificationShare, height))
    transcript = reader.high(height)
    committee = ThresholdCommittee(reader.context.scheme, transcript)
    contents = list(dict.fromkeys([*valid, *waiting]))
    out: list[Mutation] = []
    for root, witness in contents:
        content = (root, witness)
        mine = waiting.get(content, [])
        is_enough = len(mine) + len(valid.get(content, ())) >= transcript.threshold
        if not is_enough and (not mine or len(contents) == 1):
            continue
        fault = witness_fault(root, witness, reader.epoch, height) if mine else None
        if fault:
            out += [HandleInvalid(s, fault) for s in mine]
            continue
        out += _of_content(reader, committee, height, content, mine, len(contents) > 1)
    return out


def _by_content(
    shares: Sequence[CertificationShare],
) -> dict[tuple[bytes, bytes], list[CertificationShare]]:
    """Return shares by (root, witness), in order of arrival."""
    found: dict[tuple[bytes, bytes], list[CertificationShare]] = {}
    for share in shares:
        found.setdefault((share.root, share.witness), []).append(share)
    return found


def _of_content(
    reader: Reader,
    committee: ThresholdCommittee,
    height: Height,
    content: tuple[bytes, bytes],
    waiting: list[CertificationShare],
    is_disputed: bool,
) -> list[Mutation]:
    """Combine the shares on one root; where there are others, check those that wait."""
    root, witness = content
    message = certification_message(root)
    verdicts, found = gather(
        reader,
        CertificationShare,
        height,
        committee,
        message,
        lambda s: (s.root, s.witness) == content,
    )
    if found:
        epoch = reader.chain.cup.epoch
        full = Certification(epoch, height, root, witness, found.signature)
        return [*verdicts, AddValidated(full)]
    if is_disputed and not verdicts:
        return judge(reader, committee, message, waiting)
    return verdicts


def purge(reader: Reader) -> list[Mutation]:
    """Keep full certifications back to the CUP, shares of what is not certified yet."""
    pool, cup = reader.pool, reader.chain.cup.height
    out: list[Mutation] = []
    certified = Height(max(reader.context.state.certified_height + 1, cup))
    for kind, height in ((CertificationShare, certified), (Certification, cup)):
        sections = (pool.validated, pool.unvalidated)
        if any(s.has_below(height - SLACK, (kind,)) for s in sections):
            out.append(PurgeBelow(Height(height), (kind,), True, True))
    if pool.unvalidated.has_below(certified - SLACK, (Certification,)):
        out.append(PurgeBelow(certified, (Certification,), False, True))
    return out
