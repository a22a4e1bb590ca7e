"""What a driver asks its shell to do, in the order in which it is to be done."""

from __future__ import annotations

from dataclasses import dataclass

from replica.consensus.delivery import Batch
from replica.protocol.artifacts import Artifact, Certification
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import Height, NodeId


@dataclass(frozen=True, slots=True)
class Persist:
    """Make these artifacts durable before any later effect."""

    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Offer an artifact to every peer, now and whenever one reconnects."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Execute:
    batch: Batch


@dataclass(frozen=True, slots=True)
class DeliverCertification:
    certification: Certification


@dataclass(frozen=True, slots=True)
class FetchState:
    """Ask for the checkpoint of a height, from peers that advertise this root only."""

    height: Height
    root: bytes


@dataclass(frozen=True, slots=True)
class AdoptCup:
    package: CatchUpPackage


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer for what it holds of these kinds and heights, sent before or not."""

    peer: NodeId
    kinds: tuple[int, ...]
    """Indices into `artifacts.KINDS`, in ascending order."""
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Diverged:
    """Others certified another state than ours at this height."""

    height: Height


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """Peers sent an artifact that is wrong by itself: its encoding, a signature or a signer."""

    artifact: Artifact
    reason: str
    senders: tuple[NodeId, ...]


Effect = (
    Persist
    | Send
    | Execute
    | DeliverCertification
    | FetchState
    | AdoptCup
    | Ask
    | Diverged
    | Misbehaved
)
