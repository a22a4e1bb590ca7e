"""What a node has signed about blocks, as its peers hold it: their answer to a node that starts.

Only what contradicts itself when it is signed twice: blocks, and shares for them. What is the same
whenever it is signed (beacons, tapes, certifications, packages), or names no run, is not told.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from replica.protocol import canonical
from replica.protocol.artifacts import (
    Block,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    Run,
)
from replica.protocol.errors import LimitExceeded
from replica.protocol.ids import Epoch, Height

ITEMS_MAX = 64
"""Of each kind, the newest: what lies below proves the same, and the highest one counts."""
SIGNED_BYTES_MAX = 256 << 10
"""In a subnet of 40 a header is some 300 bytes, and a full signature with its signers 1.2 kB."""


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A block as its maker signed it: the payload is in it as a hash."""

    block: Block
    signature: bytes
    """Ed25519 over the block's metadata."""

    @property
    def height(self) -> Height:
        return self.block.height


@dataclass(frozen=True, slots=True)
class Question:
    """What of a node's signatures a peer holds, in a run, above a height."""

    epoch: Epoch
    run: Run
    above: Height


@dataclass(frozen=True, slots=True)
class Signed:
    """The newest signatures of one node in one run, each kind by height, highest first."""

    headers: tuple[SignedHeader, ...] = ()
    notarization_shares: tuple[NotarizationShare, ...] = ()
    finalization_shares: tuple[FinalizationShare, ...] = ()
    notarizations: tuple[Notarization, ...] = ()
    """Of which the node is a signer; so below."""
    finalizations: tuple[Finalization, ...] = ()

    def bounded(self) -> Signed:
        """Return it without what lies lowest, so that it is small enough to be sent."""
        found, count = self, ITEMS_MAX
        while True:
            kinds = {f.name: getattr(found, f.name)[:count] for f in fields(Signed)}
            found = replace(found, **kinds)
            if count == 0 or len(canonical.encode(found)) <= SIGNED_BYTES_MAX:
                return found
            count //= 2

    def check(self) -> None:
        """Raises: LimitExceeded when a peer tells more than it was asked for."""
        if any(len(getattr(self, f.name)) > ITEMS_MAX for f in fields(Signed)):
            raise LimitExceeded(f"an answer of more than {ITEMS_MAX} signatures of a kind")
