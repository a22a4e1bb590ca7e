"""kill -9 of any one process in any phase of a recovery delays it, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from simulation.doubles import manifest_root
from simulation.recovery import PHASES, VICTIMS, RecoveryWorld
from simulation.scheduler import SECOND


def recover(seed: int, phase: str, victim: str) -> RecoveryWorld:
    world = RecoveryWorld(seed, phase, victim)
    assert world.run(world.healed, 60 * SECOND), f"{victim} killed in {phase}: no recovery"
    return world


def check(world: RecoveryWorld) -> None:
    """All phases were gone through, and the subnet goes on from the certified state."""
    assert world.reached == list(PHASES)
    assert world.recovery is not None
    ((state_height, state_hash),) = world.truth.items()
    assert state_height == world.diverge_at - 1, "everything that was certified is kept"
    for node in world.nodes:
        adopted = node.state.checkpoints.get(world.recovery.height)
        assert adopted is None or manifest_root(adopted) == state_hash
    assert world.recovery.height > state_height + 70
    assert len({bytes(n.package.content) for n in world.nodes if n.package.is_signed}) <= 2


@pytest.mark.parametrize("phase", PHASES)
def test_one_kill(phase: str, campaign: Counter[str]) -> None:
    undisturbed = recover(1, "none", "nns")
    check(undisturbed)
    for victim in VICTIMS:
        world = recover(1, phase, victim)
        check(world)
        assert world.kills == 1
        campaign[f"kills in {phase}"] += 1
