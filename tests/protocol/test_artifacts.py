"""Artifacts on the wire: what is read of them before, and instead of, decoding."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.protocol import artifacts
from replica.protocol.artifacts import Artifact, BlockProposal
from replica.protocol.errors import Malformed
from simulation.plan import Plan
from simulation.scheduler import SECOND
from simulation.subnet import World


@pytest.fixture(scope="module")
def samples() -> list[Artifact]:
    """At least one artifact of most kinds, as a running subnet makes them."""
    world = World(3, Plan(equivocators=(1,), payload_bytes=50))
    assert world.run(lambda: world.cup_height() >= 16, 60 * SECOND)
    found: list[Artifact] = []
    for node in world.nodes:
        found += list(node.durable)
    return found


def test_peeking_tells_what_decoding_tells(samples: list[Artifact]) -> None:
    assert len({type(a) for a in samples}) >= 13
    for artifact in samples:
        raw = artifacts.encode(artifact)
        assert contents(artifacts.decode(raw)) == contents(artifact)
        peeked = artifacts.peek(raw)
        if isinstance(artifact, BlockProposal):
            assert peeked is None
        else:
            assert peeked == (type(artifact), artifact.height)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_peeking_at_anything_never_fails(raw: bytes) -> None:
    peeked = artifacts.peek(raw)
    assert peeked is None or (peeked[0] in artifacts.KINDS and peeked[1] >= 0)


def contents(artifact: Artifact) -> tuple[object, ...]:
    """Artifacts are equal when their bytes are; this is what they say."""
    return (type(artifact), *(getattr(artifact, f.name) for f in fields(artifact)))


def test_a_changed_byte_is_another_artifact_or_none(samples: list[Artifact]) -> None:
    """No two encodings of one artifact: every flip is refused or decodes to something else."""
    for artifact in samples[:: max(1, len(samples) // 60)]:
        raw = artifacts.encode(artifact)
        for where in range(0, len(raw), max(1, len(raw) // 40)):
            flipped = bytearray(raw)
            flipped[where] ^= 1 + sha256(raw[:where]).digest()[0] % 255
            artifacts.peek(bytes(flipped))
            try:
                other = artifacts.decode(bytes(flipped))
            except Malformed:
                continue
            assert other != artifact and contents(other) != contents(artifact)
            assert artifacts.encode(replace(other)) == bytes(flipped), "made anew from its fields"
