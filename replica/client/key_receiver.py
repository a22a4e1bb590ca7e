"""What a node does for keys that another subnet deals to it: look at its shares, and complain.

The dealers' subnet can't tell whether a sealed share is good; only who receives it can. It has
until the end of the interval in which it is dealt, so it asks the dealers' nodes all the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import canonical
from replica.protocol.artifacts import DkgComplaint, DkgDealing
from replica.protocol.crypto import dkg
from replica.protocol.crypto.dkg import Config, KeyGeneration
from replica.protocol.errors import Malformed
from replica.protocol.ids import NodeId

OFFERS_BYTES_MAX = 4 << 20


@dataclass(frozen=True)
class KeyOffer:
    """Keys that are being dealt to nodes of another subnet, as a dealers' node sees it."""

    config: Config
    dealings: tuple[DkgDealing, ...]


@dataclass(frozen=True)
class KeyOffers:
    offers: tuple[KeyOffer, ...]

    def encode(self) -> bytes:
        return canonical.encode(self)


def decode(data: bytes) -> KeyOffers:
    """Raises: Malformed."""
    return canonical.decode(KeyOffers, data, bytes_max=OFFERS_BYTES_MAX)


def complaint_of(
    scheme: KeyGeneration, config: Config, message: DkgDealing, receiver: NodeId, secret: bytes
) -> DkgComplaint:
    """Return a receiver's complaint of a dealing; it convinces others only if it is justified."""
    return DkgComplaint(
        message.epoch,
        message.height,
        message.tag,
        message.dealer,
        dkg.digest(message.dealing),
        receiver,
        scheme.complain(config, message.dealing, secret),
    )


def complaints(
    scheme: KeyGeneration, offers: KeyOffers, receiver: NodeId, secret: bytes
) -> list[DkgComplaint]:
    """Return this node's complaints of what is offered to it; nothing offered is believed."""
    found = []
    for offer in offers.offers:
        config = offer.config
        if receiver not in config.receivers:
            continue
        for message in offer.dealings:
            try:
                if scheme.fault(config, message.dealer, message.dealing):
                    continue
                if not scheme.opens(config, message.dealing, receiver, secret):
                    found.append(complaint_of(scheme, config, message, receiver, secret))
            except (Malformed, ValueError):
                continue  # what does not even decode gets into no block
    return found
