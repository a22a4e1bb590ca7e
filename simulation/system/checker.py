"""What must hold of a whole swarm, seen from outside; names as in docs/guarantees.md.

Everything is kept by subnet and epoch: a recovery opens a new one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from replica.consensus import driver as consensus
from replica.protocol.artifacts import (
    Artifact,
    Cup,
    FinalizationShare,
    NotarizationShare,
)
from replica.protocol.attestation import Attestation
from replica.protocol.errors import Unavailable
from replica.protocol.ids import SubnetId
from simulation.checker import Violation

if TYPE_CHECKING:
    from simulation.system.machine import Machine, ReplicaProcess
    from simulation.system.swarm import System

Place = tuple[SubnetId, int, int]
"""Subnet, epoch, height."""
Term = tuple[int, SubnetId, int, str]
"""Machine, subnet, epoch, release: within it a replica never contradicts itself. Empty blocks that
a release makes above the package that ends it are made again by the next one."""


class SystemChecker:
    def __init__(self, system: System) -> None:
        self.system = system
        self.finalized: dict[str, dict[Place, bytes]] = defaultdict(dict)
        """By release, and then place."""
        self.certified: dict[Place, bytes] = {}
        self.cups: dict[Place, bytes] = {}
        self.notarization_signed: dict[tuple[Term, int], set[bytes]] = {}
        self.finalization_signed: dict[tuple[Term, int], bytes] = {}
        """By term and height."""
        self._signed_in: set[Term] = set()
        self._forgetful: set[Term] = set()
        """Machines that lost their disk after they had signed in an epoch: faulty ones, for it."""
        self._cup_heights: dict[int, int] = {}
        self._attested: dict[int, tuple[int, int]] = {}
        """Epoch and registry version of a machine's last attestation."""
        self._seen: dict[int, tuple[int, int]] = {}

    def _same(self, table: dict[Place, bytes], place: Place, value: bytes, what: str) -> None:
        if table.setdefault(place, value) != value:
            raise Violation(f"two different {what} at height {place[2]} of epoch {place[1]}")

    def started(self, machine: Machine, term: Term, has_memory: bool) -> None:
        """A replica starts; `has_memory`: its disk tells what it signed before."""
        if not has_memory and term in self._signed_in:
            if machine.has_lost_power:
                raise Violation(f"{machine.name} lost what it had signed when its power was cut")
            self._forgetful.add(term)
            self.system.counts["nodes that forgot what they signed"] += 1

    def remembers(self, machine: Machine, term: Term, driver: consensus.Driver) -> None:
        """S3 begins here: what a replica sent before it ended is what it starts with."""
        if term in self._forgetful:
            return
        signed: list[tuple[type[NotarizationShare | FinalizationShare], tuple[Term, int], bytes]]
        signed = [(FinalizationShare, k, b) for k, b in self.finalization_signed.items()]
        for key, blocks in self.notarization_signed.items():
            signed += [(NotarizationShare, key, block) for block in blocks]
        for kind, (of_term, height), block in signed:
            if of_term != term or height <= driver.chain.finalized_height:
                continue
            kept = driver.pool.validated.at(kind, height)
            if not any(s.signer == machine.node and s.block == block for s in kept):
                raise Violation(f"{machine.name} forgot a {kind.__name__} at {height} it had sent")

    def seen(self, process: ReplicaProcess, effect: consensus.Effect) -> None:
        """One effect that a replica has carried out."""
        real = process.real
        assert real is not None
        epoch = real.driver.chain.cup.epoch
        match effect:
            case consensus.Send(artifact):
                self._signed(process, artifact, epoch)
            case consensus.DeliverCertification(certification):
                place = (real.subnet, epoch, certification.height)
                self._same(self.certified, place, certification.root, "certified states")  # S7
            case consensus.Diverged():
                self.system.counts["diverged nodes"] += 1
            case consensus.Execute(batch):
                if any(result.high is not None for result in batch.keys):
                    self.system.counts["keys dealt for another subnet"] += 1
            case consensus.AdoptCup(package):
                place = (real.subnet, epoch, package.height)
                self._same(self.cups, place, package.content, "catch-up packages")  # S8
                self._check_cup(process, package.height)
                self.system.counts["catch-up packages"] += 1

    def _check_cup(self, process: ReplicaProcess, height: int) -> None:
        """S9: a replica's package never goes back."""
        before = self._cup_heights.get(process.number, 0)
        if height <= before:
            raise Violation(f"{process.it.name} went back from CUP {before} to {height}")
        self._cup_heights[process.number] = height

    def _signed(self, process: ReplicaProcess, artifact: Artifact, epoch: int) -> None:
        """S3, and the promise of an attestation."""
        signer = getattr(artifact, "signer", getattr(artifact, "maker", None))
        if signer != process.it.node or isinstance(artifact, Cup):
            return
        if self.system.script_of(process.machine) is not None:
            return  # its script signs what it likes, and peers hand that back to it
        assert process.real is not None
        self._check_promise(process, epoch)
        term = (process.machine, process.real.subnet, epoch, process.version)
        key = (term, artifact.height)
        self._signed_in.add(term)
        if term in self._forgetful:
            return
        if isinstance(artifact, NotarizationShare):
            self.notarization_signed.setdefault(key, set()).add(artifact.block)
            final = self.finalization_signed.get(key)
            if final is not None and final != artifact.block:
                raise Violation(f"{process.it.name} notarizes a second block after finalizing")
        elif isinstance(artifact, FinalizationShare):
            if self.finalization_signed.setdefault(key, artifact.block) != artifact.block:
                raise Violation(f"{process.it.name} finalizes two blocks at {artifact.height}")
            if self.notarization_signed.get(key, set()) - {artifact.block}:
                raise Violation(f"{process.it.name} finalizes after notarizing another block")

    def attested(self, machine: int, attestation: Attestation) -> None:
        """A node gave its word."""
        self._attested[machine] = (attestation.epoch, attestation.registry_version)

    def _check_promise(self, process: ReplicaProcess, epoch: int) -> None:
        promised = self._attested.get(process.machine)
        if promised is None or promised[0] != epoch:
            return
        assert process.real is not None
        records, subnet = process.real.records, process.real.subnet
        raw = records.view(subnet, records.version)
        if records.version <= promised[1] or raw.is_halted:
            raise Violation(f"{process.it.name} signs in an epoch in which it promised not to")

    def _check_release(self, process: ReplicaProcess) -> None:
        """S17: the release is the one of the package's registry version."""
        real = process.real
        assert real is not None
        try:
            view = real.records.view(real.subnet, real.package.registry_version)
        except Unavailable:
            return  # it has taken a newer package from its peers since it was started
        if view.replica_version != real.version:
            raise Violation(f"{process.it.name} runs another release than its CUP says (S17)")

    def look(self, process: ReplicaProcess) -> None:
        """S1, and what holds of a replica that has just been started."""
        real = process.real
        assert real is not None
        chain, epoch = real.driver.chain, real.driver.chain.cup.epoch
        last_epoch, last = self._seen.get(process.machine, (-1, 0))
        first = last + 1 if last_epoch == epoch else chain.cup.height + 1
        for height in range(first, chain.finalized_height + 1):
            entry = chain.finalized_block(height)
            if entry is not None:
                place = (real.subnet, epoch, height)
                finalized = self.finalized[process.version]
                self.system.counts["rounds"] += place not in finalized
                self._same(finalized, place, entry.hash, "finalized blocks")
        if last_epoch != epoch:
            self._check_release(process)
        self._seen[process.machine] = (epoch, chain.finalized_height)
        if real.statistics.wasted:
            raise Violation(f"{process.it.name} fetched a checkpoint whose parts it did not check")
