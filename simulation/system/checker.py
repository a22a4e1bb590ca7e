"""What must hold of a whole swarm, seen from outside. S1 to S18: docs/properties.md.

Everything is kept by subnet and epoch: a recovery opens a new one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replica.client.local_registry import LocalRegistry
from replica.consensus import driver as consensus
from replica.consensus.delivery import Batch
from replica.node import Replica
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    Certification,
    CertificationShare,
    Cup,
    FinalizationShare,
    NotarizationShare,
    Run,
)
from replica.protocol.attestation import Attestation
from replica.protocol.crypto.scheme import threshold_high
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import ReprisError
from replica.protocol.hashing import sha256
from replica.protocol.ids import NodeId, SubnetId
from replica.runtime import stored_cup
from simulation.checker import ChainChecker, SignatureLedger, Violation, check_same
from simulation.system.nns_checker import NnsChecker

if TYPE_CHECKING:
    from simulation.system.machine import Machine
    from simulation.system.processes import ReplicaProcess
    from simulation.system.swarm import System

Age = tuple[SubnetId, int]
"""Subnet and epoch."""
Term = tuple[int, SubnetId, int, Run]
"""Machine, subnet, epoch, run: within it a replica never contradicts itself. Heights at which a
release makes empty blocks above the package that ends its run are made again by the next one, and
what is signed about them names the run."""


@dataclass
class EpochRecord:
    """What was seen of one subnet in one epoch."""

    roots: dict[int, bytes] = field(default_factory=dict)
    """Of the state tree by height: certified, or computed where nobody was told to diverge."""
    cups: dict[int, bytes] = field(default_factory=dict)
    requests: dict[bytes, int] = field(default_factory=dict)
    """The height at which each was executed, by its hash."""
    certified_by: Counter[int] = field(default_factory=Counter)
    """How many replicas have delivered the certification of a height."""
    kept: int | None = None
    """What n - f nodes had certified when the first of them attested."""
    attested: dict[bytes, int] = field(default_factory=dict)
    """Heights by the state's hash."""


@dataclass(frozen=True)
class Committee:
    """A subnet's key, who holds it, and in which epoch."""

    epoch: int
    public_key: bytes
    members: frozenset[NodeId]


def _term(process: ReplicaProcess, real: Replica) -> Term:
    return (process.machine, real.subnet, real.driver.chain.cup.epoch, real.driver.run)


class SystemChecker:
    def __init__(self, system: System) -> None:
        self.system = system
        self.chains: dict[tuple[SubnetId, int, Run], ChainChecker] = defaultdict(ChainChecker)
        """By subnet, epoch and run."""
        self.epochs: dict[Age, EpochRecord] = defaultdict(EpochRecord)
        self.committees: dict[SubnetId, Committee] = {}
        self.signatures = SignatureLedger()
        """By term."""
        self.nns = NnsChecker()
        self._signed_in: set[Term] = set()
        self._forgetful: set[Term] = set()
        """Machines that lost their disk after they had signed in a run: old copies, faulty ones for
        it. They find out, so they contradict nothing either."""
        self._found_out: set[int] = set()
        """Replica processes that told that they are old copies."""
        self._cup_heights: dict[int, int] = {}
        self._certified_heights: dict[int, int] = {}
        """Up to which height a replica process knew of certifications when it last stepped."""
        self._certified_times: dict[SubnetId, tuple[int, int]] = {}
        """The highest certified height of all epochs, and its time."""
        self._answered: dict[Term, int] = {}
        """The height of the state that a replica last answered a client with."""
        self._attested: dict[int, tuple[int, int]] = {}
        """Epoch and registry version of a machine's last attestation."""

    # -- a replica starts

    def starting(self, machine: Machine, version: str) -> None:
        """S17: an orchestrator starts the release of its package's registry version."""
        try:
            package = stored_cup.read(machine.settings.cup_path)
            records = LocalRegistry(machine.settings.registry_path)
            view = records.view(package.subnet, package.registry_version)
        except ReprisError as error:
            if machine.disk.astray:
                return  # it has in memory what its disk no longer has
            raise Violation(f"{machine.name} starts a release without its CUP: {error}") from error
        if view.replica_version != version:
            raise Violation(f"{machine.name} runs another release than its CUP says (S17)")

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
        signed: list[tuple[type[NotarizationShare | FinalizationShare], object, int, bytes]]
        signed = [(FinalizationShare, *k, b) for k, b in self.signatures.finalized.items()]
        for key, blocks in self.signatures.notarized.items():
            signed += [(NotarizationShare, *key, block) for block in blocks]
        for kind, of_term, height, block in signed:
            if of_term != term or height <= driver.chain.finalized_height:
                continue
            kept = driver.pool.validated.at(kind, height)
            if not any(s.signer == machine.node and s.block == block for s in kept):
                raise Violation(f"{machine.name} forgot a {kind.__name__} at {height} it had sent")

    def opens(self, machine: Machine, package: CatchUpPackage, is_nns: bool) -> None:
        """S16: a recovery keeps what n - f nodes had certified when the first node attested, and
        its package is above all that was ever finalized."""
        if package.is_signed or not package.height:
            return
        former = [e for s, e in self.epochs if s == package.subnet and e < package.epoch]
        record = self.epochs[package.subnet, max(former)] if former else EpochRecord()
        for (subnet, epoch, _), chain in self.chains.items():
            top = max(chain.finalized, default=0)
            if subnet == package.subnet and epoch < package.epoch and top >= package.height:
                raise Violation(
                    f"a recovery package at {package.height} is not above the finalized {top}"
                )
        if record.kept is None:
            return  # nobody attested: it is no recovery of a stuck subnet
        self.system.counts["recovered states"] += 1
        height = record.attested.get(package.state_hash)
        if height is None and is_nns:  # its recovery changes the state that was attested
            height = max(record.attested.values())
        if height is None:
            raise Violation(f"{machine.name} opens a state that nobody attested (S16)")
        if height < record.kept:
            raise Violation(
                f"a recovery to the state of height {height} drops what was certified up to "
                f"{record.kept} (S16)"
            )

    # -- what a replica does

    def seen(self, process: ReplicaProcess, effect: consensus.Effect) -> None:
        """One effect that a replica has carried out."""
        real = process.real
        assert real is not None
        epoch = real.driver.chain.cup.epoch
        record = self.epochs[real.subnet, epoch]
        match effect:
            case consensus.Send(artifact):
                self._signed(process, artifact, epoch)
            case consensus.FoundOld(shown, _):
                self.system.counts["old copies found out"] += 1
                self._found_out.add(process.number)
                if _term(process, real) not in self._forgetful:
                    raise Violation(f"{process.it.name} lost nothing, and is an old copy ({shown})")
            case consensus.DeliverCertification(certification):
                height = certification.height
                check_same(record.roots, height, certification.root, "states")  # S7
                record.certified_by[height] += 1
                assert real.state.certified is not None
                time_ns = real.state.certified.snapshot.system.time_ns
                self._check_time(real.subnet, height, time_ns)
            case consensus.Execute(batch):
                if any(result.high is not None for result in batch.keys):
                    self.system.counts["keys dealt for another subnet"] += 1
                self._executed(process, real, record, batch)
            case consensus.AdoptCup(package):
                check_same(record.cups, package.height, package.content, "packages")  # S8
                self._check_cup(process, package.height)
                self._check_key(process, package)
                if package.subnet == real.records.nns():
                    self.system.counts["looks at the NNS' rows"] += self.nns.look(real)
                self.system.counts["catch-up packages"] += 1

    def _check_time(self, subnet: SubnetId, height: int, time_ns: int) -> None:
        """S5 for clients: certified time grows with the height, also over a recovery."""
        top, latest = self._certified_times.get(subnet, (0, 0))
        if (height > top and time_ns <= latest) or (height < top and time_ns >= latest):
            raise Violation(f"certified time does not grow from height {top} to {height} (S5)")
        if height > top:
            self._certified_times[subnet] = (height, time_ns)

    def answered(self, process: ReplicaProcess) -> None:
        """S5 for clients: the state that one node answers with never gets older."""
        real = process.real
        assert real is not None
        term = _term(process, real)
        before, height = self._answered.get(term, 0), real.state.certified_height
        if height < before and term not in self._forgetful:
            raise Violation(
                f"{process.it.name} answers with the state of height {height} after {before} (S5)"
            )
        self._answered[term] = height

    def _executed(
        self, process: ReplicaProcess, real: Replica, record: EpochRecord, batch: Batch
    ) -> None:
        """S6: equal states. S10: no data above the height that ends a release. S12: once each."""
        name, height = process.it.name, batch.height
        root = real.state.certified_root_at(height)
        if real.state.fault is None and root is not None:
            check_same(record.roots, height, root[0], "states")
        for raw in batch.ingress:
            if record.requests.setdefault(sha256(raw), height) != height:
                raise Violation(f"{name} executes a request of height {height} again (S12)")
        chain = real.driver.chain
        entry = chain.finalized_block(height)
        summary = chain.summary_of(entry.hash) if entry is not None else None
        if summary is None or not batch.ingress:
            return
        view = real.records.view(real.subnet, summary.registry_version)
        if view.replica_version != process.version or view.halt_at_cup_height:
            raise Violation(f"{name} executes data at {height}, where it has to stop (S10)")

    def _check_cup(self, process: ReplicaProcess, height: int) -> None:
        """S9: a replica's package never goes back."""
        before = self._cup_heights.get(process.number, 0)
        if height <= before:
            raise Violation(f"{process.it.name} went back from CUP {before} to {height}")
        self._cup_heights[process.number] = height

    def _check_key(self, process: ReplicaProcess, package: CatchUpPackage) -> None:
        """S11: the key stays, unless a recovery found too few of its holders."""
        key = package.summary.high
        new = Committee(package.epoch, key.public_key, frozenset(key.committee))
        old = self.committees.get(package.subnet, new)
        if new.epoch < old.epoch:
            return  # a straggler
        self.committees[package.subnet] = new
        if new.public_key == old.public_key:
            return
        stayed = len(old.members & new.members)
        if new.epoch == old.epoch or stayed >= threshold_high(len(old.members)):
            raise Violation(f"{process.it.name}: the subnet's key changed (S11)")

    def _signed(self, process: ReplicaProcess, artifact: Artifact, epoch: int) -> None:
        """S3, S15, and the promise of an attestation."""
        signer = getattr(artifact, "signer", getattr(artifact, "maker", None))
        if signer != process.it.node or isinstance(artifact, Cup):
            return
        if self.system.script_of(process.machine) is not None:
            return  # its script signs what it likes, and peers hand that back to it
        real = process.real
        assert real is not None
        self._check_promise(process, epoch)
        if isinstance(artifact, CertificationShare):
            self._check_share(process, real, artifact)
        term = _term(process, real)
        self._signed_in.add(term)
        is_new = isinstance(artifact, SHARES)  # its blocks may come back to it
        if is_new and process.number in self._found_out and real.driver.is_old_copy:
            raise Violation(f"{process.it.name} knows that it is an old copy, and signs")
        self.signatures.note(term, process.it.name, artifact)

    def _check_share(
        self, process: ReplicaProcess, real: Replica, share: CertificationShare
    ) -> None:
        """S15: who knows what was certified signs no other state."""
        if share.height > self._certified_heights.get(process.number, 0):
            return
        known = real.driver.certifications.validated.at(Certification, share.height)
        if any(c.root != share.root for c in known):
            raise Violation(f"{process.it.name} signs another state than was certified (S15)")

    def attested(self, machine: int, word: Attestation) -> None:
        """A node gave its word."""
        self._attested[machine] = (word.epoch, word.registry_version)
        record = self.epochs[word.subnet, word.epoch]
        record.attested[word.state_hash] = word.height
        process = self.system.machines[machine].replica
        if record.kept is None and process is not None and process.real is not None:
            records = process.real.records
            quorum = threshold_high(len(records.view(word.subnet, records.version).members))
            by_quorum = [h for h, count in record.certified_by.items() if count >= quorum]
            record.kept = max(by_quorum, default=0)

    def _check_promise(self, process: ReplicaProcess, epoch: int) -> None:
        promised = self._attested.get(process.machine)
        if promised is None or promised[0] != epoch:
            return
        assert process.real is not None
        records, subnet = process.real.records, process.real.subnet
        raw = records.view(subnet, records.version)
        if records.version <= promised[1] or raw.is_halted:
            raise Violation(f"{process.it.name} signs in an epoch in which it promised not to")

    def look(self, process: ReplicaProcess) -> None:
        """S1, S2, S4, S5, S13, S14."""
        real = process.real
        assert real is not None
        driver = real.driver
        age = (real.subnet, driver.chain.cup.epoch)
        chain = self.chains[*age, driver.run]
        before = len(chain.finalized)
        chain.certified_height = max(chain.certified_height, real.state.certified_height)
        chain.look_at(process.machine, driver, real.state)
        self.system.counts["rounds"] += len(chain.finalized) - before
        top = driver.certifications.validated.height_max(Certification)
        self._certified_heights[process.number] = top or 0
        if real.statistics.wasted > process.it.disk.astray:
            raise Violation(f"{process.it.name} fetched a checkpoint whose parts it did not check")
