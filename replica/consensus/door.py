"""The door: what comes from a peer, before it takes a place in the pool.

Everything is decided by what costs little to look at: epoch, height, size, who signed, how many of
its kind are here. A signature is checked here only where a place depends on it: a block's by its
maker, a catch-up package's by the subnet.

Places, waiting and valid ones together: a signer has one share a height (of notarizations one a
block and 2(f + 1) blocks, of certifications two roots: those are evidence, more is nothing), a
maker two blocks a height (see `block_places`), a sender one of whatever else a height (2(f + 1)
notarizations). In its own place a sender's newer word takes that of its older one.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Any

from replica.consensus.asking import Asking
from replica.consensus.block_places import BlockPlaces
from replica.consensus.horizon import Horizon
from replica.consensus.pool import Pool, owner_of
from replica.consensus.quota import Quotas
from replica.consensus.reader import Reader
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import (
    SHARES,
    Artifact,
    BeaconShare,
    BlockProposal,
    Certification,
    CertificationShare,
    Cup,
    CupShare,
    DkgComplaint,
    DkgDealing,
    EquivocationProof,
    Finalization,
    FinalizationShare,
    Notarization,
    NotarizationShare,
    TapeShare,
)
from replica.protocol.crypto.keys import verify_ed25519
from replica.protocol.errors import Rejected, Unavailable
from replica.protocol.ids import NodeId

SMALL_BYTES_MAX = 1024
"""Shares, beacons, tapes, proofs, complaints, certifications: two digests, a signature of 48 to 64
bytes, ids of 29 and numbers of 9, or a tree's path of some 20 digests. None comes to 900."""
SIGNER_BYTES, RECEIVER_BYTES = 32, 136
"""An encoded id; and a commitment of 96 bytes and a sealed share of 32, encoded."""
CERTIFIED_ROOTS_MAX = 2
FAULTS_MAX, FAULT_BYTES_MAX = 64, 8 << 20
"""What was wrong is kept until the driver has told of it, one artifact more at most; what comes
beyond that was its sender's as well, and is let go untold."""
_SHARE_KINDS = frozenset(SHARES)
_CONTENT: dict[type, str] = {
    NotarizationShare: "block",
    Notarization: "block",
    CertificationShare: "root",
}
"""Of what there may be several: those on one content take each other's place."""


class Admission(enum.Enum):
    ADMITTED = "admitted"
    DISPLACED = "admitted in place of another of its sender's"
    USELESS = "late, known or of another run"
    REFUSED = "no place"
    WRONG = "wrong by itself"

    @property
    def is_in(self) -> bool:
        return self in (Admission.ADMITTED, Admission.DISPLACED)


@lru_cache(maxsize=1024)
def _is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    return verify_ed25519(key, message, signature)


def is_by_its_maker(reader: Reader, proposal: BlockProposal) -> bool:
    """Whether a block is its maker's, who is a member. Raises: Unavailable."""
    block = proposal.block
    keys = reader.settings_at(block.height).keys.get(proposal.maker)
    hash_ = artifacts.block_hash(block)
    message = artifacts.block_message(reader.subnet, block.epoch, block.run, block.height, hash_)
    return keys is not None and _is_signed(keys.signing, message, proposal.signature)


class Door:
    def __init__(self, reader: Reader, certifications: Pool, quotas: Quotas, asking: Asking):
        """`reader`: of the pool of consensus; its times are not looked at."""
        self._reader, self._quotas, self._asking = reader, quotas, asking
        self.horizon = Horizon(reader)
        self._chain, self._pool, self._certifications = reader.chain, reader.pool, certifications
        self.faults: list[tuple[Artifact, str, tuple[NodeId, ...]]] = []
        """See `take_faults`."""
        self._fault_bytes = 0
        self._blocks = BlockPlaces(self._chain, self._pool)

    def admit(self, artifact: Artifact, sender: NodeId, now_ns: int) -> Admission:
        """Give an artifact its place among what waits, or none."""
        kind, height = type(artifact), artifact.height
        if not self._is_of_this_run(artifact) or self.horizon.is_late(kind, height):
            return Admission.USELESS
        if kind is Cup:
            return self._admit_cup(artifact, sender, now_ns)  # type: ignore[arg-type]
        if self.horizon.is_beyond(kind, height):
            return self._refuse(artifact, sender)
        pool = self._pool_of(kind)
        if artifact in pool.validated or not self._is_wanted(artifact):
            return Admission.USELESS
        try:
            size_bytes = len(artifacts.encode(artifact))
            fault = self._fault(artifact, sender, size_bytes)
            if fault is None:
                return self._place(pool, artifact, sender, size_bytes, now_ns)
        except Unavailable:  # a registry version that is not here yet
            return self._refuse(artifact, sender)
        return self._wrong(artifact, fault, sender)

    def is_worth_decoding(self, kind: type, height: int, sender: NodeId) -> bool:
        """Whether an artifact of which only this is known may get in."""
        if self.horizon.is_late(kind, height):
            return False
        if kind is Cup:
            return height > self._kept_cup_height()
        if self.horizon.is_beyond(kind, height):
            self._asking.want(sender, (kind,), height, height)
            return False
        if kind in (BeaconShare, TapeShare, FinalizationShare, CupShare):
            return not self._pool.validated.owned(kind, height, sender)
        return True

    # -- what it is

    def _is_of_this_run(self, artifact: Artifact) -> bool:
        if artifact.epoch != self._chain.cup.epoch:
            return False
        if isinstance(artifact, BlockProposal):
            return artifact.block.run == self._reader.run
        return not isinstance(artifact, EquivocationProof) or artifact.run == self._reader.run

    def _is_wanted(self, artifact: Any) -> bool:
        kind, height = type(artifact), artifact.height
        if kind in (Certification, CertificationShare):
            return not self._certifications.validated.has(Certification, height)
        if kind in (Notarization, NotarizationShare):
            return not self._chain.is_notarized(height, artifact.block)
        if kind in (DkgDealing, DkgComplaint):
            return not self._pool.validated.owned(kind, height, owner_of(artifact))
        return True

    def _fault(self, artifact: Artifact, sender: NodeId, size_bytes: int) -> str | None:
        """Return what is wrong by itself. Raises: Unavailable."""
        if size_bytes > SMALL_BYTES_MAX and size_bytes > self._bytes_max(artifact):
            return "it is too big"
        if isinstance(artifact, SHARES):
            if artifact.signer != sender:
                return "it is another signer's share"
            return None if self._is_signer(artifact) else "the signer is not in the committee"
        if isinstance(artifact, BlockProposal):
            if artifact.block.subnet != self._reader.subnet:
                return "a block of another subnet"
            good = is_by_its_maker(self._reader, artifact)
            return None if good else "no member made this block"
        return None

    def _bytes_max(self, artifact: Artifact) -> int:
        if isinstance(artifact, BlockProposal):
            return artifacts.ARTIFACT_BYTES_MAX
        if isinstance(artifact, Notarization | Finalization):
            members = self._reader.settings_at(artifact.height).members
            return SMALL_BYTES_MAX + SIGNER_BYTES * len(members)
        if isinstance(artifact, DkgDealing):
            return SMALL_BYTES_MAX + RECEIVER_BYTES * self._receivers_max()
        return SMALL_BYTES_MAX

    def _receivers_max(self) -> int:
        """Return for how many at most a key is dealt, now or in the next interval."""
        newest = self._chain.summary_at(self._chain.finalized_height)
        latest = self._reader.context.registry
        members = latest.subnet(latest.latest_version).members
        wanted = [len(r.request.receivers) for r in newest.requests]
        return max(len(newest.receivers), len(members), *wanted)

    def _is_signer(self, share: Any) -> bool:
        reader, height = self._reader, share.height
        if type(share) in (NotarizationShare, FinalizationShare):
            return share.signer in reader.settings_at(height).keys
        low = isinstance(share, BeaconShare | TapeShare)
        transcript = reader.low(height) if low else reader.high(height)
        return transcript.index_of(share.signer) is not None

    # -- places

    def _pool_of(self, kind: type) -> Pool:
        is_certification = kind in (Certification, CertificationShare)
        return self._certifications if is_certification else self._pool

    def _place(
        self, pool: Pool, artifact: Artifact, sender: NodeId, size_bytes: int, now_ns: int
    ) -> Admission:
        is_known = artifact in pool.unvalidated
        if is_known and sender in pool.quotas.senders(artifact):
            return Admission.USELESS
        owner = owner_of(artifact)
        slot = (type(artifact), artifact.height, owner)
        rival: Artifact | None = None
        if isinstance(artifact, BlockProposal):
            if not self._blocks.take(artifact, now_ns):
                return Admission.REFUSED  # asked for if it turns out to be notarized
        elif not (found := self._rival(pool, artifact, sender, slot))[0]:
            return Admission.REFUSED
        else:
            rival = found[1]
        if rival is not None:
            pool.drop(rival, sender)
        made_room = self._make_room(artifact, sender, size_bytes)
        if made_room is None:
            return self._refuse(artifact, sender)
        self._quotas.charge(sender, artifact, size_bytes, slot)
        pool.unvalidated.insert(artifact, now_ns)
        if is_known:
            return Admission.USELESS
        return Admission.DISPLACED if made_room or rival is not None else Admission.ADMITTED

    def _rival(
        self, pool: Pool, artifact: Artifact, sender: NodeId, slot: tuple[Any, ...]
    ) -> tuple[bool, Artifact | None]:
        """Return whether there is a place, and who of the sender's own has to leave it."""
        kind, height, owner = slot
        waiting = self._quotas.of(sender).in_slot(slot)
        valid: list[Any] = []
        if kind in _SHARE_KINDS:
            valid = pool.validated.owned(kind, height, owner)
        if not waiting and not valid:
            return True, None
        content = _CONTENT.get(kind)
        mine = getattr(artifact, content) if content else None
        for known in (*valid, *waiting):
            if content is None or getattr(known, content) == mine:
                return (False, None) if known in valid else (True, known)
        return len(valid) + len(waiting) < self._places(kind, height), None

    def _places(self, kind: type, height: int) -> int:
        if kind is CertificationShare:
            return CERTIFIED_ROOTS_MAX
        if kind in (Notarization, NotarizationShare):
            return 2 * (self._reader.settings_at(height).faults_max + 1)
        return 1

    def _make_room(self, artifact: Artifact, sender: NodeId, size_bytes: int) -> bool | None:
        """Let what lies farther go; return whether something had to, None: there is no room."""
        quota, made = self._quotas.of(sender), False
        while not quota.has_room(size_bytes):
            farthest = quota.farthest()
            if farthest is None or farthest.height <= artifact.height:
                return None
            self._pool_of(type(farthest)).drop(farthest, sender)
            self._refuse(farthest, sender)
            made = True
        return made

    def _wrong(self, artifact: Artifact, fault: str, sender: NodeId) -> Admission:
        if len(self.faults) < FAULTS_MAX and self._fault_bytes < FAULT_BYTES_MAX:
            self._fault_bytes += len(artifacts.encode(artifact))
            self.faults.append((artifact, fault, (sender,)))
        return Admission.WRONG

    def take_faults(self) -> list[tuple[Artifact, str, tuple[NodeId, ...]]]:
        """Return what was wrong since the last call, why, and whose it was."""
        faults, self.faults, self._fault_bytes = self.faults, [], 0
        return faults

    def _refuse(self, artifact: Artifact, sender: NodeId) -> Admission:
        self._asking.want(sender, (type(artifact),), artifact.height, artifact.height)
        return Admission.REFUSED

    # -- catch-up packages

    def _kept_cup_height(self) -> int:
        kept = self._pool.unvalidated.height_max(Cup)
        return max(kept or 0, self._chain.cup.height)

    def _admit_cup(self, artifact: Cup, sender: NodeId, now_ns: int) -> Admission:
        """Keep the highest package that the subnet signed; it has waited since the first did."""
        if artifact.height <= self._kept_cup_height():
            return Admission.USELESS
        fault = self._cup_fault(artifact)
        if fault is not None:
            return self._wrong(artifact, fault, sender)
        waiting = self._pool.unvalidated
        since_ns = now_ns
        for kept in list(waiting.of_kind(Cup)):
            since_ns = min(since_ns, waiting.time_of(kept))
            self._pool.discard(kept)
        waiting.insert(artifact, since_ns)
        return Admission.ADMITTED

    def _cup_fault(self, artifact: Cup) -> str | None:
        try:
            package = cup.package_of(artifact)
            if (package.height, package.epoch) != (artifact.height, artifact.epoch):
                return "it is not the CUP that it says it is"
            if package.subnet != self._reader.subnet:
                return "a CUP of another subnet"
            package.verify(self._chain.cup.summary.high.public_key, self._reader.context.scheme)
        except Rejected as error:
            return str(error)
        return None
