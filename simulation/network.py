"""The network between simulated replicas: bytes that are late, lost, doubled, garbled or held back.

As over the real transport, everything sent arrives while both ends stay up and the link heals:
a loss only delays (the transport repeats it), a partition holds back. A peer is not sent what it
sent us, and bytes that came before are not decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

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

Deliver = Callable[[int, int, Artifact], None]
"""(source, target, artifact)"""
IsLate = Callable[[int, type, int], bool]
"""(target, kind, height)"""


class Network:
    def __init__(
        self, scheduler: Scheduler, plan: Plan, size: int, deliver: Deliver, is_late: IsLate
    ) -> None:
        self.scheduler, self.plan, self.size = scheduler, plan, size
        self.deliver, self.is_late = deliver, is_late
        self.cut: frozenset[int] = frozenset()
        """One side of a partition; empty: none."""
        self.deaf: frozenset[int] = frozenset()
        self.clogged: frozenset[int] = frozenset()
        self._held: list[tuple[int, int, bytes]] = []
        self._known: dict[tuple[int, int], set[bytes]] = {}
        self._evidence: dict[tuple[int, int], Evidence] = {}
        """What (node, peer): the node knows its peer to hold."""
        self._decoded: dict[bytes, Artifact] = {}
        """What was decoded lately: the same bytes come to many. Artifacts never change."""
        self._key = scheduler.seed.to_bytes(8, "big")
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
        for source, target, raw in held:
            self._transmit(source, target, raw)

    def reconnected(self, node: int) -> None:
        """A process started anew: nobody knows what it has, and it not what others have."""
        for table in (self._known, self._evidence):
            for pair in [p for p in table if node in p]:
                del table[pair]
        self._held = [h for h in self._held if h[1] != node]

    def forget(self, node: int) -> None:
        """What this node has is unknown again: it asked for everything."""
        for source in range(self.size):
            self._known.pop((source, node), None)
            self._evidence.pop((source, node), None)

    # -- sending

    def pass_on(self, source: int, identity: NodeId, artifact: Artifact) -> None:
        """Send as the transport does: what peers are likely to have, later and if need be."""
        if gossip.is_lazy(artifact, identity):
            later = self.scheduler.now + gossip.LAZY_NS
            self.scheduler.at(later, self._pass_on_late, source, artifact)
        else:
            self.broadcast(source, artifact)

    def _pass_on_late(self, source: int, artifact: Artifact) -> None:
        raw = artifacts.encode(artifact)
        for target in self.targets(source):
            shown = self._evidence.get((source, target))
            if shown is None or not shown.covers(artifact):
                self._offer(source, target, raw)

    def broadcast(self, source: int, artifact: Artifact) -> None:
        raw = artifacts.encode(artifact)
        for target in self.targets(source):
            self._offer(source, target, raw)

    def targets(self, source: int) -> Iterable[int]:
        """Return whom a node sends to: everybody else."""
        return [target for target in range(self.size) if target != source]

    def send(self, source: int, target: int, artifact: Artifact) -> None:
        self._offer(source, target, artifacts.encode(artifact))

    def _offer(self, source: int, target: int, raw: bytes) -> None:
        known = self._known.setdefault((source, target), set())
        if raw not in known:
            known.add(raw)
            self._transmit(source, target, raw)

    def _transmit(self, source: int, target: int, raw: bytes) -> None:
        plan, scheduler = self.plan, self.scheduler
        link = bytes((source & 255, target & 255))
        dice = blake2b(raw, digest_size=24, key=self._key, person=link).digest()
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
            scheduler.at(scheduler.now + delay, self._arrive, source, target, garbled)
            delay += RETRY_NS  # the connection breaks, and everything is sent again
        elif plan.duplicates and int.from_bytes(dice[20:22], "big") < plan.duplicates * 65536:
            scheduler.counts["duplicates"] += 1
            scheduler.at(scheduler.now + 2 * delay, self._arrive, source, target, raw)
        scheduler.at(scheduler.now + delay, self._arrive, source, target, raw)

    def _arrive(self, source: int, target: int, raw: bytes) -> None:
        if not self.reachable(source, target):
            self._held.append((source, target, raw))
            return
        back = self._known.setdefault((target, source), set())
        if len(back) > 20_000:
            back.clear()
        back.add(raw)
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
        if self.is_late(target, type(artifact), artifact.height):
            return
        pair = (target, source)
        if pair not in self._evidence:
            self._evidence[pair] = Evidence()
        self._evidence[pair].note(artifact)
        self.deliver(source, target, artifact)
