"""What a member that attacks its subnet has: a node's keys, and what the subnet's nodes tell it.

It reads the folder of a node that is held, and nothing of the other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from replica.client.agent import Agent
from replica.client.local_registry import LocalRegistry, node_record, tls_certificate
from replica.protocol import artifacts, cup, frames
from replica.protocol.artifacts import (
    Artifact,
    Block,
    BlockProposal,
    Data,
    Payload,
    Run,
    Summary,
    ValidationContext,
)
from replica.protocol.crypto.bls import Bls
from replica.protocol.crypto.dkg import BlsDkg
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.cup import CatchUpPackage
from replica.protocol.hashing import sha256
from replica.protocol.ids import Epoch, Height, NodeId, Rank, TimeNs
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.runtime import stored_cup
from replica.runtime.settings import NodeSettings, Secrets

BLS, DKG = Bls(), BlsDkg()
POINTS = 64


@dataclass(frozen=True)
class Target:
    """Another member."""

    node: NodeId
    http_url: str
    host: str
    port: int
    certificate_der: bytes
    dealing_key: bytes
    """48 bytes: under which shares are sealed for it."""


def targets_of(settings: NodeSettings, records: LocalRegistry) -> list[Target]:
    """Return the members of a node's subnet, itself too, by its registry store."""
    subnet = records.subnet_of(settings.node)
    assert subnet is not None, "a member is in a subnet"
    found = []
    for node in records.view(subnet, records.version).members:
        record = parse(pb.NodeRecord, records.need(node_record(node)))
        der = parse(pb.X509PublicKeyCert, records.need(tls_certificate(node))).certificate_der
        key = records.node_keys(node).dealing
        url = records.http_url(node)
        found.append(Target(node, url, record.p2p.ip_addr, record.p2p.port, der, key))
    return found


def _run_of(package: CatchUpPackage, records: LocalRegistry) -> Run:
    view = records.view(package.subnet, package.registry_version)
    return Run(view.replica_version, package.run_start)


@dataclass
class Insider:
    """One member's keys, and what it knows of its subnet by now."""

    settings: NodeSettings
    secrets: Secrets
    members: list[Target]
    records: LocalRegistry
    package: CatchUpPackage
    run: Run
    tag: bytes
    """What stands before each artifact of that run."""
    notarized: int = 0
    finalized: int = 0
    checkpoints: list[tuple[int, bytes]] = field(default_factory=list)
    """Height and root of what peers hold."""
    tip: Block | None = None
    """The newest block that peers have sent."""
    _count: int = 0

    @classmethod
    def of(cls, settings: NodeSettings) -> Insider:
        records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
        members = targets_of(settings, records)
        package = stored_cup.read(settings.cup_path)
        run = _run_of(package, records)
        tag = artifacts.run_tag(package.epoch, run)
        return cls(settings, settings.secrets(), members, records, package, run, tag)

    @property
    def node(self) -> NodeId:
        return self.settings.node

    @property
    def others(self) -> list[Target]:
        return [m for m in self.members if m.node != self.node]

    @property
    def epoch(self) -> Epoch:
        return self.package.epoch

    @property
    def summary(self) -> Summary:
        return self.package.summary

    # -- what it learns

    def learn(self, agent: Agent, target: Target) -> None:
        """Ask a peer how far it is. Raises: Unavailable, Malformed."""
        status: dict[str, Any] = agent.node_status(target.http_url)
        self.notarized = max(self.notarized, int(status["notarized_height"]))
        self.finalized = max(self.finalized, int(status["finalized_height"]))
        self.checkpoints = [(int(h), bytes.fromhex(r)) for h, r in status["checkpoints"].items()]
        if status["cup_height"] > self.package.height:
            raw = agent.get_bytes(target.http_url, "/_/catch_up_package")
            self.package = cup.decode(raw)
            self.records.refresh()
            self.run = _run_of(self.package, self.records)
            self.tag = artifacts.run_tag(self.epoch, self.run)

    def hear(self, body: bytes) -> None:
        """Note the newest block out of the body of a frame that a peer sent. Raises: Malformed."""
        encoded = body[artifacts.RUN_TAG_BYTES :]
        if len(encoded) < 3 or encoded[2] != 0:  # blocks are the first kind
            return
        artifact = artifacts.decode(encoded)
        if isinstance(artifact, BlockProposal):
            if self.tip is None or artifact.height > self.tip.height:
                self.tip = artifact.block
                self.notarized = max(self.notarized, artifact.height - 1)

    # -- what it makes

    def noise(self) -> bytes:
        """Return 32 bytes, other ones each time."""
        self._count += 1
        return sha256(bytes(self.node) + self._count.to_bytes(8, "big"))

    @cached_property
    def points(self) -> list[bytes]:
        """Signatures of its own that are good, on something else."""
        return [BLS.sign_multi(self.secrets.committee, bytes([i])) for i in range(POINTS)]

    def point(self) -> bytes:
        self._count += 1
        return self.points[self._count % POINTS]

    def frame(self, artifact: Artifact) -> bytes:
        return frames.frame(frames.ARTIFACT, self.tag + artifacts.encode(artifact))

    def share_of(self, transcript: Transcript) -> bytes | None:
        index = transcript.index_of(self.node)
        if index is None:
            return None
        given = self.secrets.shares.get(transcript.share_keys[index])
        return given or DKG.share_of(transcript, self.node, self.secrets.dealing)

    def block(
        self, height: int, parent: bytes, payload: Payload | None = None, later_ns: int = 1
    ) -> BlockProposal:
        """Return a block of its own, well signed, on any parent."""
        known = self.tip or self.package.block
        data = payload or Data()
        context: ValidationContext = replace(
            known.context, time_ns=TimeNs(known.context.time_ns + later_ns)
        )
        made = replace(
            self.package.block,
            version=self.run.release,
            run_start=self.run.start,
            height=Height(height),
            rank=Rank(later_ns % 2),
            parent=parent,
            payload_hash=artifacts.payload_hash(data),
            context=context,
        )
        message = artifacts.block_message(
            made.subnet, made.epoch, made.run, made.height, artifacts.block_hash(made)
        )
        return BlockProposal(made, data, self.node, self.secrets.signing.sign(message))
