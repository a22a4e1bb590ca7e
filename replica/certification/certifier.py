"""Certifier: collects the subnet's signature on the state tree of every executed height.

Works on a pool of its own. A share whose root is not ours is kept: with a valid signature it is
evidence of a divergence.
"""

from __future__ import annotations

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
    top = reader.chain.finalized_height + GAP_MAX
    certified = reader.context.state.certified_height
    return [h for h in section.heights(kind) if certified < h <= top]


def validate(reader: Reader) -> list[Mutation]:
    pool, scheme = reader.pool, reader.context.scheme
    out: list[Mutation] = []
    for h in _heights(reader, pool.unvalidated, Certification):
        for full in pool.unvalidated.at(Certification, h):
            if pool.validated.has(Certification, h):
                out.append(RemoveUnvalidated(full))
                continue
            fault = witness_fault(full.root, full.witness, reader.epoch, h)
            key = reader.high(h).public_key
            if fault is None and not scheme.verify_threshold(
                key, certification_message(full.root), full.signature
            ):
                fault = "wrong signature"
            out.append(HandleInvalid(full, fault) if fault else MoveToValidated(full))
    return out


def aggregate(reader: Reader) -> list[Mutation]:
    """Combine shares on one root. Shares on several roots are each checked: they are evidence."""
    pool, epoch = reader.pool, reader.chain.cup.epoch
    sections = (pool.validated, pool.unvalidated)
    heights = {h for s in sections for h in _heights(reader, s, CertificationShare)}
    out: list[Mutation] = []
    for h in sorted(heights):
        if h < reader.chain.cup.height or pool.validated.has(Certification, h):
            continue
        waiting = pool.unvalidated.at(CertificationShare, h)
        both = [*pool.validated.at(CertificationShare, h), *waiting]
        contents = list(dict.fromkeys((s.root, s.witness) for s in both))
        if len(contents) == 1 and len(both) < reader.high(h).threshold:
            continue
        committee = ThresholdCommittee(reader.context.scheme, reader.high(h))
        for root, witness in contents:
            mine = [s for s in waiting if (s.root, s.witness) == (root, witness)]
            fault = witness_fault(root, witness, epoch, h) if mine else None
            if fault:
                out += [HandleInvalid(s, fault) for s in mine]
                continue
            message = certification_message(root)
            verdicts, found = gather(
                reader,
                CertificationShare,
                h,
                committee,
                message,
                lambda s, of=(root, witness): (s.root, s.witness) == of,  # type: ignore[misc]
            )
            out += verdicts
            if found:
                full = Certification(epoch, Height(h), root, witness, found.signature)
                out.append(AddValidated(full))
            elif len(contents) > 1 and not verdicts:
                out += judge(reader, committee, message, mine)
    return out


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
