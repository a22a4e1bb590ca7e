"""What a driver asks its shell to do, in the order in which it is to be done."""

from __future__ import annotations

from dataclasses import dataclass

from replica.consensus.delivery import Batch
from replica.protocol.artifacts import Artifact, Certification
from replica.protocol.cup import CatchUpPackage
from replica.protocol.ids import Height, NodeId
from replica.protocol.signed import Question


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


@dataclass(frozen=True, slots=True)
class AskSigned:
    """Ask a peer what it holds of this node's signatures; see `old_copy`."""

    peer: NodeId
    question: Question


@dataclass(frozen=True, slots=True)
class BadAnswer:
    """A peer answered that with what is wrong by itself."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class FoundOld:
    """This node signed what it doesn't know of, last at this height: it is an old copy of itself.

    Told again when more is shown.
    """

    shown: Height
    until: Height
    """It signs nothing until a package lies above this height."""


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
    | AskSigned
    | BadAnswer
    | FoundOld
)
