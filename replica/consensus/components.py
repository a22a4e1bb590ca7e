"""The components of consensus in their order, and what each of them reads.

The driver asks a component again when something in its `reads` has changed, or when a time has come
for which it waits (`Reader.is_due`). What is missing
there is a liveness bug: simulations run with `Driver(exhaustive=True)`, which asserts after every
step that each component, asked anyway, has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from replica.certification import certifier
from replica.consensus import (
    aggregator,
    beacon_maker,
    block_maker,
    cup_maker,
    dkg,
    finalizer,
    notary,
    purger,
    validator,
)
from replica.consensus.pool import Mutation
from replica.consensus.reader import Reader
from replica.protocol.artifacts import (
    Beacon,
    BeaconShare,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)

STATE, REGISTRY, SUMMARY = "state", "registry", "summary"
Topic = str | tuple[bool, type]
"""STATE, REGISTRY, SUMMARY, or (is it the validated section, kind of artifact)."""


def _valid(*kinds: type) -> frozenset[Topic]:
    return frozenset((True, kind) for kind in kinds)


def _waiting(*kinds: type) -> frozenset[Topic]:
    return frozenset((False, kind) for kind in kinds)


def _both(*kinds: type) -> frozenset[Topic]:
    return _valid(*kinds) | _waiting(*kinds)


@dataclass(frozen=True, slots=True)
class Component:
    name: str
    run: Callable[[Reader], list[Mutation]]
    reads: frozenset[Topic]
    on_certifications: bool = False
    """Whether it works on the pool of certifications."""
    signs: bool = False
    """Whether it signs with this node's keys: while the node is silent it is not asked."""


_ANY = frozenset((REGISTRY, SUMMARY))
"""Everyone: a registry version that was missing may have come, signing may have been forbidden, or
another summary, and with it another committee, be in force."""
_TIPS = _valid(Finalization)
_CHAIN = _TIPS | _valid(BlockProposal, Notarization)
_TURN = _CHAIN | _valid(Beacon, EquivocationProof) | {STATE}

_TABLE: tuple[tuple[str, Callable[[Reader], list[Mutation]], frozenset[Topic]], ...] = (
    ("finalizer", finalizer.make, _valid(BlockProposal, Notarization)),
    ("cup maker", cup_maker.make, _CHAIN | _valid(Beacon) | {STATE}),
    ("purger", purger.make, _TIPS | _valid(Beacon) | {STATE}),
    ("beacon aggregator", aggregator.beacons, _both(BeaconShare) | _valid(Beacon)),
    ("tape aggregator", aggregator.tapes, _TIPS | _both(TapeShare)),
    (
        "notarization aggregator",
        aggregator.notarizations,
        _valid(BlockProposal, Notarization) | _both(NotarizationShare),
    ),
    (
        "finalization aggregator",
        aggregator.finalizations,
        _valid(BlockProposal, Notarization) | _both(FinalizationShare),
    ),
    ("cup aggregator", aggregator.cups, _TIPS | _valid(Beacon) | _both(CupShare) | {STATE}),
    ("notary", notary.make, _TURN),
    ("beacon maker", beacon_maker.make_beacon, _valid(Beacon, Notarization)),
    ("tape maker", beacon_maker.make_tape, _TIPS | {STATE}),
    (
        "block maker",
        block_maker.make,
        _valid(Notarization, Beacon, EquivocationProof, BlockProposal) | {STATE},
    ),
    ("cup validator", validator.cups, _TIPS | _waiting(Cup) | {STATE}),
    ("beacon validator", validator.beacons, _both(Beacon)),
    ("block validator", validator.blocks, _TURN | _waiting(BlockProposal, Notarization)),
    ("notarization validator", validator.notarizations, _CHAIN | _waiting(Notarization)),
    ("finalization validator", validator.finalizations, _CHAIN | _waiting(Finalization)),
    ("tape validator", validator.tapes, _TIPS | _waiting(Tape)),
    ("dealer", dkg.deal, frozenset()),
    ("accuser", dkg.complain, _valid(Notarization, BlockProposal)),
    (
        "dealing validator",
        dkg.validate,
        _waiting(DkgDealing, DkgComplaint) | _valid(DkgDealing, Notarization, BlockProposal),
    ),
    (
        "equivocation validator",
        validator.equivocation_proofs,
        _CHAIN | _both(EquivocationProof),
    ),
)
_CERTIFICATION: tuple[tuple[str, Callable[[Reader], list[Mutation]], frozenset[Topic]], ...] = (
    ("certifier", certifier.sign, frozenset((STATE,))),
    ("certification validator", certifier.validate, _TIPS | _waiting(Certification)),
    (
        "certification aggregator",
        certifier.aggregate,
        _TIPS | _both(CertificationShare) | {STATE},
    ),
    ("certification purger", certifier.purge, frozenset((STATE,)) | _waiting(Certification)),
)
_SIGNERS = frozenset(
    (
        "finalizer",
        "cup maker",
        "notary",
        "beacon maker",
        "tape maker",
        "block maker",
        "dealer",
        "accuser",
        "certifier",
    )
)
COMPONENTS = tuple(
    Component(name, run, reads | _ANY, on_certifications, name in _SIGNERS)
    for table, on_certifications in ((_TABLE, False), (_CERTIFICATION, True))
    for name, run, reads in table
)
ALL = (1 << len(COMPONENTS)) - 1
SIGNERS = sum(1 << i for i, c in enumerate(COMPONENTS) if c.signs)
assert SIGNERS.bit_count() == len(_SIGNERS)


@lru_cache(maxsize=64)
def readers_of(topic: Topic) -> int:
    """Return the components that read a topic, component i as bit i."""
    return sum(1 << i for i, c in enumerate(COMPONENTS) if topic in c.reads)
