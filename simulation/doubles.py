"""Doubles for what a run of consensus alone does not simulate: execution, requests, the NNS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from replica.consensus.delivery import Batch
from replica.protocol import hash_tree
from replica.protocol.artifacts import Data, Payload, ValidationContext
from replica.protocol.certification import POSITION_PATHS
from replica.protocol.crypto.dkg import KeyRequest, KeyResult
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import Rejected, Unavailable
from replica.protocol.hashing import leb128
from replica.protocol.ids import Height, NodeId, RegistryVersion

KEYS_EVERY = 20
"""Heights between two requests for other nodes' keys."""


def manifest_root(state: bytes) -> bytes:
    """Return what stands for the root of a checkpoint's manifest."""
    return sha256(b"manifest" + state).digest()


def tree_of(epoch: int, height: int, state: bytes) -> tuple[bytes, bytes]:
    """Return (root, witness of epoch and height) of the certified tree."""
    position = {b"epoch": leb128(epoch), b"height": leb128(height)}
    tree = hash_tree.build({b"metadata": {**position, b"x": state}})
    return tree.digest, hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS))


def _asked(state: bytes) -> list[int]:
    """Return the numbers of the open requests for keys, which a state ends with."""
    return [int.from_bytes(state[i : i + 4], "big") for i in range(32, len(state), 4)]


class HashChain:
    """Execution: the state is one hash and what is asked; checkpoints are kept by height."""

    def __init__(self, outsiders: tuple[NodeId, ...] = ()) -> None:
        self.outsiders = outsiders
        """For whom keys are asked, again as soon as they came; none: nobody's."""
        self.key_results: dict[int, KeyResult] = {}
        self.states: dict[int, bytes] = {0: sha256(b"genesis").digest()}
        self.checkpoints: dict[int, bytes] = {}
        self.latest_height = Height(0)
        self.certified_height = Height(0)
        self.trees: dict[int, tuple[bytes, bytes]] = {}
        self._slow_ns = 0
        self._clock: Callable[[], int] = int
        self._made: dict[int, int] = {}
        """When each checkpoint was made; its manifest is there later."""

    def slow(self, manifest_ns: int, clock: Callable[[], int]) -> None:
        """Let manifests take their time from now on."""
        self._slow_ns, self._clock = manifest_ns, clock

    def execute(self, batch: Batch) -> None:
        assert batch.height == self.latest_height + 1, "batches come in order"
        for result in batch.keys:
            self.key_results.setdefault(result.number, result)
        parts = repr((batch.height, batch.time_ns, batch.randomness, batch.ingress, batch.epoch))
        before = self.states[batch.height - 1]
        state = self.altered(batch, sha256(before + parts.encode()).digest())
        answered = {r.number for r in batch.keys}
        asked = [n for n in _asked(before) if n not in answered]
        if self.outsiders and batch.height % KEYS_EVERY == 0:
            asked.append(batch.height // KEYS_EVERY)
        state += b"".join(n.to_bytes(4, "big") for n in asked)
        self.states[batch.height] = state
        self.latest_height = batch.height
        self.trees[batch.height] = tree_of(batch.epoch, batch.height, state)
        if batch.is_checkpoint:
            self.checkpoints[batch.height] = state
            self._made[batch.height] = self._clock()

    def altered(self, batch: Batch, state: bytes) -> bytes:
        """Return the state after a batch; a fault may make it another."""
        return state

    def restart(self, package_height: int) -> None:
        """Fall back to a checkpoint that a catch-up package vouches for, as a process that stopped.

        A newer one may not be certified yet: what follows the package is executed again.
        """
        height = max([h for h in self.checkpoints if h <= package_height], default=0)
        self.load(height, self.checkpoints.get(height, self.states[0]))

    def load(self, height: int, state: bytes) -> None:
        self.states = {0: self.states[0], height: state}
        if height:
            self.checkpoints[height] = state
        self.latest_height = self.certified_height = Height(height)
        self.trees = {}

    # -- the view of consensus

    def certified_root_at(self, height: int) -> tuple[bytes, bytes] | None:
        return self.trees.get(height)

    def uncertified_heights(self) -> Sequence[int]:
        return range(self.certified_height + 1, self.latest_height + 1)

    def checkpoint_root_at(self, height: int) -> bytes | None:
        state = self.checkpoints.get(height)
        if self._slow_ns and self._clock() < self._made.get(height, 0) + self._slow_ns:
            return None
        return manifest_root(state) if state else None

    def key_requests_at(self, height: int) -> tuple[KeyRequest, ...]:
        state = self.states.get(height)
        if state is None:
            raise Unavailable(f"the state of height {height} is not here")
        return tuple(KeyRequest(n, RegistryVersion(1), self.outsiders) for n in _asked(state))

    def forget_below(self, height: int) -> None:
        for old in [h for h in self.states if 0 < h < height]:
            del self.states[old]
        for old in [h for h in self.trees if h < height]:
            del self.trees[old]


class DivergingChain(HashChain):
    """A hash chain with the drills' fault: another state from one height of the first epoch on."""

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
        self.restart(package.height)


class Requests:
    """One request in every block, of a given size, which names its height."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def build(self, past: Sequence[Payload], context: ValidationContext, count_max: int) -> Data:
        if not self.size_bytes:
            return Data()
        unique = sha256(repr(context).encode()).digest()
        return Data(((unique * (self.size_bytes // 32 + 1))[: self.size_bytes],))

    def check(self, payload: Payload, past: Sequence[Payload], context: ValidationContext) -> None:
        due = self.build(past, context, 0).ingress
        if not isinstance(payload, Data) or payload.ingress not in (due, ()):
            raise Rejected("not the request that is due")
