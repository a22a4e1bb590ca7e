"""Which signatures of one node are held here, and whether those that peers show are genuine.

A mark says that a node signed for a block: (kind, height, block's hash). A full notarization is
worth a share of each of its signers, so it leaves the same mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from replica.consensus.pool import Pool, Section
from replica.consensus.reader import Reader
from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    BlockProposal,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
)
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.errors import Unavailable
from replica.protocol.ids import NodeId
from replica.protocol.signed import ITEMS_MAX, Question, Signed, SignedHeader

Mark = tuple[type, int, bytes]
Item = SignedHeader | NotarizationShare | FinalizationShare | Notarization | Finalization

_MESSAGES = {
    NotarizationShare: artifacts.notarization_message,
    Notarization: artifacts.notarization_message,
    FinalizationShare: artifacts.finalization_message,
    Finalization: artifacts.finalization_message,
}
_MARKS: dict[type, type] = {
    SignedHeader: BlockProposal,
    Notarization: NotarizationShare,
    Finalization: FinalizationShare,
}


def own_mark(artifact: Artifact, node: NodeId) -> Mark | None:
    """Return the mark of what a node signs with its own name; None: it is no such thing."""
    kind = type(artifact)
    if isinstance(artifact, BlockProposal):
        hash_ = artifacts.block_hash(artifact.block)
        return (kind, artifact.height, hash_) if artifact.maker == node else None
    if isinstance(artifact, NotarizationShare | FinalizationShare):
        return (kind, artifact.height, artifact.block) if artifact.signer == node else None
    return None


def mark_in(artifact: Artifact, node: NodeId) -> Mark | None:
    """Do as `own_mark`, also for full signatures that name the node."""
    if isinstance(artifact, Notarization | Finalization):
        mark = (_MARKS[type(artifact)], artifact.height, artifact.block)
        return mark if node in artifact.signers else None
    return own_mark(artifact, node)


def mark_of(item: Item) -> Mark:
    """Return the mark of what is shown as some node's."""
    if isinstance(item, SignedHeader):
        return (BlockProposal, item.height, artifacts.block_hash(item.block))
    return (_MARKS.get(type(item), type(item)), item.height, item.block)


# -- what is held here


def held(pool: Pool, node: NodeId, question: Question) -> Signed:
    """Return what a pool holds of a node's signatures, valid or waiting.

    Of full signatures those that were verified: others may have been forged by whoever sent them.
    """
    both, above = (pool.validated, pool.unvalidated), question.above
    blocks = [p for p in _owned(both, BlockProposal, node, above) if p.block.run == question.run]
    return Signed(
        tuple([SignedHeader(p.block, p.signature) for p in blocks]),
        tuple(_owned(both, NotarizationShare, node, above)),
        tuple(_owned(both, FinalizationShare, node, above)),
        tuple(_full(pool.validated, Notarization, node, above)),
        tuple(_full(pool.validated, Finalization, node, above)),
    ).bounded()


def _owned(sections: tuple[Section, ...], kind: type[Any], node: NodeId, above: int) -> list[Any]:
    """Return the newest `ITEMS_MAX` of a kind, highest first."""
    heights = sorted({h for s in sections for h in s.heights(kind) if h > above}, reverse=True)
    found = (a for h in heights for s in sections for a in s.owned(kind, h, node))
    return list(islice(found, ITEMS_MAX))


def _full(section: Section, kind: type[Any], node: NodeId, above: int) -> list[Any]:
    heights = [h for h in reversed(section.heights(kind)) if h > above]
    found = (a for h in heights for a in section.at(kind, h) if node in a.signers)
    return list(islice(found, ITEMS_MAX))


# -- what is shown to us


def items(answer: Signed) -> Iterator[Item]:
    """Yield what an answer holds, highest first."""
    all_: list[Item] = [
        *answer.headers,
        *answer.notarization_shares,
        *answer.finalization_shares,
        *answer.notarizations,
        *answer.finalizations,
    ]
    yield from sorted(all_, key=lambda i: -i.height)


UNPROVEN = ""
"""Proves nothing, and is no fault of who shows it: nobody checks a share that waits, and the keys
of a height of which no summary tells yet are guessed."""


def fault_of(reader: Reader, item: Item) -> str | None:
    """Return why something proves nothing against this node, in this run; None: it is genuine.

    Raises: Unavailable when it names signers whose keys are not known here.
    """
    if isinstance(item, SignedHeader):
        return _header_fault(reader, item)
    node, keys = reader.node, reader.context.keys
    if item.epoch != reader.epoch:
        return "of another epoch"
    message = _MESSAGES[type(item)](reader.subnet, item.epoch, reader.run, item.height, item.block)
    if isinstance(item, NotarizationShare | FinalizationShare):
        if item.signer != node:
            return "a share of somebody else"
        is_mine = reader.context.scheme.sign_multi(keys.committee, message) == item.signature
        return None if is_mine else UNPROVEN
    if node not in item.signers or len(set(item.signers)) < len(item.signers):
        return "not signed by this node"
    public_keys = _committee_keys(reader, item.height, item.signers)
    if reader.context.scheme.verify_multi(public_keys, message, item.signature):
        return None
    return "wrong signature" if reader.knows(item.height) else UNPROVEN


def _header_fault(reader: Reader, item: SignedHeader) -> str | None:
    block = item.block
    if (block.subnet, block.epoch, block.run) != (reader.subnet, reader.epoch, reader.run):
        return "a block of another run"
    message = artifacts.block_message(
        reader.subnet, block.epoch, block.run, block.height, artifacts.block_hash(block)
    )
    key = reader.context.keys.signing.public_key
    return None if verify_ed25519(key, message, item.signature) else "wrong signature"


def _committee_keys(reader: Reader, height: int, signers: tuple[NodeId, ...]) -> list[bytes]:
    """Return the signers' keys: at heights of which no summary tells yet, the newest ones.

    Which version they are of matters little: whoever is in it has proven to hold its key, so no
    set of them makes a signature that verifies without ours. Raises: Unavailable.
    """
    registry = reader.context.registry
    if reader.knows(height):
        known = reader.settings_at(height).keys
    else:
        known = registry.subnet(registry.latest_version).keys
    if not all(s in known for s in signers):
        raise Unavailable("a signer whose key is not known here")
    return [known[s].committee for s in signers]
