"""A drill's surroundings: the swarm, the client that never stops writing, the phase clock.

Also what scenarios observe: heights, CUPs, what was synced. They see what an operator could see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import nns_client as nns
from cli.lab import swarm as lab
from cli.lab import workload
from cli.lab.ground import Ground
from cli.lab.layout import NodeEntry, SubnetEntry, Swarm
from cli.lab.phases import Phases
from cli.recovery import detect
from replica.client import certified_registry
from replica.client.agent import Agent, CallRejected, World
from replica.client.local_registry import VersionedRecords
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotVerified, Rejected, ReprisError

if TYPE_CHECKING:
    from cli.lab.killer import Killer

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a drill prints with --json."""

    scenario: str
    outcome: str
    rto_seconds: float
    phases: list[dict[str, object]]
    state_preserved: bool
    height_before: int
    height_after: int
    nodes: list[dict[str, Any]]
    proposal_ids: list[int]
    seed: int | None = None
    cases: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class Drill:
    """A swarm that a disaster is about to happen to."""

    def __init__(
        self,
        folder: Path,
        options: lab.Options,
        say: Say,
        kill: Killer | None,
        ground: Ground | None = None,
    ) -> None:
        self.folder, self.options, self.say = folder, options, say
        self.ground = ground or Ground()
        self.interval_blocks = options.interval_blocks or lab.INTERVAL_BLOCKS
        self.world = self.ground.world
        self.now_s = self.world.monotonic_s
        on_phase = kill.strike if kill else lambda _: None
        self.phases = Phases(say, self.now_s, on_phase=on_phase)
        self.kill = kill
        self.swarm: Swarm = lab.create(folder, options, self.ground)
        self.supervisor = self.ground.processes([n.folder for n in self.swarm.nodes])
        self.mirror = self.ground.mirror(self.swarm.published, self.swarm.mirror_port)
        self.records = VersionedRecords()
        self.proposals: list[int] = []
        self.writer = self.client(pad=512)
        operator = self.swarm.identity("default")
        self.nns = self.swarm.agent(self.swarm.nns, operator)
        self.app = self.swarm.agent(self.swarm.app)
        self.probe = self.swarm.probe(1.0)
        if kill is not None:
            kill.drill = self

    def up(self) -> None:
        self.supervisor.start()
        self.mirror.start()
        lab.initialize(self.swarm, lambda _: None)
        self.writer.start()
        self.wait_for("the client's first entries", lambda: self.writer.count >= 5, 30)

    def client(self, pad: int) -> workload.Writer:
        """Return a client of its own, not started yet, that writes to the journal."""
        key = Ed25519Key(self.world.entropy(32))
        return workload.Writer(self.swarm, key, pad=pad)

    def wait_for(
        self, what: str, condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1
    ) -> None:
        """Raises: Unavailable when the condition does not come true in time."""
        lab.wait_for(what, condition, timeout_s, every_s, self.world)

    def patiently(self, action: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        return patiently(action, timeout_s, self.world)

    def close(self) -> None:
        self.supervisor.stop()
        self.mirror.stop()

    def refresh(self) -> VersionedRecords:
        """Fetch what is new in the registry; a node with nothing new may be behind the others."""
        before = self.records.version
        self.patiently(lambda: certified_registry.fetch(self.nns, self.records))
        if self.records.version == before:
            self.nns.next_node()
        return self.records

    def status(self, node: NodeEntry) -> dict[str, Any] | None:
        try:
            return self.probe.node_status(node.http_url)
        except ReprisError:
            return None

    def certified_height(self, subnet: SubnetEntry) -> int:
        return detect.certified_height(detect.look(subnet, self.probe))

    def adopt(self, title: str, number: int, payload: dict[str, Any], voter: Voter) -> int:
        """Propose an NNS function and see it executed."""
        raw = nns.function_payload(number, payload)
        action = {"ExecuteNnsFunction": {"nns_function": number, "payload": raw}}
        return self.adopt_action(title, action, voter)

    def adopt_action(self, title: str, action: dict[str, Any], voter: Voter) -> int:
        """Propose with the operator's neuron; the other neuron's vote makes the majority."""
        neuron = self.patiently(lambda: nns.default_neuron(self.nns))
        summary = "A drill on a local swarm."
        proposal = int(
            self.patiently(lambda: nns.propose_action(self.nns, neuron, title, summary, action))
        )
        self.proposals.append(proposal)
        info = self.patiently(lambda: nns.proposal_info(self.nns, proposal))
        if info["status"] != 1:
            raise NotVerified(f"half of the voting power must not decide: {info['status']}")
        voter.vote(proposal)
        info = self.patiently(lambda: nns.wait_decided(self.nns, proposal))
        if info["status"] != 4:
            failure = info["failure_reason"] or {"error_message": "rejected"}
            raise NotVerified(f"proposal {proposal}: {failure['error_message']}")
        return proposal

    def council(self) -> Voter:
        """The genesis neuron that makes a majority together with the operator's."""
        agent = self.swarm.agent(self.swarm.nns, self.swarm.identity("council"))
        return Voter(agent, int(self.patiently(lambda: nns.default_neuron(agent))))

    def set_app(self, members: Sequence[NodeEntry]) -> None:
        """The application subnet consists of these nodes now: ask them, not who left."""
        self.swarm = self.swarm.with_app(tuple(members))
        self.app = self.swarm.agent(self.swarm.app)
        self.writer.move(self.swarm)

    def set_nns(self, members: Sequence[NodeEntry], root_key: bytes) -> None:
        """The NNS consists of these nodes now, and this root key is theirs."""
        self.swarm = self.swarm.with_nns(tuple(members), root_key)
        self.nns = self.swarm.agent(self.swarm.nns, self.swarm.identity("default"))
        self.app = self.swarm.agent(self.swarm.app)
        self.writer.move(self.swarm)

    def watch_app(self) -> None:
        """From now on, note the application subnet's height at the end of every phase."""
        self.phases.witness = lambda: f"app at {self.certified_height(self.swarm.app)}"

    def outcome(
        self,
        scenario: str,
        *,
        rto_seconds: float,
        kept: bool,
        before: int,
        after: int,
        good: bool | None = None,
        cases: Sequence[dict[str, Any]] = (),
    ) -> Outcome:
        """Return how it went. `good`: whether it recovered; None: if its state was kept."""
        return Outcome(
            scenario=scenario,
            outcome="recovered" if (kept if good is None else good) else "failed",
            rto_seconds=round(rto_seconds, 3),
            phases=self.phases.to_plain(),
            state_preserved=kept,
            height_before=before,
            height_after=after,
            nodes=node_rows(self),
            proposal_ids=self.proposals,
            cases=list(cases),
            error=self.writer.fault,
        )

    def verify_journal(self) -> tuple[bool, str]:
        """Stop the client and check that all it was told is there, in order, once."""
        count = self.writer.count
        self.wait_for("the client to go on", lambda: self.writer.count > count + 3, 60)
        self.writer.stop()
        entries = workload.read_all(self.app, self.swarm, [self.writer])
        kept = not self.writer.fault and workload.preserved(self.writer, entries)
        return kept, f"{self.writer.count} certified entries, all there once"


@dataclass
class Voter:
    """The neuron that was staked during the drill."""

    agent: Agent
    neuron: int

    def vote(self, proposal: int) -> None:
        def cast() -> None:
            try:
                nns.vote(self.agent, self.neuron, proposal, nns.YES)
            except nns.GovernanceError as error:
                if "voted already" not in str(error):
                    raise

        patiently(cast, world=self.agent.world)


def patiently(
    action: Callable[[], Any], timeout_s: float = 60.0, world: World | None = None
) -> Any:
    """Repeat an action while nodes restart; refusals are final."""
    world = world or World()
    end = world.monotonic_s() + timeout_s
    while True:
        try:
            return action()
        except (Rejected, CallRejected) as error:
            if isinstance(error, nns.GovernanceError | CallRejected) or world.monotonic_s() > end:
                raise
        except ReprisError:
            if world.monotonic_s() > end:
                raise
        world.pause(0.3)


# --- what can be seen ------------------------------------------------------------------------


def describe_settings(drill: Drill) -> str:
    view = drill.refresh().view(drill.swarm.app.id, drill.records.version)
    return (
        f"notary delay {view.notary_delay_ns // 10**6} ms, back-off "
        f"{view.backoff_ns // 10**6} ms per height, CUP every {view.interval_length + 1} heights"
    )


def signs_above(drill: Drill, node: NodeEntry, height: int) -> bool:
    status = drill.status(node)
    return status is not None and status["shares_signed_at"] > height


def signed_cup_height(drill: Drill) -> int:
    reports = detect.look(drill.swarm.app, drill.probe)
    return max(
        (r.status["cup_height"] for r in reports if r.status and r.status["cup_signed"]), default=0
    )


def node_rows(drill: Drill) -> list[dict[str, Any]]:
    out = []
    for node in drill.swarm.app.nodes:
        status = drill.status(node) or {}
        moved = status.get("state_sync", {})
        out.append(
            {
                "id": str(node.id),
                "name": node.name,
                "bytes_fetched": moved.get("bytes_fetched"),
                "bytes_reused": moved.get("bytes_reused"),
                "certified_height": status.get("certified_height"),
                "resident_bytes_max": status.get("resident_bytes_max"),
            }
        )
    return out
