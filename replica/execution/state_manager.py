"""The state manager: executes batches, keeps snapshots until they are certified, makes checkpoints.

Implements what consensus asks of execution (`StateView`). Owns the folder of checkpoints and the
database; the database always holds the newest certified height. Once the machine has failed
(`MachineFault`), no root and no checkpoint leaves here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from replica.certification import state_tree
from replica.client.folders import is_damage
from replica.consensus.delivery import Batch
from replica.execution.management import Policy
from replica.execution.recovery import RecoveryRound, Work, newest_registry_version
from replica.execution.round import Round, RoundResult
from replica.protocol import hash_tree, manifest
from replica.protocol.artifacts import Certification
from replica.protocol.crypto.dkg import KeyRequest
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import MachineFault, ReprisError, Unavailable
from replica.protocol.hashing import sha256
from replica.protocol.ids import Height, RegistryVersion, SubnetId
from replica.state import checkpoint
from replica.state.checkpoints import Checkpoints
from replica.state.placement import all_tables
from replica.state.rows import Changes, Layer
from replica.state.state import Snapshot, genesis
from replica.state.store import Store


@dataclass(frozen=True)
class Surroundings:
    """What execution reads of the registry, per version."""

    policy: Callable[[RegistryVersion], Policy]
    topology: Callable[[RegistryVersion], state_tree.Topology]


@dataclass(frozen=True)
class StateFault:
    """The documented fault of the drills: compute another state at one height of one epoch."""

    height: int
    epoch: int
    salt: bytes


@dataclass(frozen=True)
class Executed:
    """One executed height that is not certified yet."""

    snapshot: Snapshot
    tree: hash_tree.Tree
    witness: bytes
    result: RoundResult
    epoch: int


@dataclass(frozen=True)
class Certified:
    """The newest certified state: what reads and queries are answered from."""

    snapshot: Snapshot
    tree: hash_tree.Tree
    certification: Certification


class StateManager:
    def __init__(
        self,
        root: Path,
        subnet: SubnetId,
        store: Store,
        surroundings: Surroundings,
        fault: StateFault | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.root, self.subnet, self.store = root, subnet, store
        self.surroundings, self.fault, self.log = surroundings, fault, log
        self.checkpoints = root / "checkpoints"
        self._files = Checkpoints(self.checkpoints, subnet, log)
        self.executed: dict[int, Executed] = {}
        self.certified: Certified | None = None
        self._changed = checkpoint.Changed()
        self._tip: Snapshot = genesis(subnet)
        self._requests: hash_tree.Tree = hash_tree.EMPTY
        """The tip's subtree of requests; the next block's differs where requests changed."""
        self._key_requests: dict[int, tuple[KeyRequest, ...]] = {}
        self._certified_height = Height(0)

    # -- opening

    def open(self, package: CatchUpPackage) -> None:
        """Load the newest checkpoint that the CUP allows; adopt one under the CUP's height.

        Without any, the state is genesis, and consensus asks for the CUP's by state sync.
        Raises: MachineFault when files can't be read for reasons that are not theirs.
        """
        try:
            self._open(package)
        except OSError as error:
            raise self.store.latch.trip("opening the checkpoints", error) from error

    def _open(self, package: CatchUpPackage) -> None:
        files = self._files
        files.tidy()
        if package.state_hash:
            files.adopt(package.height, package.state_hash, package.epoch)
        for height in reversed(files.heights()):
            if height > package.height:
                continue
            signed = package.state_hash if height == package.height else None
            fault = files.fault_of(height, package.epoch, signed)
            if fault:
                self.log(f"the checkpoint at {height} {fault}: set aside")
                files.discard(height)
            elif self._try_load(height, package.epoch):
                return
        self._start_from(genesis(self.subnet), {}, package.epoch)

    def _try_load(self, height: int, epoch: int) -> bool:
        try:
            snapshot, changes = checkpoint.load(self.folder(height), Height(height))
        except (ReprisError, OSError, ValueError) as error:
            if isinstance(error, OSError) and not is_damage(error):
                raise
            self.log(f"the checkpoint at {height} can't be read ({error}): removed")
            self._files.discard(height)
            return False
        self._start_from(snapshot, changes, epoch)
        self._files.base = height
        return True

    def _start_from(self, snapshot: Snapshot, changes: Changes, epoch: int) -> None:
        self.store.reset()
        self._place_tables(snapshot)
        self.store.load(changes)
        self.store.set_fence(snapshot.height, epoch)
        self.executed.clear()
        self.certified = None
        self._key_requests.clear()
        self._set_tip(snapshot)
        self._requests = state_tree.requests(hash_tree.EMPTY, snapshot, snapshot.ingress)
        self._certified_height = snapshot.height
        self._changed, self._files.base = checkpoint.Changed(), None

    def _set_tip(self, snapshot: Snapshot) -> None:
        self._tip = snapshot
        requests = tuple([c.request for c in snapshot.system.key_calls])
        self._key_requests[snapshot.height] = requests

    # -- the view of consensus

    @property
    def latest_height(self) -> Height:
        return self._tip.height

    @property
    def certified_height(self) -> Height:
        return self._certified_height

    def certified_root_at(self, height: int) -> tuple[bytes, bytes] | None:
        """Return the root of the state tree and its witness. Raises: MachineFault."""
        self.store.latch.check()
        found = self.executed.get(height)
        return None if found is None else (found.tree.digest, found.witness)

    def uncertified_heights(self) -> Sequence[int]:
        return [h for h in self.executed if h > self._certified_height]

    def checkpoint_root_at(self, height: int) -> bytes | None:
        """Return a checkpoint's root, to be signed. Raises: MachineFault."""
        self.store.latch.check()
        return self._files.root_at(height)

    def known_roots(self) -> dict[int, bytes]:
        """Return the checkpoints that are here, by height: to be told, not signed."""
        found = {h: self._files.root_at(h) for h in self._files.heights()}
        return {h: root for h, root in found.items() if root is not None}

    def key_requests_at(self, height: int) -> tuple[KeyRequest, ...]:
        found = self._key_requests.get(height)
        if found is None:
            raise Unavailable(f"the state of height {height} is not here")
        return found

    # -- executing

    def execute(self, batch: Batch) -> RoundResult:
        """Run the next block. What a block holds can't break a replica.

        Raises: MachineFault, and nothing of the block was taken over then.
        """
        self.store.latch.check()
        assert batch.height == self._tip.height + 1, "batches come in order"
        below = self.executed[self._tip.height].result.rows if self.executed else self.store
        policy = self.surroundings.policy(batch.registry_version)
        try:
            result = Round(self._tip, below, batch, policy).run()
        except MachineFault as fault:
            self.store.latch.note(fault)
            raise
        self.store.latch.check()
        snapshot = self._with_fault(result.snapshot)
        self._note_requests(result)
        topology = self.surroundings.topology(batch.registry_version)
        tree = state_tree.build(snapshot, topology, self._requests)
        witness = state_tree.position_witness(tree)
        self._advance(Executed(snapshot, tree, witness, result, batch.epoch))
        if batch.is_checkpoint:
            self.make_checkpoint()
        return result

    def _note_requests(self, result: RoundResult) -> None:
        self._requests = state_tree.requests(
            self._requests, result.snapshot, result.touched_requests
        )

    def _advance(self, executed: Executed) -> None:
        """Make an executed height the tip; what it changed, the next checkpoint rewrites."""
        self.executed[executed.snapshot.height] = executed
        for id_ in executed.result.touched_requests:
            for status in (self._tip.ingress.get(id_), executed.snapshot.ingress.get(id_)):
                if status is not None:
                    self._changed.spans.add(checkpoint.span_of(status))
        self._set_tip(executed.snapshot)
        for name, rows in executed.result.rows.changes.items():
            if "#" not in name:  # index tables are derived, and in no checkpoint
                self._changed.tables.setdefault(name, set()).update(rows)

    def _with_fault(self, snapshot: Snapshot) -> Snapshot:
        fault = self.fault
        if fault is None or (snapshot.height, snapshot.system.epoch) != (fault.height, fault.epoch):
            return snapshot
        digest = sha256(b"injected divergence" + fault.salt + snapshot.system.digest)
        return replace(snapshot, system=replace(snapshot.system, digest=digest))

    def recover(self, batch: Batch, work: Work) -> tuple[int, bytes]:
        """Run an offline recovery's changes on the tip, which takes the batch's height.

        Returns the registry's newest version and its content. Raises: Rejected.
        """
        below = self._rows().below
        policy = self.surroundings.policy(batch.registry_version)
        result = RecoveryRound(self._tip, below, batch, policy).run_work(work)
        self.store.latch.check()
        self._note_requests(result)
        tree = state_tree.build(result.snapshot, (), self._requests)
        self._advance(Executed(result.snapshot, tree, b"", result, batch.epoch))
        return newest_registry_version(self._tip, self._rows())

    def deliver(self, certification: Certification) -> None:
        """Flush all heights up to a certified one to the database, in order."""
        height = certification.height
        for h in [h for h in sorted(self.executed) if h <= height]:
            entry = self.executed[h]
            if entry.result.reshaped:
                self._place_tables(entry.snapshot)
            self.store.flush(h, entry.epoch, entry.result.rows.changes)
            self.certified = Certified(entry.snapshot, entry.tree, certification)
            del self.executed[h]
        if self.executed:
            lowest = self.executed[min(self.executed)]
            lowest.result.rows.below = self.store
        self._certified_height = Height(max(self._certified_height, height))

    def _place_tables(self, snapshot: Snapshot) -> None:
        """Create the tables that a state has rows in; retire those that it uses no more."""
        wanted = {p.name: p for c in snapshot.canisters.values() for p in all_tables(c)}
        for placed in wanted.values():
            self.store.declare(placed.name, placed.sql_name, placed.table)
        for name in [n for n in self.store.tables if n not in wanted]:
            self.store.retire(name, snapshot.height)

    def forget_below(self, cup_height: int) -> None:
        """A catch-up package is past these: older checkpoints and retired tables can go."""
        self._files.remove_below(cup_height, keep=2)
        for old in [h for h in self._key_requests if h < cup_height]:
            del self._key_requests[old]
        self.store.drop_retired(min(cup_height, self._certified_height))

    # -- checkpoints

    @property
    def manifests(self) -> dict[int, manifest.Manifest]:
        """Of the checkpoints that were made or looked at since the start, by height."""
        return self._files.manifests

    def folder(self, height: int) -> Path:
        return self._files.path(height)

    def checkpoint_heights(self) -> list[int]:
        return self._files.heights()

    def look_at(self, height: int) -> bytes:
        """Return the root of a checkpoint; afterwards its manifest is known."""
        return self._files.root_of(height)

    def _rows(self) -> Layer:
        below = self.executed[self._tip.height].result.rows if self.executed else self.store
        return Layer(below)

    def make_checkpoint(self) -> bytes:
        """Write the state at the tip as files; return the manifest's root. Raises: MachineFault."""
        height = self._tip.height
        try:
            root = self._files.write(self._tip, self._rows(), self._changed)
        except OSError as error:
            raise self.store.latch.trip(f"writing the checkpoint of {height}", error) from error
        self.store.latch.check()
        self._changed = checkpoint.Changed()
        return root

    def install_synced(self, folder: Path, height: Height, root: bytes, epoch: int) -> None:
        """Take over a fetched checkpoint. Raises: NotVerified when its root is another one."""
        self._files.take(folder, height, root, epoch)
        snapshot, changes = checkpoint.load(self.folder(height), height)
        self._start_from(snapshot, changes, epoch)
        self._files.base = height


__all__ = ["Certified", "StateFault", "StateManager", "Surroundings"]
