"""The double of key generation that goes with `KeyedHash`: public keys are the secrets.

What matters stays honest: a dealer can cheat one receiver, complaints show it, too few dealings
make no key, a reshared key keeps its name, and whoever was not dealt a share has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256

from replica.protocol.crypto.dkg import Complaint, Config, Dealing, xor
from replica.protocol.crypto.scheme import SealedShares, Transcript
from replica.protocol.ids import NodeId


def _hash(*parts: bytes) -> bytes:
    return sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest()


class DoubleDkg:
    def deal(
        self,
        config: Config,
        dealer: NodeId,
        seed: bytes,
        share: bytes | None,
        keys: Mapping[NodeId, bytes],
    ) -> Dealing:
        root = _hash(seed, config.digest)
        parts = [_hash(root, bytes(r)) for r in config.receivers]
        constant = share if config.reshared is not None and share is not None else _hash(root)
        sealed = [xor(p, _hash(root, keys[r])) for p, r in zip(parts, config.receivers)]
        return Dealing((constant, *parts), root, tuple(sealed))

    def fault(self, config: Config, dealer: NodeId, dealing: Dealing) -> str | None:
        if dealer not in config.dealers:
            return "the dealer was not asked to deal"
        count = len(config.receivers)
        if len(dealing.commitments) != count + 1 or len(dealing.sealed) != count:
            return "not one share for each receiver"
        if any(len(s) != 32 for s in (*dealing.sealed, *dealing.commitments)):
            return "a share that has not 32 bytes"
        if config.reshared is not None:
            known = config.reshared.share_keys[config.index_of(dealer)]
            if dealing.commitments[0] != known:
                return "it does not reshare the dealer's own share"
        return None

    def opens(self, config: Config, dealing: Dealing, receiver: NodeId, secret: bytes) -> bool:
        index = config.receivers.index(receiver)
        opened = xor(dealing.sealed[index], _hash(dealing.ephemeral, secret))
        return opened == dealing.commitments[index + 1]

    def complain(self, config: Config, dealing: Dealing, secret: bytes) -> Complaint:
        return Complaint(_hash(dealing.ephemeral, secret), b"", b"")

    def is_justified(
        self, config: Config, dealing: Dealing, receiver: NodeId, key: bytes, complaint: Complaint
    ) -> bool:
        if receiver not in config.receivers or complaint.challenge or complaint.response:
            return False
        if complaint.key != _hash(dealing.ephemeral, key):
            return False
        return not self.opens(config, dealing, receiver, key)

    def combine(self, config: Config, dealings: Mapping[NodeId, Dealing]) -> Transcript | None:
        if len(dealings) < config.needed:
            return None
        chosen = sorted(dealings, key=config.index_of)
        if config.reshared is not None:
            chosen = chosen[: config.needed]
        shares = []
        for i in range(len(config.receivers)):
            shares.append(_hash(*[dealings[d].commitments[i + 1] for d in chosen]))
        public = config.reshared.public_key if config.reshared else _hash(b"group", *shares)
        sealed = tuple(
            SealedShares(config.index_of(d), dealings[d].ephemeral, dealings[d].sealed)
            for d in chosen
        )
        reshared = config.reshared is not None
        return Transcript(
            config.threshold, config.receivers, public, tuple(shares), sealed, reshared
        )

    def share_of(self, transcript: Transcript, node: NodeId, secret: bytes) -> bytes | None:
        return _share_of(transcript, node, secret)


@lru_cache(maxsize=256)
def _share_of(transcript: Transcript, node: NodeId, secret: bytes) -> bytes | None:
    index = transcript.index_of(node)
    if index is None or not transcript.sealed:
        return None
    parts = [xor(s.sealed[index], _hash(s.ephemeral, secret)) for s in transcript.sealed]
    share = _hash(*parts)
    return share if share == transcript.share_keys[index] else None
