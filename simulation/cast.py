"""The Byzantine members of a simulated subnet, each with its role: who sends what in its stead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replica.protocol.artifacts import Artifact, BeaconShare, DkgDealing
from simulation.adversary import BadDealer, Equivocator, Forger
from simulation.byzantine import Accuser, Tripler, Withholder
from simulation.copies import Copies
from simulation.floods import Flooder, spoiled
from simulation.past import Past

if TYPE_CHECKING:
    from simulation.subnet import Node, World


class Cast:
    def __init__(self, world: World) -> None:
        self.world, plan = world, world.plan
        self.bad_dealer = BadDealer(world)
        self.flooder, self.old_copies = Flooder(world), Copies(world)
        self.past = Past(world)
        self.accuser, self.equivocator = Accuser(world), Equivocator(world)
        self.tripler = Tripler(world)
        self.silent: set[int] = set()
        """Nodes that send nothing any more."""
        self.gone: set[int] = set()
        """Nodes that are never started again."""
        self._roles = (
            (plan.forgers, Forger(world)),
            (plan.equivocators, self.equivocator),
            (plan.withholders, Withholder(world)),
            (plan.accusers, self.accuser),
            (plan.triplets, self.tripler),
        )

    def send(self, node: Node, artifact: Artifact) -> None:
        """Carry out that a node sends an artifact: as it should, unless it has a role."""
        if node.index in self.silent or self._deals_badly(node, artifact):
            return
        for players, role in self._roles:
            if node.index in players:
                role.send(node, artifact)
                return
        self.world.network.pass_on(node.index, node.keys.node, artifact)

    def _deals_badly(self, node: Node, artifact: Artifact) -> bool:
        """Whether a bad dealer deals in its own way; now and then it slanders others."""
        plan = self.world.plan
        if isinstance(artifact, DkgDealing) and self._complains_of_itself(node, artifact):
            dealt = spoiled(self.world, node, artifact)
            self.world.network.broadcast(node.index, dealt)
            return True
        if node.index not in plan.bad_dealers:
            return False
        if isinstance(artifact, DkgDealing):
            self.bad_dealer.send(node, artifact)
            return True
        middle = artifact.height % (plan.interval + 1) == plan.interval // 2
        if isinstance(artifact, BeaconShare) and middle:
            self.bad_dealer.slander(node, node.package)
        return False

    def _complains_of_itself(self, node: Node, dealing: DkgDealing) -> bool:
        """Whether a flooder will flood with true complaints: those can differ on the curve only."""
        plan = self.world.plan
        return (
            plan.real_bls
            and dealing.dealer == node.keys.node
            and any(node.index in f.nodes for f in plan.faults if f.what == "complaints")
        )

    def offers_nothing(self, node: Node) -> bool:
        """Whether a node also keeps from peers that connect what it holds."""
        return node.index in self.silent or node.index in self.world.plan.withholders
