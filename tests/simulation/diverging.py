"""Execution's double with the drills' fault: another state from one height of epoch 1 on."""

from __future__ import annotations

from hashlib import sha256

from replica.consensus.delivery import Batch
from replica.protocol.cup import CatchUpPackage
from simulation.doubles import HashChain


class DivergingChain(HashChain):
    def __init__(self, diverge_at: int | None, salt: bytes) -> None:
        super().__init__()
        self.diverge_at, self.salt = diverge_at, salt

    def altered(self, batch: Batch, state: bytes) -> bytes:
        if batch.height == self.diverge_at and batch.epoch == 1:
            return sha256(self.salt + state).digest()
        return state

    def open(self, package: CatchUpPackage) -> None:
        """Load what the CUP allows; adopt a checkpoint with its root under its height."""
        if package.state_hash and package.height not in self.checkpoints:
            for height in sorted(self.checkpoints, reverse=True):
                if self.checkpoint_root_at(height) == package.state_hash:
                    self.checkpoints[package.height] = self.checkpoints[height]
                    break
        allowed = [h for h in self.checkpoints if h <= package.height]
        height = max(allowed, default=0)
        self.load(height, self.checkpoints.get(height, self.states[0]))
