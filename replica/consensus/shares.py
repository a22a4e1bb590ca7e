"""Shares become a signature: combined first, checked once, and one by one only when that fails.

A share in the validated section is known to be good (own, or checked); one in the unvalidated
section is only known to come from its signer. As soon as enough of both are here they are combined
and the result is checked: one verification instead of one a share. When it fails, random linear
combinations find the bad ones.

Source: reference/consensus.md §2, decisions 2-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from replica.client.subnet_view import SubnetView
from replica.consensus.pool import HandleInvalid, MoveToValidated, Mutation, RemoveUnvalidated
from replica.consensus.reader import Reader
from replica.protocol.crypto.scheme import Scheme, Transcript
from replica.protocol.ids import NodeId


class Committee(Protocol):
    """Who may sign, how many must, and how their shares combine."""

    @property
    def threshold(self) -> int: ...

    def key_of(self, signer: NodeId) -> bytes | None: ...

    def combine(self, message: bytes, by_signer: dict[NodeId, bytes]) -> bytes: ...

    def verify(self, message: bytes, signers: Sequence[NodeId], signature: bytes) -> bool: ...

    def faulty(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class ThresholdCommittee:
    """The holders of shares of one threshold key."""

    scheme: Scheme
    transcript: Transcript

    @property
    def threshold(self) -> int:
        return self.transcript.threshold

    def key_of(self, signer: NodeId) -> bytes | None:
        index = self.transcript.index_of(signer)
        return None if index is None else self.transcript.share_keys[index]

    def combine(self, message: bytes, by_signer: dict[NodeId, bytes]) -> bytes:
        indices = {self.transcript.committee.index(s): raw for s, raw in by_signer.items()}
        return self.scheme.combine_threshold(message, indices, self.transcript)

    def verify(self, message: bytes, signers: Sequence[NodeId], signature: bytes) -> bool:
        return self.scheme.verify_threshold(self.transcript.public_key, message, signature)

    def faulty(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        return self.scheme.faulty_threshold(keys, message, signatures, seed)


@dataclass(frozen=True, slots=True)
class MemberCommittee:
    """All members of the subnet, who sign with keys of their own (notarization, finalization)."""

    scheme: Scheme
    settings: SubnetView

    @property
    def threshold(self) -> int:
        return self.settings.quorum

    def key_of(self, signer: NodeId) -> bytes | None:
        keys = self.settings.keys.get(signer)
        return None if keys is None else keys.committee

    def combine(self, message: bytes, by_signer: dict[NodeId, bytes]) -> bytes:
        return self.scheme.combine_multi([by_signer[s] for s in sorted(by_signer)])

    def verify(self, message: bytes, signers: Sequence[NodeId], signature: bytes) -> bool:
        keys = [self.settings.keys[s].committee for s in signers]
        return self.scheme.verify_multi(keys, message, signature)

    def faulty(
        self, keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes], seed: bytes
    ) -> list[int]:
        return self.scheme.faulty_multi(keys, message, signatures, seed)


@dataclass(frozen=True, slots=True)
class Combined:
    signers: tuple[NodeId, ...]
    """In ascending order."""
    signature: bytes


def gather(
    reader: Reader,
    kind: type[Any],
    height: int,
    committee: Committee,
    message: bytes,
    matches: Callable[[Any], bool] = lambda _: True,
) -> tuple[list[Mutation], Combined | None]:
    """Return verdicts on shares of one content, and its signature once enough are good."""
    good = {s.signer: s for s in reader.pool.validated.at(kind, height) if matches(s)}
    good = {signer: s for signer, s in good.items() if committee.key_of(signer) is not None}
    fresh: dict[NodeId, Any] = {}
    verdicts: list[Mutation] = []
    for share in reader.pool.unvalidated.at(kind, height):
        if not matches(share):
            continue
        if committee.key_of(share.signer) is None:
            verdicts.append(HandleInvalid(share, "the signer is not in the committee"))
        elif share.signer in good or share.signer in fresh:
            verdicts.append(RemoveUnvalidated(share))  # one a signer is enough
        else:
            fresh[share.signer] = share
    if len(good) + len(fresh) < committee.threshold:
        return verdicts, None
    chosen = [*good.values(), *fresh.values()][: committee.threshold]
    by_signer = {s.signer: s.signature for s in sorted(chosen, key=lambda s: s.signer)}
    combined = _combine(committee, message, by_signer)
    if combined is not None:
        trusted = all(signer in good for signer in by_signer)
        if trusted or committee.verify(message, combined.signers, combined.signature):
            return verdicts, combined
    return verdicts + judge(reader, committee, message, list(fresh.values())), None


def _combine(
    committee: Committee, message: bytes, by_signer: dict[NodeId, bytes]
) -> Combined | None:
    """Combine shares of which some may be no signatures at all; None when that shows."""
    try:
        signature = committee.combine(message, by_signer)
    except ValueError:  # bytes that are no point of the curve
        return None
    return Combined(tuple(by_signer), signature)


def judge(
    reader: Reader, committee: Committee, message: bytes, shares: Sequence[Any]
) -> list[Mutation]:
    """Return a verdict on each of these shares; their signers are in the committee."""
    keys = [committee.key_of(s.signer) or b"" for s in shares]
    signatures = [s.signature for s in shares]
    bad = set(committee.faulty(keys, message, signatures, reader.context.keys.batch_seed))
    return [
        HandleInvalid(s, "wrong signature") if i in bad else MoveToValidated(s)
        for i, s in enumerate(shares)
    ]
