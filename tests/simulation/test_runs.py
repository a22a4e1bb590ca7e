"""Releases change under load: what was signed in one run proves nothing in another.

While a subnet halts for its next release the old one makes empty blocks above the package at which
it ends; the next one makes its own at the same heights. One member collects both signatures of
every honest maker, and accuses them, and itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from replica.consensus import block_maker
from replica.consensus import driver as d
from replica.consensus.delivery import Randomness
from replica.consensus.reader import Reader
from replica.protocol.artifacts import (
    Block,
    EquivocationProof,
    Notarization,
    ValidationContext,
)
from replica.protocol.ids import Height, TimeNs
from simulation import genesis, injection
from simulation.guilty import HEIGHTS, Guilty
from simulation.plan import Fault, Plan
from simulation.scheduler import MS, SECOND
from simulation.subnet import Node, World

BAD = 3


class Upgrading(World):
    """A subnet with slow checkpoints, so that releases overlap, and a member that accuses all."""

    def __init__(self, seed: int) -> None:
        self.proven: set[object] = set()
        """Makers whom some honest node took for equivocators."""
        plan = Plan(interval=19, delay_ms_max=5, accusers=(BAD,), checkpoint_ms=400)
        super().__init__(seed, plan)

    def publish_release(self, release: str) -> None:
        injection.inject(self, Fault(0, "release", (), 0, release))

    def releases_that_run(self) -> set[str]:
        return {n.run.release for n in self.nodes}

    def _carry_out(self, node: Node, effect: d.Effect) -> None:
        if isinstance(effect, d.Persist) and node.index != BAD:
            self.proven |= {a.maker for a in effect.artifacts if isinstance(a, EquivocationProof)}
        super()._carry_out(node, effect)


def heights(world: World) -> list[int]:
    """Of the honest nodes; 0 of one that is restarting."""
    return [n.driver.chain.finalized_height if n.driver else 0 for n in world.nodes[:BAD]]


@pytest.mark.parametrize("seed", range(4))
def test_two_releases_at_one_height_accuse_nobody(seed: int) -> None:
    world = Upgrading(seed)
    world.run(lambda: False, SECOND)
    for release in ("v2", "v1"):  # and back: another run of the first one
        world.publish_release(release)
        assert world.run(lambda r=release: world.releases_that_run() == {r}, 20 * SECOND)  # type: ignore[misc]
        began = max(heights(world))
        assert world.run(lambda b=began: min(heights(world)) >= b + 30, 10 * SECOND)  # type: ignore[misc]
    assert world.counts["honest makers accused"] > 0, "releases overlapped at some height"
    assert world.proven <= {world.nodes[BAD].keys.node}


def test_a_run_that_ended_stays_ended_when_its_release_is_called_back() -> None:
    """v2 and back to v1 at once: who runs v1 then runs it from the second change on."""
    world = Upgrading(7)
    world.run(lambda: False, SECOND)
    world.publish_release("v2")
    assert world.run(lambda: "v2" in world.releases_that_run(), 20 * SECOND)
    world.publish_release("v1")
    assert world.run(lambda: world.releases_that_run() == {"v1"}, 30 * SECOND)
    runs = {n.driver.run for n in world.nodes if n.driver}
    assert all(r.start > 0 for r in runs if r.release == "v1"), "not the run of genesis"
    began = min(heights(world))
    assert world.run(lambda: min(heights(world)) >= began + 30, 10 * SECOND)


def test_no_height_is_without_makers_when_all_of_them_are_proven_guilty() -> None:
    """As when old copies of two of four nodes signed once more: rank f + 1 steps in."""
    world = Guilty(3)
    world.goes_on()
    driver = world.nodes[0].driver
    assert driver is not None
    entries = [driver.chain.finalized_block(h) for h in range(world.first, world.first + HEIGHTS)]
    assert any(e is not None and e.block.rank > 1 for e in entries), "rank f + 1 stepped in"


class OneBad(World):
    """One member is not held to the protocol; it runs the code as it is in the test."""

    def is_honest(self, node: Node) -> bool:
        return node.index != BAD and super().is_honest(node)


def test_a_dishonest_makers_lead_over_the_clock_does_not_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(genesis, "NOTARY_DELAY_MS", 40)
    monkeypatch.setattr(genesis, "UNIT_DELAY_MS", 400)
    world = OneBad(1, Plan(interval=99, delay_ms_max=3))
    bad, honest = world.nodes[BAD].keys.node, block_maker._context

    def early(reader: Reader, parent: Block) -> ValidationContext | None:
        """Date a block as late as others may just take it when they sign."""
        made = honest(reader, parent)
        if made is None or reader.node != bad:
            return made
        seen = reader.pool.validated.first_time_at(Notarization, parent.height)
        passed = reader.now_ns - (reader.now_ns if seen is None else seen)
        latest = max(reader.wall_ns, parent.context.time_ns + passed) + 89 * MS
        return replace(made, time_ns=TimeNs(latest))

    monkeypatch.setattr(block_maker, "_context", early)
    world.run(lambda: False, 60 * SECOND)
    assert world.nodes[0].driver is not None
    tip = world.nodes[0].driver.chain.finalized_tip.block
    assert tip.context.time_ns - world.now < SECOND


def test_nobody_is_answered_with_randomness_known_before_the_block() -> None:
    drawn = Randomness(Height(10), b"r" * 32)
    assert drawn.for_request(Height(9)) == b"r" * 32
    with pytest.raises(ValueError, match="answers no request"):
        drawn.for_request(Height(10))
