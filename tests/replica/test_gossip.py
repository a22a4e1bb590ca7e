"""What peers are not sent: only what they have shown to hold."""

from __future__ import annotations

import pytest

from replica.p2p.gossip import Evidence, is_lazy
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    BeaconShare,
    CertificationShare,
    CupShare,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Tape,
    TapeShare,
)
from replica.protocol.ids import Epoch, Height, NodeId, Principal

E, NODE = Epoch(1), NodeId(Principal(b"node"))
BLOCK, OTHER = b"b" * 32, b"o" * 32


def h(height: int) -> Height:
    return Height(height)


NOTARIZED = Notarization(E, h(5), BLOCK, (NODE,), b"s")
FINAL = Finalization(E, h(5), BLOCK, (NODE,), b"s")
BEACON, TAPE = Beacon(E, h(5), b"p", b"s"), Tape(E, h(5), b"s")


@pytest.mark.parametrize(
    ("shown", "held", "not_held"),
    [
        (FinalizationShare(E, h(5), BLOCK, NODE, b"s"), [NOTARIZED], [FINAL, BEACON, TAPE]),
        (FinalizationShare(E, h(5), OTHER, NODE, b"s"), [], [NOTARIZED, FINAL]),
        (NotarizationShare(E, h(5), BLOCK, NODE, b"s"), [], [NOTARIZED, BEACON]),
        (NotarizationShare(E, h(6), OTHER, NODE, b"s"), [BEACON], [NOTARIZED]),
        (BeaconShare(E, h(6), b"p", NODE, b"s"), [BEACON], [NOTARIZED, TAPE]),
        (TapeShare(E, h(6), NODE, b"s"), [FINAL], [TAPE, NOTARIZED]),
        (TapeShare(E, h(5), NODE, b"s"), [], [FINAL]),
        (CertificationShare(E, h(5), b"r", b"w", NODE, b"s"), [TAPE, FINAL], [NOTARIZED]),
        (NOTARIZED, [NOTARIZED], [FINAL]),
    ],
)
def test_what_a_signature_presupposes(
    shown: Artifact, held: list[Artifact], not_held: list[Artifact]
) -> None:
    evidence = Evidence()
    evidence.note(shown)
    assert all(evidence.covers(a) for a in held)
    assert not any(evidence.covers(a) for a in not_held)


def test_shares_and_packages_are_never_held_back() -> None:
    assert not is_lazy(CupShare(E, h(5), b"h", NODE, b"s"), NODE)
    assert not is_lazy(TapeShare(E, h(5), NODE, b"s"), NODE)
    assert is_lazy(NOTARIZED, NODE)
    assert not Evidence().covers(NOTARIZED), "who shows nothing is sent everything"
