"""Index over the validated pool: chain of blocks, tips, beacons, tapes, summaries.

Follows the pool's changes; decides nothing. Starts from a CUP, below which nothing is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from replica.protocol import artifacts
from replica.protocol.artifacts import (
    Artifact,
    Beacon,
    Block,
    BlockProposal,
    DkgMessage,
    Finalization,
    Notarization,
    Payload,
    Summary,
    Tape,
)
from replica.protocol.crypto.dkg import Config
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Unavailable
from replica.protocol.ids import Height, RegistryVersion


@dataclass(frozen=True, slots=True)
class ChainBlock:
    block: Block
    payload: Payload
    hash: bytes


@dataclass(frozen=True, slots=True)
class Interval:
    """What is in force at a height."""

    registry_version: RegistryVersion
    """Of the members, their release and settings."""
    low: Transcript
    high: Transcript


class Chain:
    def __init__(self, cup: CatchUpPackage) -> None:
        self.blocks: dict[bytes, ChainBlock] = {}
        self.proposed: dict[int, list[bytes]] = {}
        self.notarized: dict[int, list[bytes]] = {}
        self.finalized: dict[int, bytes] = {}
        self.beacons: dict[int, Beacon] = {}
        self.tapes: dict[int, Tape] = {}
        self.notarized_height = Height(0)
        self.finalized_height = Height(0)
        self.beacon_height = Height(0)
        self._summaries: dict[bytes, Summary] = {}
        self._dealt: dict[bytes, tuple[DkgMessage, ...]] = {}
        self.outcomes: dict[bytes, tuple[Transcript | None, ...]] = {}
        """Keys that come of an interval, by the hash of its last block."""
        self.configs: dict[tuple[bytes, int], Config] = {}
        """What is generated, by the summary's hash and the tag."""
        self.shares_checked: dict[bytes, bool] = {}
        """Whether this node's share is right, by a dealing's digest."""
        self.shares_good: tuple[DkgMessage, ...] = ()
        """Key generation of a block in which this node has nothing to complain of."""
        self.cup_contents: dict[tuple[bytes, bytes, bytes], bytes] = {}
        """What is signed as a CUP, by the hashes of block and beacon and the checkpoint's root."""
        self.purged_at: tuple[int, ...] = ()
        """How far everything was when the purger last found nothing to do."""
        self._in_force: dict[int, Summary] = {}
        self._intervals: dict[int, Interval] = {}
        self.summaries_seen = 0
        """Grows whenever another summary may be in force at some height."""
        self.cup = cup
        self.set_cup(cup)

    def set_cup(self, cup: CatchUpPackage) -> None:
        """Root the chain at a CUP: its block counts as notarized and finalized."""
        self.cup = cup
        self._forget_summaries()
        hash_ = artifacts.block_hash(cup.block)
        self._add_block(ChainBlock(cup.block, cup.summary, hash_))
        if hash_ not in self.notarized.setdefault(cup.height, []):
            self.notarized[cup.height].append(hash_)
        self.notarized_height = max(self.notarized_height, cup.height)
        self._finalize(cup.height, hash_)
        self._add_beacon(cup.beacon)

    def dealt(self, hash_: bytes) -> tuple[DkgMessage, ...]:
        """Return the key generation in a block and its ancestors, back to the summary."""
        return self._dealt.get(hash_, ())

    def purge_below(self, height: int) -> None:
        """Forget blocks, beacons and tapes below a height; the CUP's own block stays."""
        keep = artifacts.block_hash(self.cup.block)
        for index in (self.proposed, self.notarized):
            for h in [h for h in index if h < height]:
                for hash_ in index.pop(h):
                    if hash_ != keep:
                        self.blocks.pop(hash_, None)
                        self._summaries.pop(hash_, None)
                        self._dealt.pop(hash_, None)
        for by_height in (self.finalized, self.beacons, self.tapes):
            for h in [h for h in by_height if h < height and h != self.cup.height]:
                del by_height[h]

    def add(self, artifact: Artifact) -> None:
        if isinstance(artifact, BlockProposal):
            hash_ = artifacts.block_hash(artifact.block)
            self._add_block(ChainBlock(artifact.block, artifact.payload, hash_))
        elif isinstance(artifact, Notarization):
            known = self.notarized.setdefault(artifact.height, [])
            if artifact.block not in known:
                known.append(artifact.block)
            self.notarized_height = max(self.notarized_height, artifact.height)
        elif isinstance(artifact, Finalization):
            self._finalize(artifact.height, artifact.block)
        elif isinstance(artifact, Beacon):
            self._add_beacon(artifact)
        elif isinstance(artifact, Tape):
            self.tapes[artifact.height] = artifact

    def _add_block(self, entry: ChainBlock) -> None:
        if entry.hash in self.blocks:
            return
        self.blocks[entry.hash] = entry
        self.proposed.setdefault(entry.block.height, []).append(entry.hash)
        if isinstance(entry.payload, Summary):
            self._summaries[entry.hash] = entry.payload
        elif entry.block.parent in self._summaries:
            self._summaries[entry.hash] = self._summaries[entry.block.parent]
            before = self._dealt.get(entry.block.parent, ())
            here = entry.payload.dkg
            self._dealt[entry.hash] = before + here if here else before

    def _add_beacon(self, beacon: Beacon) -> None:
        self.beacons[beacon.height] = beacon
        self.beacon_height = max(self.beacon_height, beacon.height)

    def _finalize(self, height: int, hash_: bytes) -> None:
        while height not in self.finalized and hash_ in self.blocks:
            self.finalized[height] = hash_
            self.finalized_height = max(self.finalized_height, Height(height))
            if isinstance(self.blocks[hash_].payload, Summary):
                self._forget_summaries()
            hash_, height = self.blocks[hash_].block.parent, height - 1

    # -- look-ups

    def finalized_block(self, height: int) -> ChainBlock | None:
        hash_ = self.finalized.get(height)
        return self.blocks.get(hash_) if hash_ is not None else None

    @property
    def finalized_tip(self) -> ChainBlock:
        return self.blocks[self.finalized[self.finalized_height]]

    def notarized_at(self, height: int) -> list[ChainBlock]:
        """Return the notarized blocks at a height whose content is here, lowest rank first."""
        found = [self.blocks[h] for h in self.notarized.get(height, ()) if h in self.blocks]
        return sorted(found, key=lambda b: (b.block.rank, b.hash))

    def is_notarized(self, height: int, hash_: bytes) -> bool:
        return hash_ in self.notarized.get(height, ())

    def summary_of(self, hash_: bytes) -> Summary | None:
        """Return the summary of the interval that a block lies in, by its own chain."""
        return self._summaries.get(hash_)

    def summary_at(self, height: int) -> Summary:
        """Return the summary in force at a height, by finalized blocks; the CUP's at first."""
        found = self._in_force.get(height)
        if found is None:
            found = self._in_force[height] = self._find_summary(height)
        return found

    def summary_heights(self) -> list[int]:
        """Return the heights of final summaries above the CUP, newest first."""
        found, height = [], int(self.cup.summary.next_start)
        while height <= self.finalized_height:
            found.append(height)
            height = self.summary_at(height).next_start
        return found[::-1]

    def interval_at(self, height: int) -> Interval:
        """Return members' version and keys at a height: those of a final summary or its sequel.

        Raises: Unavailable for a height about which no final summary says anything yet.
        """
        found = self._intervals.get(height)
        if found is None:
            s = self.summary_at(height)
            if height < s.next_start:
                found = Interval(s.registry_version, s.low, s.high)
            elif height <= s.known_until:
                low, high = s.next_low or s.low, s.next_high or s.high
                found = Interval(s.next_registry_version, low, high)
            else:
                raise Unavailable(f"who signs at height {height} is not decided yet")
            self._intervals[height] = found
        return found

    def _forget_summaries(self) -> None:
        self._in_force.clear()
        self._intervals.clear()
        self.outcomes.clear()
        self.configs.clear()
        self.shares_checked.clear()
        self.cup_contents.clear()
        self.summaries_seen += 1

    def _find_summary(self, height: int) -> Summary:
        best = self.cup.summary
        h = best.next_start
        while h <= height and h <= self.finalized_height:
            entry = self.finalized_block(h)
            if entry is None or not isinstance(entry.payload, Summary):
                break
            best = entry.payload
            h = best.next_start
        return best
