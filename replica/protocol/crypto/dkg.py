"""Distributed key generation: joint Feldman, sealed shares, complaints that anyone can judge.

A dealer commits to a polynomial in G2 and seals each receiver's share with a key that dealer and
receiver alone can derive (ElGamal over G1). A receiver whose share does not fit the commitments
publishes that key for this dealing, with a proof (equal discrete logarithms), so that everybody can
open the share and see. A dealer proves that it chose the point that keys are derived from: else a
complaint of its dealing could be made to open another's. Fresh keys are the sum of all good
dealings. Resharing hands an existing key to other receivers: dealers share their own shares, and
the commitment to the constant term must be their known public share, so the public key stays.

Known and harmless here: the last dealer of a fresh key can bias it (Feldman); it signs randomness
that stays unpredictable. A dealer's polynomial is derived from its secret key and what is dealt, so
that a restart deals the same again: past dealings are as secret as that key.

Source: reference/consensus.md §1.10 and §2, decision 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from py_arkworks_bls12381 import G2Point
from pyblst import BlstP1Element

from replica.protocol import canonical
from replica.protocol.crypto import bls
from replica.protocol.crypto.scheme import (
    SealedShares,
    Transcript,
    faults_max,
    threshold_high,
    threshold_low,
)
from replica.protocol.errors import Malformed
from replica.protocol.hashing import domain, domain_hash, sha256
from replica.protocol.ids import Epoch, Height, NodeId, RegistryVersion, SubnetId

LOW, HIGH = 1, 2
"""Tags: which of a subnet's two keys. Those of a summary's k-th request are 2k + 1 and 2k + 2."""
INTERVAL, REQUEST, RECOVERY = 1, 2, 3
"""Purposes: keys of an interval of one's own, another subnet's on request, a new root key's. One
key's dealings are never another's, even where all else is equal."""
SCALAR_BYTES = 32


@dataclass(frozen=True)
class Config:
    """One key to be generated. Everybody derives the same from the summary that opens it."""

    purpose: int
    """What it is made for: INTERVAL, REQUEST or RECOVERY."""
    subnet: SubnetId
    epoch: Epoch
    height: Height
    """Of the summary."""
    tag: int
    dealers: tuple[NodeId, ...]
    receivers: tuple[NodeId, ...]
    """In ascending order."""
    threshold: int
    """Of the new key."""
    reshared: Transcript | None
    """The key that stays; None: a fresh one."""

    @property
    def needed(self) -> int:
        """How many good dealings make the key."""
        return self.reshared.threshold if self.reshared else faults_max(len(self.dealers)) + 1

    @property
    def wanted(self) -> int:
        """How many dealings are collected: as many may be bad as there are faulty dealers."""
        return self.needed + faults_max(len(self.dealers))

    @property
    def digest(self) -> bytes:
        return canonical.once(
            self, "_digest", lambda: domain_hash("ni-dkg-config", canonical.encode(self))
        )

    def index_of(self, dealer: NodeId) -> int:
        """Return the dealer's share index in the key that is reshared, or among the dealers."""
        committee = self.reshared.committee if self.reshared else self.dealers
        return committee.index(dealer)


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """Keys wanted for nodes of another subnet: both fresh, dealt by this subnet's members."""

    number: int
    """Counts the requests of a subnet's whole history."""
    registry_version: RegistryVersion
    """A version that holds the receivers' keys."""
    receivers: tuple[NodeId, ...]
    """In ascending order."""


@dataclass(frozen=True)
class OpenRequest:
    """A request that is dealt for in an interval."""

    request: KeyRequest
    attempt: int
    """From 1 on: an interval may bring too few good dealings."""


@dataclass(frozen=True)
class KeyResult:
    """What came of a request; without keys when there were too few good dealings every time."""

    number: int
    low: Transcript | None
    high: Transcript | None


def config(
    subnet: SubnetId,
    epoch: Epoch,
    height: Height,
    tag: int,
    receivers: tuple[NodeId, ...],
    newest_high: Transcript,
) -> Config:
    """Return what is generated for these receivers: low fresh by them, high reshared to them."""
    count = len(receivers)
    if tag == LOW:
        threshold = threshold_low(count)
        return Config(INTERVAL, subnet, epoch, height, tag, receivers, receivers, threshold, None)
    dealers = newest_high.committee
    bare = newest_high.without_shares()
    threshold = threshold_high(count)
    return Config(INTERVAL, subnet, epoch, height, tag, dealers, receivers, threshold, bare)


def config_of_request(
    subnet: SubnetId,
    epoch: Epoch,
    height: Height,
    tag: int,
    dealers: tuple[NodeId, ...],
    request: KeyRequest,
) -> Config:
    """Return what is generated for a request: an odd tag is a low-threshold key's."""
    count = len(request.receivers)
    threshold = threshold_low(count) if tag % 2 == LOW else threshold_high(count)
    receivers = request.receivers
    return Config(REQUEST, subnet, epoch, height, tag, dealers, receivers, threshold, None)


@dataclass(frozen=True)
class Dealing:
    commitments: tuple[bytes, ...]
    """To the coefficients, constant term first: 96 bytes each, as many as the threshold."""
    ephemeral: bytes
    """48 bytes: what receivers derive their keys from."""
    sealed: tuple[bytes, ...]
    """32 bytes each, in the receivers' order."""
    proof: bytes = b""
    """64 bytes: that this dealer chose the ephemeral point. One that used another's could have a
    receiver complain, and with what the complaint shows open that other's share."""


@dataclass(frozen=True)
class Complaint:
    """A receiver's proof that its share in a dealing is not what the dealer committed to."""

    key: bytes
    """48 bytes: the point that opens this receiver's share of this dealing."""
    challenge: bytes
    response: bytes
    """32 bytes each: that whoever made it knows the receiver's secret key."""


class KeyGeneration(Protocol):
    """What consensus asks of a scheme of distributed key generation."""

    def deal(
        self,
        config: Config,
        dealer: NodeId,
        seed: bytes,
        share: bytes | None,
        keys: Mapping[NodeId, bytes],
    ) -> Dealing:
        """`seed`: 32 secret bytes. `share`: the dealer's, when a key is reshared. `keys`: the
        receivers' public keys."""
        ...

    def fault(self, config: Config, dealer: NodeId, dealing: Dealing) -> str | None:
        """Return what everybody can see to be wrong."""
        ...

    def opens(self, config: Config, dealing: Dealing, receiver: NodeId, secret: bytes) -> bool:
        """Return whether a receiver's share is what the dealer committed to."""
        ...

    def complain(self, config: Config, dealing: Dealing, secret: bytes) -> Complaint: ...

    def is_justified(
        self, config: Config, dealing: Dealing, receiver: NodeId, key: bytes, complaint: Complaint
    ) -> bool:
        """`key`: the receiver's public key."""
        ...

    def combine(self, config: Config, dealings: Mapping[NodeId, Dealing]) -> Transcript | None:
        """Return the new key; None when there are too few good dealings."""
        ...

    def share_of(self, transcript: Transcript, node: NodeId, secret: bytes) -> bytes | None:
        """Return a member's secret share, out of what is sealed in the transcript."""
        ...


def public_key(secret: bytes) -> bytes:
    """Return the 48-byte key under which shares are sealed for whoever knows the secret."""
    return _times(bls.G1, _scalar_of(secret))


def message(config: Config, dealing: Dealing) -> bytes:
    """Return what a dealer signs."""
    return domain("dealing_content_non_interactive") + config.digest + digest(dealing)


def digest(dealing: Dealing) -> bytes:
    return canonical.once(dealing, "_digest", lambda: sha256(canonical.encode(dealing)))


class BlsDkg:
    """The real scheme."""

    def deal(
        self,
        config: Config,
        dealer: NodeId,
        seed: bytes,
        share: bytes | None,
        keys: Mapping[NodeId, bytes],
    ) -> Dealing:
        coefficients = [_derive(seed, config.digest, k) for k in range(config.threshold)]
        if config.reshared is not None:
            assert share is not None, "resharing needs the dealer's share"
            coefficients[0] = int.from_bytes(share, "big")
        exponent = _derive(seed, config.digest, -1)
        shown = _times(bls.G1, exponent)
        sealed = []
        for i, receiver in enumerate(config.receivers):
            point = _times(_g1(keys[receiver]), exponent)
            value = bls.evaluate(coefficients, i + 1).to_bytes(SCALAR_BYTES, "big")
            sealed.append(xor(value, _pad(shown, point, receiver)))
        commitments = tuple([bls.public_key(c) for c in coefficients])
        proof = _prove_choice(config, dealer, shown, exponent, _derive(seed, config.digest, -3))
        return Dealing(commitments, shown, tuple(sealed), proof)

    def fault(self, config: Config, dealer: NodeId, dealing: Dealing) -> str | None:
        return _fault(config.digest, config, dealer, dealing)

    def opens(self, config: Config, dealing: Dealing, receiver: NodeId, secret: bytes) -> bool:
        point = _times(_g1(dealing.ephemeral), _scalar_of(secret))
        return _fits(config, dealing, receiver, point)

    def complain(self, config: Config, dealing: Dealing, secret: bytes) -> Complaint:
        ephemeral, exponent = _g1(dealing.ephemeral), _scalar_of(secret)
        nonce = _derive(secret, digest(dealing), -2)
        point = _times(ephemeral, exponent)
        challenge = _challenge(
            _times(bls.G1, exponent),
            dealing.ephemeral,
            point,
            _times(bls.G1, nonce),
            _times(ephemeral, nonce),
        )
        response = (nonce + challenge * exponent) % bls.ORDER
        return Complaint(
            point,
            challenge.to_bytes(SCALAR_BYTES, "big"),
            response.to_bytes(SCALAR_BYTES, "big"),
        )

    def is_justified(
        self, config: Config, dealing: Dealing, receiver: NodeId, key: bytes, complaint: Complaint
    ) -> bool:
        try:
            public, point = _g1(key), _g1(complaint.key)
            ephemeral = _g1(dealing.ephemeral)
        except Malformed:
            return False
        challenge = int.from_bytes(complaint.challenge, "big")
        response = int.from_bytes(complaint.response, "big")
        if max(challenge, response) >= bls.ORDER:
            return False
        first = _nonce(bls.G1, response, public, challenge)
        second = _nonce(ephemeral, response, point, challenge)
        if challenge != _challenge(key, dealing.ephemeral, complaint.key, first, second):
            return False
        return receiver in config.receivers and not _fits(config, dealing, receiver, complaint.key)

    def combine(self, config: Config, dealings: Mapping[NodeId, Dealing]) -> Transcript | None:
        if len(dealings) < config.needed:
            return None
        chosen = sorted(dealings, key=config.index_of)
        if config.reshared is not None:
            chosen = chosen[: config.needed]
        indices = tuple([config.index_of(d) for d in chosen])
        factors = bls.lagrange(indices) if config.reshared else tuple([1] * len(chosen))
        scalars = [bls.scalar(f) for f in factors]
        sums = []
        for k in range(config.threshold):
            points = [_g2(dealings[d].commitments[k]) for d in chosen]
            sums.append(G2Point.multiexp_unchecked(points, scalars))
        keys = [_evaluate_public(sums, i + 1) for i in range(len(config.receivers))]
        sealed = tuple(
            [
                SealedShares(i, dealings[d].ephemeral, dealings[d].sealed)
                for i, d in zip(indices, chosen)
            ]
        )
        return Transcript(
            config.threshold,
            config.receivers,
            _bytes(sums[0]),
            tuple([_bytes(k) for k in keys]),
            sealed,
            config.reshared is not None,
        )

    def share_of(self, transcript: Transcript, node: NodeId, secret: bytes) -> bytes | None:
        return _share_of(transcript, node, secret)


@lru_cache(maxsize=64)
def _share_of(transcript: Transcript, node: NodeId, secret: bytes) -> bytes | None:
    index = transcript.index_of(node)
    if index is None or not transcript.sealed:
        return None
    indices = tuple([s.dealer for s in transcript.sealed])
    factors = bls.lagrange(indices) if transcript.is_reshared else (1,) * len(indices)
    total = 0
    for factor, part in zip(factors, transcript.sealed):
        point = _times(_g1(part.ephemeral), _scalar_of(secret))
        opened = int.from_bytes(xor(part.sealed[index], _pad(part.ephemeral, point, node)), "big")
        if opened >= bls.ORDER:
            return None  # a share has one form: who looks at it complains of any other
        total = (total + factor * opened) % bls.ORDER
    if bls.public_key(total) != transcript.share_keys[index]:
        return None  # a dealer cheated while this node could not complain
    return total.to_bytes(SCALAR_BYTES, "big")


@lru_cache(maxsize=512)
def _fault(_config: bytes, config: Config, dealer: NodeId, dealing: Dealing) -> str | None:
    if dealer not in config.dealers:
        return "the dealer was not asked to deal"
    if len(dealing.commitments) != config.threshold:
        return "a polynomial of another degree"
    if len(dealing.sealed) != len(config.receivers):
        return "not one share for each receiver"
    if any(len(s) != SCALAR_BYTES for s in dealing.sealed):
        return "a share that has not 32 bytes"
    if config.reshared is not None:
        known = config.reshared.share_keys[config.index_of(dealer)]
        if dealing.commitments[0] != known:
            return "it does not reshare the dealer's own share"
    try:
        _g1(dealing.ephemeral)
    except Malformed as error:
        return str(error)
    if any(bls.decode_g2(c) is None for c in dealing.commitments):
        return "not a point of G2"
    if not _is_own_choice(config, dealer, dealing):
        return "no proof that the dealer chose the ephemeral point"
    return None


def _choice(config: Config, dealer: NodeId, ephemeral: bytes, nonce: bytes) -> int:
    parts = (config.digest, bytes(dealer), ephemeral, nonce)
    return int.from_bytes(domain_hash("ni-dkg-ephemeral", *parts), "big") % bls.ORDER


def _prove_choice(
    config: Config, dealer: NodeId, ephemeral: bytes, exponent: int, nonce: int
) -> bytes:
    """Prove (Schnorr) to know the exponent of a point, bound to what is dealt and who deals."""
    shown = _times(bls.G1, nonce)
    challenge = _choice(config, dealer, ephemeral, shown)
    response = (nonce + challenge * exponent) % bls.ORDER
    return challenge.to_bytes(SCALAR_BYTES, "big") + response.to_bytes(SCALAR_BYTES, "big")


def _is_own_choice(config: Config, dealer: NodeId, dealing: Dealing) -> bool:
    if len(dealing.proof) != 2 * SCALAR_BYTES:
        return False
    challenge = int.from_bytes(dealing.proof[:SCALAR_BYTES], "big")
    response = int.from_bytes(dealing.proof[SCALAR_BYTES:], "big")
    if max(challenge, response) >= bls.ORDER:
        return False
    nonce = _nonce(bls.G1, response, _g1(dealing.ephemeral), challenge)
    return challenge == _choice(config, dealer, dealing.ephemeral, nonce)


def _fits(config: Config, dealing: Dealing, receiver: NodeId, point: bytes) -> bool:
    index = config.receivers.index(receiver)
    opened = xor(dealing.sealed[index], _pad(dealing.ephemeral, point, receiver))
    value = int.from_bytes(opened, "big")
    if value >= bls.ORDER:
        return False
    expected = _evaluate_public([_g2(c) for c in dealing.commitments], index + 1)
    return bls.public_key(value) == _bytes(expected)


def _evaluate_public(commitments: list[G2Point], x: int) -> G2Point:
    powers = [bls.scalar(pow(x, k, bls.ORDER)) for k in range(len(commitments))]
    return G2Point.multiexp_unchecked(commitments, powers)


def _pad(ephemeral: bytes, point: bytes, receiver: NodeId) -> bytes:
    return domain_hash("ni-dkg-share", ephemeral, point, bytes(receiver))


def _challenge(*points: bytes) -> int:
    return int.from_bytes(domain_hash("ni-dkg-complaint", *points), "big") % bls.ORDER


def _derive(seed: bytes, context: bytes, number: int) -> int:
    raw = hashlib.shake_256(
        domain("ni-dkg-coefficient") + seed + context + number.to_bytes(4, "big", signed=True)
    ).digest(48)
    return int.from_bytes(raw, "big") % (bls.ORDER - 1) + 1


def xor(a: bytes, b: bytes) -> bytes:
    """Return the bitwise exclusive or. Raises: ValueError unless both are of one length."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} bytes can't be masked with {len(b)}")
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


def _scalar_of(secret: bytes) -> int:
    return int.from_bytes(secret, "big") % bls.ORDER


def _times(point: BlstP1Element, exponent: int) -> bytes:
    """Multiply in constant time: the exponent may be secret."""
    return bytes(point.scalar_mul(exponent).compress())


def _nonce(base: BlstP1Element, response: int, point: BlstP1Element, challenge: int) -> bytes:
    """Return what a Schnorr proof's nonce must have been: base * response - point * challenge."""
    return bytes((base.scalar_mul(response) + -point.scalar_mul(challenge)).compress())


def _bytes(point: G2Point) -> bytes:
    return bytes(point.to_compressed_bytes())


def _g1(raw: bytes) -> BlstP1Element:
    """Decode with subgroup check. Raises: Malformed, also for the point at infinity."""
    point = bls.decode_g1(raw)
    if point is None:
        raise Malformed("not a point of G1")
    return point


def _g2(raw: bytes) -> G2Point:
    return G2Point.from_compressed_bytes_unchecked(raw)
