"""The network between simulated replicas: bytes that are late, lost, doubled, garbled or held back.

As over the real transport, everything sent arrives while both ends stay up and the link heals:
a loss only delays (the transport repeats it), a partition holds back. A peer is not sent what it
sent us, and bytes that came before are not decoded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from replica.p2p import gossip
from replica.p2p.gossip import Evidence
from replica.protocol import artifacts
from replica.protocol.artifacts import Artifact
from replica.protocol.errors import Malformed
from replica.protocol.ids import NodeId
from simulation.plan import Plan
from simulation.scheduler import MS, Scheduler

RETRY_NS = 250 * MS
LOSSES_MAX = 6
DECODED_MAX = 4096
KNOWN_MAX = 20_000

Deliver = Callable[[int, int, Artifact], None]
"""(source, target, artifact)"""
IsLate = Callable[[int, type, int], bool]
"""(target, kind, height)"""
TagOf = Callable[[int], bytes]
"""The tag of the run that a node is in (see `artifacts.run_tag`); empty: it is down."""


class Network:
    def __init__(
        self,
        scheduler: Scheduler,
        plan: Plan,
        size: int,
        deliver: Deliver,
        is_late: IsLate,
        tag_of: TagOf,
    ) -> None:
        self.scheduler, self.plan, self.size = scheduler, plan, size
        self.deliver, self.is_late, self.tag_of = deliver, is_late, tag_of
        self.cut: frozenset[int] = frozenset()
        """One side of a partition; empty: none."""
        self.deaf: frozenset[int] = frozenset()
        self.clogged: frozenset[int] = frozenset()
        self._held: list[tuple[int, int, bytes, bytes]] = []
        self._processes: Counter[int] = Counter()
        """How often each node's process began anew: what one had yet to send ends with it."""
        self.garbled: set[bytes] = set()
        """What arrived otherwise than it was sent."""
        self._known: dict[tuple[int, int], set[bytes]] = {}
        self._evidence: dict[tuple[int, int], Evidence] = {}
        """What (node, peer): the node knows its peer to hold."""
        self._decoded: dict[bytes, Artifact] = {}
        """What was decoded lately: the same bytes come to many. Artifacts never change."""
        self._key = scheduler.seed.to_bytes(8, "big")
        self._links: dict[tuple[int, int], Any] = {}
        """The beginning of what is drawn for each link."""
        self._span_ns = max(1, (plan.delay_ms_max - plan.delay_ms_min) * MS)

    # -- faults

    def reachable(self, source: int, target: int) -> bool:
        if not (self.cut or self.deaf or self.clogged):
            return True
        if target in self.deaf or source in self.clogged:
            return False
        return (source in self.cut) == (target in self.cut)

    def heal(self) -> None:
        self.cut = self.deaf = self.clogged = frozenset()
        held, self._held = self._held, []
        for source, target, raw, tag in held:
            self._transmit(source, target, raw, tag)

    def reconnected(self, node: int) -> None:
        """A process started anew: nobody knows what it has, and it not what others have."""
        for table in (self._known, self._evidence):
            for pair in [p for p in table if node in p]:
                del table[pair]
        self._held = [h for h in self._held if h[1] != node]
        self._processes[node] += 1

    def answer(self, source: int, target: int, artifact: Artifact) -> None:
        """Send what was asked for, also when it was sent before."""
        self._known_to(source, target).discard(artifacts.encode(artifact))
        self.send(source, target, artifact)

    # -- sending

    def pass_on(self, source: int, identity: NodeId, artifact: Artifact) -> None:
        """Send as the transport does: what peers are likely to have, later and if need be."""
        if gossip.is_lazy(artifact, identity):
            later = self.scheduler.now + gossip.LAZY_NS
            process = self._processes[source]
            self.scheduler.at(later, self._pass_on_late, source, process, artifact)
        else:
            self.broadcast(source, artifact)

    def _pass_on_late(self, source: int, process: int, artifact: Artifact) -> None:
        """Pass on what this process has in its queue: the next one may be of another run."""
        if process != self._processes[source] or not self.tag_of(source):
            return
        for target in self.targets(source):
            shown = self._evidence.get((source, target))
            if shown is None or not shown.covers(artifact):
                self.send(source, target, artifact)

    def broadcast(self, source: int, artifact: Artifact) -> None:
        for target in self.targets(source):
            self.send(source, target, artifact)

    def hand_in(self, source: int, artifact: Artifact, tag: bytes) -> None:
        """Send to all what a node without a replica says about the run of this tag."""
        raw = artifacts.encode(artifact)
        for target in self.targets(source):
            known = self._known_to(source, target)
            if raw not in known:
                known.add(raw)
                self._transmit(source, target, raw, tag)

    def targets(self, source: int) -> Iterable[int]:
        """Return whom a node sends to: everybody else."""
        return [target for target in range(self.size) if target != source]

    def send(self, source: int, target: int, artifact: Artifact) -> None:
        """Send what the target is not known to hold.

        What is late already, or for a node that is down, would be dropped unread when it arrives
        (a node that comes up is offered everything again): it need not travel.
        """
        raw = artifacts.encode(artifact)
        known = self._known_to(source, target)
        if raw in known:
            return
        known.add(raw)
        if self.is_late(target, type(artifact), artifact.height):
            self._known_to(target, source).add(raw)
        else:
            self._transmit(source, target, raw, self.tag_of(source))

    def _known_to(self, node: int, peer: int) -> set[bytes]:
        """Return what a node need not send to a peer: it did before, or had it from there."""
        found = self._known.get((node, peer))
        if found is None:
            found = self._known[node, peer] = set()
        elif len(found) > KNOWN_MAX:
            found.clear()
        return found

    def _transmit(self, source: int, target: int, raw: bytes, tag: bytes) -> None:
        plan, scheduler = self.plan, self.scheduler
        dice = self._dice(source, target, raw)
        delay = plan.delay_ms_min * MS + int.from_bytes(dice[:6], "big") * self._span_ns // 2**48
        if plan.loss:
            limit, attempt = plan.loss * 65536, 0
            while attempt < LOSSES_MAX:
                at = 6 + 2 * attempt
                if int.from_bytes(dice[at : at + 2], "big") >= limit:
                    break
                delay += RETRY_NS << attempt
                attempt += 1
                scheduler.counts["losses"] += 1
        if plan.corruption and int.from_bytes(dice[18:20], "big") < plan.corruption * 65536:
            scheduler.counts["garbled"] += 1
            where = int.from_bytes(dice[20:22], "big") % len(raw)
            garbled = raw[:where] + bytes([raw[where] ^ (1 + dice[22] % 255)]) + raw[where + 1 :]
            self.garbled.add(garbled)
            scheduler.at(scheduler.now + delay, self._arrive, source, target, garbled, tag)
            delay += RETRY_NS  # the connection breaks, and everything is sent again
        elif plan.duplicates and int.from_bytes(dice[20:22], "big") < plan.duplicates * 65536:
            scheduler.counts["duplicates"] += 1
            scheduler.at(scheduler.now + 2 * delay, self._arrive, source, target, raw, tag)
        scheduler.at(scheduler.now + delay, self._arrive, source, target, raw, tag)

    def _dice(self, source: int, target: int, raw: bytes) -> bytes:
        """Draw 24 bytes for these bytes on this link."""
        link = self._links.get((source, target))
        if link is None:
            person = bytes((source & 255, target & 255))
            link = blake2b(digest_size=24, key=self._key, person=person)
            self._links[source, target] = link
        drawn = link.copy()
        drawn.update(raw)
        return drawn.digest()

    def _arrive(self, source: int, target: int, raw: bytes, tag: bytes) -> None:
        if not self.reachable(source, target):
            self._held.append((source, target, raw, tag))
            return
        self._known_to(target, source).add(raw)
        artifact = self._decoded.get(raw)
        if artifact is None:
            try:
                artifact = artifacts.decode(raw)
            except Malformed:
                self.scheduler.counts["malformed"] += 1
                return
            if len(self._decoded) >= DECODED_MAX:
                self._decoded.clear()
            self._decoded[raw] = artifact
        kind = type(artifact)
        if self.is_late(target, kind, artifact.height):
            return
        if tag != self.tag_of(target) and not artifacts.is_of_any_run(kind):
            self.scheduler.counts["of another run"] += 1
            return
        shown = self._evidence.get((target, source))
        if shown is None:
            shown = self._evidence[target, source] = Evidence()
        shown.note(artifact)
        self.deliver(source, target, artifact)
