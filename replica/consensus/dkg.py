"""Distributed key generation on the chain: dealings and complaints in blocks, keys in summaries.

A summary names the receivers of the keys after next, and on the NNS also those of other subnets'
new keys, which its members deal at these subnets' request. During its interval dealers deal, blocks
collect dealings (in its first two thirds) and receivers' complaints; the next summary holds what
comes of the dealings nobody could complain about. Too few of them: the present key stays.

Source: reference/consensus.md §1.10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from replica.client.key_receiver import KeyOffer, KeyOffers, complaint_of
from replica.consensus.pool import (
    AddValidated,
    HandleInvalid,
    MoveToValidated,
    Mutation,
    RemoveUnvalidated,
)
from replica.consensus.reader import Reader, Status
from replica.protocol.artifacts import (
    DkgComplaint,
    DkgDealing,
    DkgMessage,
    Summary,
    payload_hash,
)
from replica.protocol.crypto import dkg
from replica.protocol.crypto.dkg import HIGH, LOW, Config, KeyRequest
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.errors import NotFound, Unavailable
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId

ATTEMPTS_MAX = 3
"""Intervals in which keys for another subnet are dealt before that is given up."""
REQUESTS_MAX = 2
"""Requests for other subnets' keys that are dealt for in one interval."""
NO_KEYS = "the registry knows no keys of the dealer"


def tags_of(summary: Summary) -> tuple[int, ...]:
    """Return the tags of all keys that are generated in the interval of a summary."""
    return tuple(range(LOW, HIGH + 1 + 2 * len(summary.requests)))


def _request(summary: Summary, tag: int) -> KeyRequest | None:
    """Return whose keys a tag stands for; None: this subnet's own."""
    return None if tag <= HIGH else summary.requests[(tag - HIGH - 1) // 2].request


def config_of(reader: Reader, summary: Summary, tag: int) -> Config:
    """Return what is generated under a tag in the interval that a summary opens."""
    known, key = reader.chain.configs, (payload_hash(summary), tag)
    if key not in known:
        newest, request = summary.next_high or summary.high, _request(summary, tag)
        opened = (reader.subnet, reader.chain.cup.epoch, summary.height, tag)
        if request is None:
            known[key] = dkg.config(*opened, summary.receivers, newest)
        else:
            known[key] = dkg.config_of_request(*opened, summary.receivers, request)
    return known[key]


def last_dealing_height(summary: Summary) -> int:
    """Return up to where blocks take dealings; complaints have the rest of the interval."""
    return summary.height + 1 + 2 * summary.interval_length // 3


def _open(reader: Reader) -> Summary:
    return reader.chain.summary_at(reader.chain.finalized_height)


# --- making ----------------------------------------------------------------------------------


def deal(reader: Reader) -> list[Mutation]:
    """Deal once for each key that is generated in this interval and asks for us."""
    summary = _open(reader)
    if reader.status is Status.HALTED or reader.chain.notarized_height >= last_dealing_height(
        summary
    ):
        return []
    height = summary.height
    mine = {a.tag for a in reader.pool.validated.at(DkgDealing, height) if a.dealer == reader.node}
    tags = tags_of(summary)
    if len(mine) == len(tags):
        return []
    missing = [t for t in tags if t not in mine]
    made = [_dealing_of(reader, summary, tag) for tag in missing]
    return [AddValidated(dealing) for dealing in made if dealing is not None]


def _dealing_of(reader: Reader, summary: Summary, tag: int) -> DkgDealing | None:
    """Return this node's dealing of a key; None: it has no part in it, or can't deal yet."""
    config = config_of(reader, summary, tag)
    if reader.node not in config.dealers:
        return None
    share = None
    if config.reshared is not None:
        share = reader.share_of(summary.next_high or summary.high)
        if share is None:
            return None
    keys = reader.context.keys
    seed = sha256(b"dealing seed" + keys.dealing)
    try:
        receivers = {r: _dealing_key(reader, summary, tag, r) for r in config.receivers}
    except Unavailable:  # a registry version is missing: other keys are dealt meanwhile
        return None
    made = reader.context.dkg.deal(config, reader.node, seed, share, receivers)
    signature = keys.signing.sign(dkg.message(config, made))
    epoch = reader.chain.cup.epoch
    return DkgDealing(epoch, summary.height, tag, reader.node, made, signature)


def complain(reader: Reader) -> list[Mutation]:
    """Complain of dealings on the chain in which this node's share is wrong."""
    summary = _open(reader)
    if reader.status is Status.HALTED:
        return []
    parents = reader.chain.notarized_at(reader.chain.notarized_height)
    of_parent = reader.chain.summary_of(parents[0].hash) if parents else None
    if of_parent is None or of_parent.height != summary.height:
        return []
    dealt = reader.chain.dealt(parents[0].hash)
    if dealt is reader.chain.shares_good:
        return []
    bad = [m for m in dealt if isinstance(m, DkgDealing) and not _opens(reader, summary, m)]
    if not bad:
        reader.chain.shares_good = dealt
    known = reader.pool.validated
    unsaid = [m for m in bad if not known.owned(DkgComplaint, m.height, (m.tag, m.dealer))]
    return [AddValidated(_complaint(reader, summary, message)) for message in unsaid]


def _opens(reader: Reader, summary: Summary, message: DkgDealing) -> bool:
    """Whether our share in a dealing is right; looked at once."""
    known = reader.chain.shares_checked
    key = dkg.digest(message.dealing)
    config = config_of(reader, summary, message.tag)
    if reader.node not in config.receivers:
        return True
    if key not in known:
        secret = reader.context.keys.dealing
        known[key] = reader.context.dkg.opens(config, message.dealing, reader.node, secret)
    return known[key]


def _complaint(reader: Reader, summary: Summary, message: DkgDealing) -> DkgComplaint:
    config = config_of(reader, summary, message.tag)
    secret = reader.context.keys.dealing
    return complaint_of(reader.context.dkg, config, message, reader.node, secret)


def offers(reader: Reader) -> KeyOffers:
    """Return what is being dealt for other subnets, for its receivers to look at."""
    summary = _open(reader)
    known = _dealings_here(reader, summary).values()
    return KeyOffers(
        tuple(
            KeyOffer(config_of(reader, summary, tag), tuple(m for m in known if m.tag == tag))
            for tag in tags_of(summary)[2:]
        )
    )


# --- judging ---------------------------------------------------------------------------------


def validate(reader: Reader) -> list[Mutation]:
    """Give dealings and complaints of the open interval their verdicts."""
    summary = _open(reader)
    pool, height = reader.pool, summary.height
    out: list[Mutation] = []
    if not pool.unvalidated.has(DkgDealing, height) and not pool.unvalidated.has(
        DkgComplaint, height
    ):
        return out
    known = {(a.tag, a.dealer) for a in pool.validated.at(DkgDealing, height)}
    for dealing in pool.unvalidated.at(DkgDealing, height):
        subject = (dealing.tag, dealing.dealer)
        verdict = (
            RemoveUnvalidated(dealing)
            if subject in known
            else _judged(
                dealing,
                lambda d=dealing: _dealing_fault(reader, summary, d),  # type: ignore[misc]
            )
        )
        if isinstance(verdict, MoveToValidated):
            known.add(subject)
        if verdict is not None:
            out.append(verdict)
    if pool.unvalidated.has(DkgComplaint, height):
        out += _judge_complaints(reader, summary)
    return out


def _judge_complaints(reader: Reader, summary: Summary) -> list[Mutation]:
    """Take one complaint of a dealing: more prove nothing more."""
    pool, height = reader.pool, summary.height
    known = {(a.tag, a.dealer) for a in pool.validated.at(DkgComplaint, height)}
    dealings = _dealings_here(reader, summary)
    out: list[Mutation] = []
    for complaint in pool.unvalidated.at(DkgComplaint, height):
        subject, accused = (complaint.tag, complaint.dealer), dealings.get(complaint.dealing)
        if subject in known:
            out.append(RemoveUnvalidated(complaint))
            continue
        if accused is None:
            continue
        verdict = _judged(
            complaint,
            lambda c=complaint, a=accused: _complaint_fault(reader, summary, c, a),  # type: ignore[misc]
        )
        if isinstance(verdict, MoveToValidated):
            known.add(subject)
        if verdict is not None:
            out.append(verdict)
    return out


def _judged(message: DkgMessage, fault_of: Callable[[], str | None]) -> Mutation | None:
    """Return a verdict; None: a registry version is missing."""
    try:
        fault = fault_of()
    except Unavailable:
        return None
    if fault == NO_KEYS:  # our registry may be old
        return RemoveUnvalidated(message)
    return HandleInvalid(message, fault) if fault else MoveToValidated(message)


def fault_of_complaint(reader: Reader, complaint: DkgComplaint) -> str | None:
    """Judge a complaint that came from outside, before it takes a place in the pool."""
    summary = _open(reader)
    if (complaint.epoch, complaint.height) != (reader.epoch, summary.height):
        return "of another key generation"
    accused = _dealings_here(reader, summary).get(complaint.dealing)
    if accused is None:
        return "no such dealing is known here"
    return _complaint_fault(reader, summary, complaint, accused)


def _dealings_here(reader: Reader, summary: Summary) -> dict[bytes, DkgDealing]:
    """Return the dealings of an interval that are in the pool or on the notarized chain."""
    found: list[DkgMessage] = list(reader.pool.validated.at(DkgDealing, summary.height))
    for parent in reader.chain.notarized_at(reader.chain.notarized_height):
        found += reader.chain.dealt(parent.hash)
    return {dkg.digest(m.dealing): m for m in found if isinstance(m, DkgDealing)}


def _dealing_key(reader: Reader, summary: Summary, tag: int, receiver: NodeId) -> bytes:
    """Return what shares are sealed with for the receiver of a key."""
    request = _request(summary, tag)
    version = summary.next_registry_version if request is None else request.registry_version
    return reader.context.registry.node_keys(receiver, version).dealing


def _dealing_fault(reader: Reader, summary: Summary, message: DkgDealing) -> str | None:
    if message.tag not in tags_of(summary):
        return "there is no such key"
    config = config_of(reader, summary, message.tag)
    fault = reader.context.dkg.fault(config, message.dealer, message.dealing)
    if fault:
        return fault
    try:
        registry, version = reader.context.registry, summary.next_registry_version
        key = registry.node_keys(message.dealer, version).signing
    except NotFound:
        return NO_KEYS
    signed = dkg.message(config, message.dealing)
    return None if verify_ed25519(key, signed, message.signature) else "wrong signature"


def _complaint_fault(
    reader: Reader, summary: Summary, complaint: DkgComplaint, accused: DkgDealing
) -> str | None:
    if (complaint.tag, complaint.dealer) != (accused.tag, accused.dealer):
        return "it names another dealing"
    config = config_of(reader, summary, complaint.tag)
    if complaint.accuser not in config.receivers:
        return "the accuser receives no share"
    key = _dealing_key(reader, summary, complaint.tag, complaint.accuser)
    good = reader.context.dkg.is_justified(
        config, accused.dealing, complaint.accuser, key, complaint.complaint
    )
    return None if good else "the complaint is not justified"


# --- blocks ----------------------------------------------------------------------------------


def select(reader: Reader, parent: bytes, height: int) -> tuple[DkgMessage, ...]:
    """Return what a block of ours carries of the key generation that is open at its parent."""
    summary = reader.chain.summary_of(parent)
    if summary is None:
        return ()
    before = reader.chain.dealt(parent)
    space = reader.settings_at(height).dealings_per_block_max
    chosen: list[DkgMessage] = []
    done = {_subject(m) for m in before}
    accusable = {dkg.digest(m.dealing) for m in before if isinstance(m, DkgDealing)}
    for complaint in reader.pool.validated.at(DkgComplaint, summary.height):
        if len(chosen) < space and complaint.dealing in accusable:
            if _subject(complaint) not in done:
                done.add(_subject(complaint))
                chosen.append(complaint)
    if height <= last_dealing_height(summary):
        counts = _counts(before)
        for dealing in reader.pool.validated.at(DkgDealing, summary.height):
            wanted = config_of(reader, summary, dealing.tag).wanted
            if len(chosen) < space and counts[dealing.tag] < wanted:
                if _subject(dealing) not in done:
                    counts[dealing.tag] += 1
                    chosen.append(dealing)
    return tuple(chosen)


def _subject(message: DkgMessage) -> tuple[int, NodeId, bool]:
    """A dealer is heard once on each key, and complained of once."""
    return message.tag, message.dealer, isinstance(message, DkgComplaint)


def _counts(messages: Iterable[DkgMessage]) -> Counter[int]:
    dealings = [m.tag for m in messages if isinstance(m, DkgDealing)]
    return Counter(dealings)


def payload_fault(
    reader: Reader, parent: bytes, height: int, messages: tuple[DkgMessage, ...]
) -> str | None:
    """Return what is wrong with the key generation in a block."""
    if not messages:
        return None
    summary = reader.chain.summary_of(parent)
    if summary is None or len(messages) > reader.settings_at(height).dealings_per_block_max:
        return "too much of key generation in one block"
    before = reader.chain.dealt(parent)
    done, counts = {_subject(m) for m in before}, _counts(before)
    accusable = {dkg.digest(m.dealing): m for m in before if isinstance(m, DkgDealing)}
    for message in messages:
        if (message.epoch, message.height) != (reader.chain.cup.epoch, summary.height):
            return "of another key generation"
        if _subject(message) in done:
            return "said before"
        done.add(_subject(message))
        if isinstance(message, DkgComplaint):
            accused = accusable.get(message.dealing)
            if accused is None:
                return "a complaint of a dealing that is not there"
            fault = _complaint_fault(reader, summary, message, accused)
        else:
            fault = _dealing_fault(reader, summary, message)
            if fault is None:
                counts[message.tag] += 1
                if height > last_dealing_height(summary):
                    fault = "a dealing too late in the interval"
                elif counts[message.tag] > config_of(reader, summary, message.tag).wanted:
                    fault = "more dealings than are wanted"
        if fault:
            return fault
    return None


def outcome(reader: Reader, parent: bytes, summary: Summary) -> tuple[Transcript | None, ...]:
    """Return the keys that come of an interval that ends with this block, in order of their tags:
    the subnet's own two, then two for each request."""
    found = reader.chain.outcomes.get(parent)
    if found is None:
        messages = reader.chain.dealt(parent)
        made = [_generate(reader, summary, tag, messages) for tag in tags_of(summary)]
        found = reader.chain.outcomes[parent] = tuple(made)
    return found


def _generate(
    reader: Reader, summary: Summary, tag: int, messages: Iterable[DkgMessage]
) -> Transcript | None:
    of_tag = [m for m in messages if m.tag == tag]
    accused = {m.dealing for m in of_tag if isinstance(m, DkgComplaint)}
    good = {
        m.dealer: m.dealing
        for m in of_tag
        if isinstance(m, DkgDealing) and dkg.digest(m.dealing) not in accused
    }
    return reader.context.dkg.combine(config_of(reader, summary, tag), good)
