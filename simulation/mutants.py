"""Deliberately broken variants of the protocol: each must be caught by its campaign, soon.

What a simulator is worth shows in the time it takes to catch a bug that is known to be there. Every
mutant runs in a process of its own, in which one function is replaced; nothing else knows of it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from simulation import campaign
from simulation.adversarial import adversarial_plan
from simulation.plan import ROLES, Fault, Plan, random_plan
from simulation.scheduler import GENESIS_NS, MS, SECOND

T = TypeVar("T")

KILL_S_MAX = 300.0
"""Of processor time: what else runs on a machine decides nothing. The longest takes a seventh."""
LIVENESS_NS = 30 * SECOND
"""A mutant that gets stuck is caught sooner than a seed of a campaign is given up."""


@dataclass(frozen=True)
class Mutant:
    name: str
    what: str
    """What is broken."""
    campaign: str
    """Which campaign has to notice."""
    break_it: Callable[[], None]


@dataclass(frozen=True)
class Verdict:
    mutant: str
    campaign: str
    seconds: float
    seed: int | None
    """That caught it, and passes without it; None: it survived."""
    reason: str

    @property
    def killed(self) -> bool:
        return self.seed is not None


# --- campaigns -------------------------------------------------------------------------------


def _consensus(seed: int) -> None:
    campaign.run_seed(seed)


def _role(role: str) -> Callable[[int], None]:
    """Random faults, and one Byzantine node of this kind."""

    def run(seed: int) -> None:
        plan = random_plan(seed, campaign.ROUNDS)
        byzantine = tuple(sorted(plan.faulty))
        changed: dict[str, Any] = {**dict.fromkeys(ROLES, ()), role: byzantine}
        campaign.run_plan(seed, replace(plan, **changed), liveness_ns=LIVENESS_NS)

    return run


def _membership(seed: int) -> None:
    """One member is replaced, on a good network."""
    leaver = seed % 4
    members = tuple(n for n in range(5) if n != leaver)
    plan = Plan(spares=1, faults=(Fault(300 * MS, "members", members),))
    campaign.run_plan(seed, plan, liveness_ns=LIVENESS_NS)


def _halves(seed: int) -> None:
    """Partitions into two halves, again and again, with an equivocating node."""
    faults: list[Fault] = []
    for i in range(12):
        side = ((0, 1), (0, 2), (0, 3))[(seed + i) % 3]
        faults += [
            Fault((300 + 600 * i) * MS, "partition", side),
            Fault((700 + 600 * i) * MS, "heal"),
        ]
    plan = Plan(faults=tuple(faults), equivocators=(seed % 4,), delay_ms_max=30)
    campaign.run_plan(seed, plan)


def _divergence(seed: int) -> None:
    """Two of four compute another state: blocks must stop 70 heights later."""
    from simulation.doubles import DivergingChain
    from simulation.subnet import World

    world = World(seed, Plan(interval=199))
    setattr(world.checker, "executed", lambda *_: None)
    for node in world.nodes[:2]:
        node.state = DivergingChain(10, bytes([node.index]))
        world.stop(node)
        world.start(node)
    world.run(lambda: False, 30 * SECOND)


def _recovery(seed: int) -> None:
    """A recovery, with a kill in some phase."""
    from simulation.checker import Violation
    from simulation.recovery import PHASES, VICTIMS, RecoveryWorld

    phase, victim = PHASES[seed % len(PHASES)], VICTIMS[seed // len(PHASES) % len(VICTIMS)]
    world = RecoveryWorld(seed, phase, victim)
    if not world.run(world.healed, 60 * SECOND):
        raise Violation("the recovery never ended (L7)")


def _catch_up(seed: int) -> None:
    """A whole swarm; one node loses its disk, and one of those that it fetches from lies."""
    from simulation.system import drills
    from simulation.system.swarm import System

    system = System(seed, Plan(delay_ms_max=20, step_us=8000, liars=(1, 2)))
    drills.run_on(system, "node-catch-up")


def _attested(seed: int) -> None:
    """A whole swarm; those who have attested come back with an old registry, cut off together."""
    from simulation.system import drills
    from simulation.system.swarm import System

    system = System(seed, Plan(delay_ms_max=20, step_us=8000))

    def listen(text: str) -> None:
        if text.startswith("  attest and plan"):
            for later, kind in ((1, "old registry"), (1, "partition"), (15_000, "heal")):
                system.at(system.now + later * MS, system._inject, Fault(0, kind, (1, 2, 3)))

    drills.run_on(system, "subnet-divergence", listen)


def _upgrade(seed: int) -> None:
    """A whole swarm moves to another release."""
    from simulation.system import drills
    from simulation.system.swarm import System

    drills.run_on(System(seed, Plan(delay_ms_max=20, step_us=8000)), "upgrade")


def _dark(seed: int) -> None:
    """A whole swarm, whose machines lose their power one after the other."""
    from simulation.system import drills
    from simulation.system.swarm import System

    faults = tuple(
        [
            Fault((12_000 + 700 * i) * MS, "power cut", (1 + (seed + i) % 4,), (seed + 5 * i) % 16)
            for i in range(24)
        ]
    )
    plan = Plan(delay_ms_max=20, step_us=8000, faults=faults)
    drills.run_on(System(seed, plan), "canister-failure")


def _pages(seed: int) -> None:
    """Journals of one machine, whose pages go astray and whose writers are killed."""
    from simulation.system import pages

    pages.run(seed)


def _astray(seed: int) -> None:
    """A whole swarm; what a node learns of the halt, or what it replays, goes to wrong places.

    Its word is needed: another one's is false.
    """
    from simulation.system import drills
    from simulation.system.swarm import System

    system = System(seed, Plan(delay_ms_max=20, step_us=8000, perjurers=(4,)))

    def listen(text: str) -> None:
        if text.startswith("  halt" if seed % 2 else "  detect"):
            for i in range(8):
                fault = Fault(0, "misdirected write", (1 + seed % 3,))
                system.at(system.now + 500 * i * MS, system._inject, fault)

    drills.run_on(system, "subnet-divergence", listen)


def _rotten(seed: int) -> None:
    """A whole swarm; now and then a replica's next read of its database fails."""
    from simulation.system import drills
    from simulation.system.swarm import System

    system = System(seed, Plan(delay_ms_max=20, step_us=8000))

    def fail(node: int) -> None:
        system.counts["bad database"] += 1
        system.machines[node].database.fail(0, reads_only=True)

    for i in range(40):
        system.at(GENESIS_NS + (9_000 + 700 * i) * MS, fail, 1 + (seed + i) % 4)
    drills.run_on(system, "canister-failure")


def _restarts(seed: int) -> None:
    """A whole swarm, whose NNS starts anew again and again."""
    from simulation.system import drills
    from simulation.system.swarm import System

    faults = tuple([Fault((12_000 + 700 * i) * MS, "crash", (0,)) for i in range(20)])
    plan = Plan(delay_ms_max=20, step_us=8000, faults=faults)
    drills.run_on(System(seed, plan), "subnet-divergence")


def _impatient(seed: int) -> None:
    """A whole swarm, of which everything is asked twice."""
    from simulation.system import drills
    from simulation.system.swarm import System

    system = System(seed, Plan(delay_ms_max=20, step_us=8000))
    system.wires.again = 1.0
    drills.run_on(system, "subnet-divergence")


def _stop_and_go(seed: int) -> None:
    """A whole swarm, in which replicas pause over a CUP that their orchestrators fetch."""
    from simulation.system import drills
    from simulation.system.swarm import System

    faults = []
    for i in range(20):
        node, at_ms = (1 + (seed + i) % 4,), 6000 + 2500 * i
        faults += [Fault(at_ms * MS, "pause", node), Fault((at_ms + 2400) * MS, "resume", node)]
    system = System(seed, Plan(delay_ms_max=20, step_us=8000, faults=tuple(faults)))
    system.linger_ms = 2000
    drills.run_on(system, "canister-failure")


def _flood(seed: int) -> None:
    """One member floods every kind, in advance and in its own name, and then falls silent."""
    from replica.protocol.artifacts import KINDS, Cup
    from simulation import door_floods as floods

    world = floods.flooded(seed=seed)
    tip = world.tip()
    world.crowd(Cup, range(tip + 100, tip + 104))
    world.flood(KINDS, range(tip + 2, tip + 5), 0, floods.PER_HEIGHT)
    world.goes_on()
    world.muted = True
    world.goes_on(2)


def _unknown_heights(seed: int) -> None:
    """One member keeps a share at each height of which no summary tells, and is silent."""
    from simulation import door_floods as floods

    world = floods.flooded(interval=15 + 14 * (seed % 2), seed=seed)
    world.muted = True
    world.flood_unknown_heights()
    world.goes_on(20)


def _two_faces(seed: int) -> None:
    """A maker shows one node two blocks that nobody else sees, and another to the rest."""
    from simulation import door_floods as floods

    floods.TwoFaced(seed, Plan(interval=99)).goes_on(8)


def _splitter(seed: int) -> None:
    """A maker fills its places at f + 1 nodes, so that its good block splits the members."""
    from simulation import door_floods as floods

    floods.Splitter(seed, Plan(interval=99)).goes_on(10)


def _ballast(seed: int) -> None:
    """A member's blocks of five megabytes, in advance, of heights that can be judged soon."""
    from replica.protocol.artifacts import BlockProposal
    from simulation import door_floods as floods

    world = floods.flooded(seed=seed)
    tip = world.tip()
    world.flood((BlockProposal,), range(tip + 3, tip + 11), 5 << 20, 2)
    world.goes_on()


def _wide_witnesses(seed: int) -> None:
    """A member shows more of its state than where it stands, or another epoch."""
    from simulation.witnesses import Shower

    Shower(seed, Plan(interval=99)).goes_on(4)


def _guilty(seed: int) -> None:
    """All makers of ten heights have made two blocks."""
    from simulation.guilty import Guilty

    Guilty(seed).goes_on()


def _hoarder(seed: int) -> None:
    """A member sends all old packages again and again."""
    from simulation import door_floods as floods

    floods.Hoarder(seed, Plan(interval=15)).goes_on(20)


def _half_upgraded(seed: int) -> None:
    """One node hears blocks of a release that it does not run yet."""
    from simulation import door_floods as floods

    floods.HalfUpgraded(seed, Plan(interval=99)).goes_on(2)


def _adversary(role: str) -> Callable[[int], None]:
    """Adversarial plans for four members, of which one plays this role."""

    def run(seed: int) -> None:
        plan = adversarial_plan(seed, 4, role)
        campaign.run_plan(seed, plan, liveness_ns=LIVENESS_NS)

    return run


def _put_back(seed: int) -> None:
    """One member's disk is what it was some heights ago, while the next package is on its way.

    Some questions are lost.
    """
    from simulation.subnet import World

    roles: dict[str, Any] = {"old_copies": (seed % 4,), "old_copies_find_out": True}
    world = World(seed, Plan(delay_ms_max=20, loss=0.2, checkpoint_ms=500, **roles))
    node, copies = world.nodes[seed % 4], world.cast.old_copies
    world.run(lambda: world.finalized_height() >= 6 + seed % 9, LIVENESS_NS)
    copies.take(node)
    world.run(lambda: world.finalized_height() >= 17, LIVENESS_NS)
    copies.put_back(node)
    world.run(lambda: False, 3 * SECOND)
    assert world.counts["old copies found out"], "an old copy never finds out"


CAMPAIGNS: dict[str, Callable[[int], None]] = {
    "consensus": _consensus,
    "halves": _halves,
    "forger": _role("forgers"),
    "equivocator": _role("equivocators"),
    "bad dealer": _role("bad_dealers"),
    "liar": _role("liars"),
    "membership": _membership,
    "divergence": _divergence,
    "recovery": _recovery,
    "catch-up": _catch_up,
    "attested": _attested,
    "upgrade": _upgrade,
    "dark": _dark,
    "astray": _astray,
    "rotten": _rotten,
    "pages": _pages,
    "restarts": _restarts,
    "impatient": _impatient,
    "stop and go": _stop_and_go,
    "flood": _flood,
    "unknown heights": _unknown_heights,
    "two faces": _two_faces,
    "splitter": _splitter,
    "ballast": _ballast,
    "wide witnesses": _wide_witnesses,
    "guilty": _guilty,
    "hoarder": _hoarder,
    "half upgraded": _half_upgraded,
    "flooder": _adversary("flooders"),
    "withholder": _adversary("withholders"),
    "stretcher": _adversary("stretchers"),
    "accuser": _adversary("accusers"),
    "tripler": _adversary("triplets"),
    "old copy": _adversary("old_copies"),
    "put back": _put_back,
    "two releases": _adversary("upgrades"),
}


# --- mutants ---------------------------------------------------------------------------------


class _Nothing:
    """A kind of which no pool holds anything."""


def _lower_quorum() -> None:
    from replica.client.subnet_view import SubnetView
    from replica.protocol.crypto.scheme import threshold_high

    lowered = property(lambda self: threshold_high(len(self.members)) - 1)
    setattr(SubnetView, "quorum", lowered)


def _forget_own_notarizations() -> None:
    from replica.consensus import finalizer

    setattr(finalizer, "NotarizationShare", _Nothing)


def _send_first() -> None:
    from replica.consensus import driver

    def emit(self: Any, changes: Any, effects: list[Any]) -> None:
        if changes.added:
            effects.extend(driver.Send(a) for a in changes.added if self.is_gossiped(a))
            effects.append(driver.Persist(changes.added))

    setattr(driver.Driver, "_emit", emit)


def _forget_at_restart() -> None:
    from replica.consensus import driver

    setattr(driver.Driver, "restore", lambda *_: None)
    _trust_the_copy()


def _trust_packages() -> None:
    from replica.protocol.cup import CatchUpPackage

    setattr(CatchUpPackage, "verify", lambda *_: None)


def _take_old_packages() -> None:
    from replica.consensus import door, horizon
    from replica.consensus.pool import MoveToValidated
    from replica.protocol.artifacts import Cup

    honest = horizon.Horizon.is_late

    def is_late(self: Any, kind: type, height: int) -> bool:
        return kind is not Cup and honest(self, kind, height)

    def cups(reader: Any) -> Any:
        return [MoveToValidated(a) for a in reader.pool.unvalidated.of_kind(Cup)][:1]

    setattr(horizon.Horizon, "is_late", is_late)
    setattr(door.Door, "_kept_cup_height", lambda _: -1)
    _replace_component("cup validator", cups)


def _trust_certifications() -> None:
    from replica.consensus.pool import MoveToValidated
    from replica.protocol.artifacts import Certification

    _replace_component(
        "certification validator",
        lambda reader: [
            MoveToValidated(a)
            for a in reader.pool.unvalidated.of_kind(Certification)
            if not reader.pool.validated.has(Certification, a.height)
        ][:1],
    )


def _trust_notarizations() -> None:
    from replica.consensus import validator

    setattr(validator, "_multi_signature_fault", lambda *_: None)


def _trust_shares() -> None:
    from replica.consensus.shares import MemberCommittee, ThresholdCommittee

    for committee in (MemberCommittee, ThresholdCommittee):
        setattr(committee, "verify", lambda *_: True)


def _no_bound() -> None:
    from replica.consensus import reader

    reader.GAP_MAX = 10**6


def _refuse_notarized_equivocations() -> None:
    from replica.consensus import validator

    setattr(validator, "_has_notarization", lambda *_: False)


def _sign_when_halted() -> None:
    from replica.consensus.reader import Reader

    setattr(Reader, "_find_barred", lambda self: False)


def _take_other_epochs() -> None:
    """What was valid in another epoch is taken back as if it were of this one."""
    from replica.consensus.driver import Driver

    honest = Driver.restore

    def restore(self: Any, known: Any, now_ns: int) -> None:
        honest(self, known, now_ns)
        for artifact in [a for a in known if a.epoch != self.chain.cup.epoch]:
            self.pool.validated.insert(artifact, now_ns)
            self.chain.add(artifact)

    setattr(Driver, "restore", restore)


def _never_complain() -> None:
    from replica.consensus import dkg

    setattr(dkg, "_opens", lambda *_: True)


def _believe_slander() -> None:
    from replica.protocol.crypto.dkg_double import DoubleDkg

    setattr(DoubleDkg, "is_justified", lambda *_: True)


def _deal_to_nobody_new() -> None:
    """Keys are never handed to members that join."""
    from replica.consensus import summary

    honest = summary.next_summary

    def stale(reader: Any, parent: bytes, height: int, context: Any) -> Any:
        made = honest(reader, parent, height, context)
        last = reader.chain.summary_of(parent)
        return None if made is None else replace(made, receivers=last.receivers)

    from replica.consensus import block_maker, validator

    for module in (block_maker, validator):
        setattr(module, "next_summary", stale)


def _replace_component(name: str, run: Callable[[Any], Any]) -> None:
    from replica.consensus import components, driver

    changed = tuple(replace(c, run=run) if c.name == name else c for c in components.COMPONENTS)
    assert changed != components.COMPONENTS, f"there is no component {name}"
    setattr(driver, "COMPONENTS", changed)


def _take_any_chunk() -> None:
    from replica.protocol import manifest
    from replica.state_sync.assemble import Assembly

    accept = Assembly.accept

    def trusting(self: Any, index: int, data: bytes) -> None:
        hash_of = manifest.chunk_hash
        setattr(manifest, "chunk_hash", lambda _: self.target.chunks[index].hash)
        try:
            accept(self, index, data)
        finally:
            setattr(manifest, "chunk_hash", hash_of)

    setattr(Assembly, "accept", trusting)


def _promise_nothing() -> None:
    from replica.runtime.settings import NodeSettings

    setattr(NodeSettings, "promise", lambda *_: None)


def _sync_no_names() -> None:
    from replica.runtime import durable

    setattr(durable, "sync_directory", lambda _: None)


def _sync_no_batches() -> None:
    from replica.runtime.journal import Journal

    def careless(self: Any, data: bytes) -> None:
        self._file.write(data)

    setattr(Journal, "_write", careless)


def _mistake_holes() -> None:
    """What was written by half is taken for corruption."""
    from replica.runtime import journal_format

    setattr(journal_format, "_follows", lambda *_: True)


def _chain_nothing() -> None:
    """A batch is taken wherever it lies and from whatever journal; any rest is an interrupted
    write."""
    from replica.runtime import journal_format

    honest = journal_format._next

    def lax(file: Any, chain: Any, size: int) -> Any:
        file.seek(chain.position)
        head = file.read(journal_format.HEAD_BYTES)
        if len(head) == journal_format.HEAD_BYTES:
            salt, sequence, _, link, _ = journal_format._HEAD.unpack_from(head)
            chain = journal_format.Chain(salt, chain.position, sequence, link)
        found = honest(file, chain, size)
        return "" if isinstance(found, str) else found

    setattr(journal_format, "_next", lax)


def _trust_the_cache() -> None:
    """What was read at opening is offered, whether it was ever synced or not."""
    from replica.runtime.journal import Journal, read

    rewrite = Journal.rewrite

    def trusting(self: Any, records: Any) -> None:
        if self._file is not None or not self.path.exists() or self.damage:
            rewrite(self, records)
            return
        self._chain = read(self.path, self.identity).chain
        with open(self.path, "r+b") as file:
            file.truncate(self._chain.position)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    setattr(Journal, "rewrite", trusting)


def _hash_what_lies_there() -> None:
    from replica.state import checkpoint

    real = checkpoint.compute_manifest

    def believing(folder: Any, base: Any = None, written: Any = None) -> Any:
        return real(folder, base)

    setattr(checkpoint, "compute_manifest", believing)


def _never_mend() -> None:
    from replica.client.local_registry import LocalRegistry

    setattr(LocalRegistry, "mend", lambda self: False)


def _sign_what_could_not_be_read() -> None:
    """An error of the database is a trap of the canister that reads."""
    from replica.execution import python_runtime
    from replica.protocol.errors import MachineFault

    guard = python_runtime.guard

    def trusting(loaded: Any, context: Any, action: Any) -> None:
        try:
            guard(loaded, context, action)
        except MachineFault as fault:
            context._layer.latch.fault = None
            context.result.trap = str(fault)

    setattr(python_runtime, "guard", trusting)


def _answer_before_it_has_caught_up() -> None:
    from replica.node import Replica

    setattr(Replica, "known_certified", lambda self: 0)


def _write_aside_together() -> None:
    from orchestrator import cup_provider
    from replica.runtime import stored_cup

    class Together:
        read = staticmethod(stored_cup.read)

        @staticmethod
        def write(path: Any, package: Any, *, aside: str) -> None:
            stored_cup.write(path, package)

    setattr(cup_provider, "stored_cup", Together)


def _replay_at_once() -> None:
    from orchestrator.attestation import Attestor
    from orchestrator.replays import Replays

    setattr(Attestor, "attest", Attestor._attest)
    inits = Replays.__init__

    def open_doors(self: Any, settings: Any, world: Any) -> None:
        inits(self, settings, world)
        self._lock = nullcontext()

    setattr(Replays, "__init__", open_doors)


def _run_the_newest() -> None:
    """The release of the newest registry version, not of the package's."""
    from orchestrator.agent import Orchestrator

    facts_of = Orchestrator._facts

    def hasty(self: Any) -> Any:
        facts, subnet = facts_of(self), self.subnet()
        if subnet is None or facts.wanted_version is None:
            return facts
        newest = self.records.view(subnet, self.records.version).replica_version
        here = self.releases.has(newest)
        return replace(facts, wanted_version=newest, wanted_is_here=here)

    setattr(Orchestrator, "_facts", hasty)


def _share_places() -> None:
    """A kind and height has 128 places, whoever takes them."""
    from replica.consensus import block_places, door

    def rival(self: Any, pool: Any, artifact: Any, sender: Any, slot: Any) -> Any:
        return pool.unvalidated.count_at(type(artifact), artifact.height) < 128, None

    def take(self: Any, artifact: Any, now_ns: int) -> bool:
        count = self._pool.unvalidated.count_at(type(artifact), artifact.height)
        return bool(count < 128)

    setattr(door.Door, "_rival", rival)
    setattr(block_places.BlockPlaces, "take", take)


def _one_verdict_a_turn() -> None:
    """Packages wait unverified and are judged one a turn; too many turns are our own bug."""
    from replica.consensus import door, driver
    from replica.consensus.pool import RemoveUnvalidated
    from replica.protocol.artifacts import Cup

    step = driver.Driver.step

    def admit(self: Any, artifact: Any, sender: Any, now_ns: int) -> Any:
        self._pool.unvalidated.insert(artifact, now_ns)
        return door.Admission.ADMITTED

    def one_bad(reader: Any) -> Any:
        waiting = list(reader.pool.unvalidated.of_kind(Cup))
        return [RemoveUnvalidated(a) for a in waiting if len(a.package) < 100][:1]

    def strict(self: Any, now_ns: int, wall_ns: int) -> Any:
        effects = step(self, now_ns, wall_ns)
        assert not self._stale, "the components of consensus never come to rest"
        return effects

    setattr(door.Door, "_admit_cup", admit)
    setattr(driver.Driver, "step", strict)
    setattr(driver, "STEPS_MAX", 400)
    _replace_component("cup validator", one_bad)


def _keep_all_evidence() -> None:
    from replica.consensus import door

    setattr(door, "CERTIFIED_ROOTS_MAX", 10**6)


def _all_or_nothing() -> None:
    """Heights of which no summary tells are admitted, and cost the other heights' verdicts."""
    from replica.certification import certifier
    from replica.consensus import door, horizon
    from replica.consensus.reader import GAP_MAX
    from replica.protocol.artifacts import CertificationShare

    def heights(reader: Any, section: Any, kind: type) -> list[int]:
        top = reader.chain.finalized_height + GAP_MAX
        certified = reader.context.state.certified_height
        return [h for h in section.heights(kind) if certified < h <= top]

    fault = door.Door._fault

    def trusting(self: Any, artifact: Any, sender: Any, size_bytes: int) -> Any:
        is_share = isinstance(artifact, CertificationShare)
        return None if is_share else fault(self, artifact, sender, size_bytes)

    setattr(certifier, "_heights", heights)
    setattr(horizon.Horizon, "top", lambda self, kind: self._chain.notarized_height + 400)
    setattr(door.Door, "_fault", trusting)


def _first_come() -> None:
    """A maker's first two blocks are the only ones, also when another one is notarized."""
    from replica.consensus.block_places import BlockPlaces

    honest = BlockPlaces.take

    def first(self: Any, artifact: Any, now_ns: int) -> bool:
        proven, self._pool._proven = self._pool._proven, {}
        try:
            return honest(self, artifact, now_ns)
        finally:
            self._pool._proven = proven

    setattr(BlockPlaces, "take", first)


def _overlook_orphans() -> None:
    """Two blocks prove something only where one of them is valid."""
    from replica.consensus.block_places import BlockPlaces

    setattr(BlockPlaces, "_prove", lambda *_: None)


def _never_ask() -> None:
    from replica.consensus.asking import Asking

    setattr(Asking, "want", lambda *_: None)


def _blame_relayers() -> None:
    """What peers send says nothing of its run: it is judged, and held against them."""
    from replica.protocol import artifacts

    setattr(artifacts, "run_tag", lambda *_: bytes(artifacts.RUN_TAG_BYTES))


def _sign_no_run() -> None:
    """What makers sign names no run."""
    from replica.protocol import artifacts

    def message(subnet: Any, epoch: Any, run: Any, height: Any, hash_: bytes) -> bytes:
        return artifacts._message("block_metadata_domain", subnet, epoch, height, hash_)

    setattr(artifacts, "block_message", message)


def _lenient_clock() -> None:
    """The slack of clocks counts also on top of what passed since the parent."""
    from copy import copy

    from replica.consensus import validator

    honest, slack_ns = validator._content_fault, validator.CLOCK_SLACK_NS

    def lenient(reader: Any, proposal: Any) -> Any:
        later = copy(reader)  # its wall clock is the same: only what passed grows
        later.now_ns += slack_ns
        fault = honest(later, proposal)
        reader.wake_ns = min(reader.wake_ns, later.wake_ns - slack_ns)
        return fault

    setattr(validator, "_content_fault", lenient)


def _few_makers() -> None:
    """Ranks 0 to f are the makers, proven equivocators or not."""
    from replica.consensus.reader import Reader

    def makers(self: Any, height: int) -> Any:
        ranks = self.ranks(height)
        return None if ranks is None else ranks[: self.settings_at(height).faults_max + 1]

    setattr(Reader, "makers", makers)


def _believe_witnesses() -> None:
    """A witness has to show the height, whatever else is in it."""
    from replica.certification import certifier
    from replica.protocol import hash_tree
    from replica.protocol.certification import HEIGHT_PATH
    from replica.protocol.hashing import leb128

    def fault(root: bytes, witness: bytes, epoch: int, height: int) -> str | None:
        tree = hash_tree.decode(witness)
        if tree.digest != root:
            return "the witness does not hash to the root"
        shown = hash_tree.lookup_leaf(tree, HEIGHT_PATH)
        return None if shown == leb128(height) else "the witness shows another height"

    setattr(certifier, "witness_fault", fault)


def _count_only() -> None:
    """A quota bounds how many artifacts wait, not how big they are."""
    from replica.consensus import quota

    def has_room(self: Any, size_bytes: int) -> bool:
        return bool(self.count < quota.PEER_COUNT_MAX)

    setattr(quota.Quota, "has_room", has_room)


def _keep_three_roots() -> None:
    from replica.consensus import door

    setattr(door, "CERTIFIED_ROOTS_MAX", 3)


def _trust_the_copy() -> None:
    """What this node signed before it started is what its journal says."""
    from replica.consensus.old_copy import OldCopyWatch

    setattr(OldCopyWatch, "count", lambda self: setattr(self, "is_waiting", False))
    setattr(OldCopyWatch, "effects", lambda *_: [])
    setattr(OldCopyWatch, "look", lambda *_: None)


def _sign_before_it_has_heard() -> None:
    from replica.consensus.old_copy import OldCopyWatch

    setattr(OldCopyWatch, "is_silent", property(lambda self: self.until is not None))


def _go_on_at_the_first_package() -> None:
    from replica.consensus.old_copy import OldCopyWatch

    def until(self: Any) -> Any:
        here = self.reader.chain.cup.height
        if self.shown is None:
            return None
        first = self.__dict__.setdefault("_first", here)
        return first if here <= first else None

    setattr(OldCopyWatch, "until", property(until))


MUTANTS: tuple[Mutant, ...] = (
    Mutant("quorum", "one signer fewer than n - f is enough", "halves", _lower_quorum),
    Mutant(
        "forgetful-finalizer",
        "finalizes although it notarized another block",
        "halves",
        _forget_own_notarizations,
    ),
    Mutant("hasty-sender", "sends before it is durable", "consensus", _send_first),
    Mutant("amnesia", "forgets at restart what it signed", "consensus", _forget_at_restart),
    Mutant("trusting-package", "takes unsigned packages from peers", "forger", _trust_packages),
    Mutant("old-package", "takes packages that it is past", "hoarder", _take_old_packages),
    Mutant("trusting-certification", "checks no certification", "forger", _trust_certifications),
    Mutant("trusting-notarization", "checks no notarization", "forger", _trust_notarizations),
    Mutant("trusting-shares", "checks no combined signature", "forger", _trust_shares),
    Mutant("unbounded", "goes on without certification", "divergence", _no_bound),
    Mutant(
        "purist",
        "refuses an equivocator's block that n - f notarized",
        "equivocator",
        _refuse_notarized_equivocations,
    ),
    Mutant("restless", "signs while the registry has it halted", "recovery", _sign_when_halted),
    Mutant("epochless", "keeps artifacts of another epoch", "recovery", _take_other_epochs),
    Mutant("meek-receiver", "never complains of a bad share", "bad dealer", _never_complain),
    Mutant("gullible", "takes every complaint for justified", "bad dealer", _believe_slander),
    Mutant("trusting-fetcher", "writes chunks that it did not check", "catch-up", _take_any_chunk),
    Mutant("faithless", "attests and promises nothing", "attested", _promise_nothing),
    Mutant("hasty-upgrade", "swaps the release before the CUP", "upgrade", _run_the_newest),
    Mutant("elbows", "writes aside where the replica does", "stop and go", _write_aside_together),
    Mutant("two-handed", "replays twice at once in one folder", "impatient", _replay_at_once),
    Mutant("nameless", "syncs files, but not their names", "dark", _sync_no_names),
    Mutant("careless", "sends what it wrote but did not sync", "dark", _sync_no_batches),
    Mutant("brittle", "takes a torn batch for damage", "pages", _mistake_holes),
    Mutant("unchained", "reads batches without their order", "pages", _chain_nothing),
    Mutant("trusts-the-cache", "offers what it never synced", "pages", _trust_the_cache),
    Mutant("credulous", "attests what its disk made of its state", "astray", _hash_what_lies_there),
    Mutant("negligent", "never looks at its registry store again", "astray", _never_mend),
    Mutant(
        "disk-signs",
        "takes a read that failed for the canister's trap",
        "rotten",
        _sign_what_could_not_be_read,
    ),
    Mutant(
        "forgetful-server",
        "answers clients with older states than before its restart",
        "restarts",
        _answer_before_it_has_caught_up,
    ),
    Mutant("closed-shop", "deals no keys to new members", "membership", _deal_to_nobody_new),
    Mutant("shared-places", "128 places a kind and height, for all peers", "flood", _share_places),
    Mutant(
        "one-verdict-a-turn",
        "judges packages one a turn, and stops at too many turns",
        "flood",
        _one_verdict_a_turn,
    ),
    Mutant("unbounded-evidence", "keeps all that a member signs", "flood", _keep_all_evidence),
    Mutant(
        "all-or-nothing",
        "loses all verdicts when one can't be given",
        "unknown heights",
        _all_or_nothing,
    ),
    Mutant("first-come", "lets no third block in, notarized or not", "two faces", _first_come),
    Mutant(
        "lenient-judge",
        "takes two orphans of a maker for no proof",
        "splitter",
        _overlook_orphans,
    ),
    Mutant("runless", "signs blocks without their run", "accuser", _sign_no_run),
    Mutant("lenient-clock", "adds slack to slack", "stretcher", _lenient_clock),
    Mutant("makerless", "has heights without makers", "guilty", _few_makers),
    Mutant(
        "wide-witness",
        "takes witnesses of any size and epoch",
        "wide witnesses",
        _believe_witnesses,
    ),
    Mutant("weightless", "counts what waits and weighs nothing", "ballast", _count_only),
    Mutant("keeps-three-roots", "keeps one root more", "flood", _keep_three_roots),
    Mutant("never-asks", "never asks for what it refused", "two faces", _never_ask),
    Mutant("trusting-copy", "never asks what it signed", "put back", _trust_the_copy),
    Mutant(
        "hasty-copy",
        "signs before it knows what it signed",
        "put back",
        _sign_before_it_has_heard,
    ),
    Mutant(
        "short-sighted",
        "an old copy goes on at the first package",
        "put back",
        _go_on_at_the_first_package,
    ),
    Mutant(
        "blames-relayers",
        "blames who passes on what it can't use",
        "half upgraded",
        _blame_relayers,
    ),
)


# --- running ---------------------------------------------------------------------------------


def fault(name: str, seed: int) -> str | None:
    """Run one seed of a campaign; return what is wrong with it."""
    try:
        CAMPAIGNS[name](seed)
    except (AssertionError, KeyError) as error:
        return str(error)
    return None


def hunt(mutant: Mutant, first: int = 0, limit_s: float = KILL_S_MAX) -> Verdict:
    """Break the code of this process and run the campaign until it notices, or time is up."""
    mutant.break_it()
    began, seed = time.process_time(), first
    while time.process_time() - began < limit_s:
        found = fault(mutant.campaign, seed)
        if found is not None:
            seconds = time.process_time() - began
            return Verdict(mutant.name, mutant.campaign, seconds, seed, found)
        seed += 1
    seconds = time.process_time() - began
    return Verdict(mutant.name, mutant.campaign, seconds, None, "nothing was noticed")


def _hunt_by_name(name: str) -> Verdict:
    return hunt(next(m for m in MUTANTS if m.name == name))


def _apart(work: Callable[..., T], *arguments: Any) -> T:
    """Do something in a fresh process: what is broken there is broken nowhere else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def judge(name: str) -> Verdict:
    """Hunt a mutant; it counts as caught only if its catcher passes without it.

    Else it was the campaign that failed, and would have caught any code.
    """
    verdict = _apart(_hunt_by_name, name)
    if verdict.seed is None:
        return verdict
    found = _apart(fault, verdict.campaign, verdict.seed)
    if found is None:
        return verdict
    reason = f"seed {verdict.seed} fails without it as well: {found}"
    return replace(verdict, seed=None, reason=reason)


def run(workers: int) -> Iterator[Verdict]:
    """Judge all mutants."""
    with ThreadPoolExecutor(workers) as threads:
        for future in as_completed([threads.submit(judge, m.name) for m in MUTANTS]):
            yield future.result()
