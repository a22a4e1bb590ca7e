"""Heights of which all makers are proven equivocators, as when too many old copies came back."""

from __future__ import annotations

from replica.protocol.artifacts import EquivocationProof
from replica.protocol.ids import Height
from simulation.checker import Violation
from simulation.floods import FLOODS, Member
from simulation.plan import Plan
from simulation.scheduler import SECOND
from simulation.subnet import Node, World

HEIGHTS = 10
PATIENCE_NS = 20 * SECOND


class Guilty(World):
    """Four members, all but one of which have made two blocks at each of ten heights."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, Plan(interval=49))
        self.first = Height(0)
        """The lowest of the heights."""

    def is_honest(self, node: Node) -> bool:
        return node.index == 0

    def prove_all(self) -> None:
        """Let every replica have the proofs, a little above its tip."""
        for driver in [n.driver for n in self.nodes if n.driver is not None]:
            self.first = Height(max(self.first, driver.chain.notarized_height + 4))
        for node in self.nodes[1:]:
            for proof in [self._proof(node, self.first + k) for k in range(HEIGHTS)]:
                for witness in self.nodes:
                    assert witness.driver is not None
                    witness.driver.receive(proof, node.keys.node, self.now)

    def _proof(self, node: Node, height: int) -> EquivocationProof:
        assert node.driver is not None
        member = Member(self, node, "proofs", node.driver)
        made = FLOODS["proofs"](member, Height(height), 0)
        assert isinstance(made, EquivocationProof)
        return made

    def goes_on(self) -> None:
        """Raises: Violation."""
        self.run(lambda: self.finalized_height() >= 5, PATIENCE_NS)
        self.prove_all()
        wanted = self.first + HEIGHTS + 5
        if not self.run(lambda: self.finalized_height() >= wanted, PATIENCE_NS):
            raise Violation(f"it stands at {self.finalized_height()}, below {wanted}")
