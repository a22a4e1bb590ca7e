"""The state manager: executes batches, keeps snapshots until they are certified, makes checkpoints.

Implements what consensus asks of execution (`StateView`). Owns the folder of checkpoints and the
database; the database always holds the newest certified height.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from replica.certification import state_tree
from replica.consensus.delivery import Batch
from replica.execution.management import Policy
from replica.execution.recovery import RecoveryRound, Work, newest_registry_version
from replica.execution.round import Round, RoundResult
from replica.protocol import hash_tree, manifest
from replica.protocol.artifacts import Certification
from replica.protocol.crypto.dkg import KeyRequest
from replica.protocol.cup import CatchUpPackage
from replica.protocol.errors import NotVerified, ReprisError, Unavailable
from replica.protocol.hashing import sha256
from replica.protocol.ids import Height, RegistryVersion, SubnetId
from replica.runtime.durable import make_folder, rename, sync_folder, write_durably
from replica.state import checkpoint
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
        make_folder(self.checkpoints)
        self.executed: dict[int, Executed] = {}
        self.certified: Certified | None = None
        self.manifests: dict[int, manifest.Manifest] = {}
        self._changed = checkpoint.Changed()
        self._base: int | None = None
        self._tip: Snapshot = genesis(subnet)
        self._requests: hash_tree.Tree = hash_tree.EMPTY
        """The tip's subtree of requests; the next block's differs where requests changed."""
        self._key_requests: dict[int, tuple[KeyRequest, ...]] = {}
        self._certified_height = Height(0)

    # -- opening

    def open(self, package: CatchUpPackage) -> None:
        """Load the newest checkpoint that the CUP allows; adopt one under the CUP's height.

        Without any, the state is genesis, and consensus asks for the CUP's by state sync.
        """
        self._discard_torn()
        if package.state_hash:
            self._adopt(package)
        for height in reversed(self.checkpoint_heights()):
            if height > package.height:
                continue
            at_package = height == package.height
            expected = package.state_hash if at_package else self._recorded_root(height)
            if self._root_of(height) != expected:
                what = "in the CUP" if at_package else "that was written"
                self.log(f"the checkpoint at {height} is not the one {what}: set aside")
                self._discard(height)
                continue
            if self._try_load(height, package.epoch):
                return
        self._start_from(genesis(self.subnet), {}, package.epoch)

    def _discard_torn(self) -> None:
        for path in self.checkpoints.iterdir():
            if path.is_dir() and len(path.name) != 16:
                checkpoint.remove(path)

    def _try_load(self, height: int, epoch: int) -> bool:
        try:
            snapshot, changes = checkpoint.load(self.folder(height), Height(height))
        except (ReprisError, OSError, ValueError) as error:
            self.log(f"the checkpoint at {height} can't be read ({error}): removed")
            self._discard(height)
            return False
        self._start_from(snapshot, changes, epoch)
        self._base = height
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
        self._changed, self._base = checkpoint.Changed(), None

    def _set_tip(self, snapshot: Snapshot) -> None:
        self._tip = snapshot
        requests = tuple([c.request for c in snapshot.system.key_calls])
        self._key_requests[snapshot.height] = requests

    def _adopt(self, package: CatchUpPackage) -> None:
        """Give a checkpoint with the CUP's root the CUP's height (after a recovery)."""
        target = self.folder(package.height)
        if target.exists():
            return
        for height in reversed(self.checkpoint_heights()):
            if height < package.height and self._root_of(height) == package.state_hash:
                aside = self.checkpoints / f"adopt-{package.height}"
                checkpoint.remove(aside)
                for path in checkpoint.files(self.folder(height)):
                    (aside / path).parent.mkdir(parents=True, exist_ok=True)
                    os.link(self.folder(height) / path, aside / path)
                sync_folder(aside)
                rename(aside, target)
                self._record_root(package.height, package.state_hash)
                self.log(f"adopted the checkpoint of height {height} as {package.height}")
                return

    # -- the view of consensus

    @property
    def latest_height(self) -> Height:
        return self._tip.height

    @property
    def certified_height(self) -> Height:
        return self._certified_height

    def certified_root_at(self, height: int) -> tuple[bytes, bytes] | None:
        found = self.executed.get(height)
        return None if found is None else (found.tree.digest, found.witness)

    def uncertified_heights(self) -> Sequence[int]:
        return [h for h in self.executed if h > self._certified_height]

    def checkpoint_root_at(self, height: int) -> bytes | None:
        found = self.manifests.get(height)
        return None if found is None else manifest.root(found)

    def key_requests_at(self, height: int) -> tuple[KeyRequest, ...]:
        found = self._key_requests.get(height)
        if found is None:
            raise Unavailable(f"the state of height {height} is not here")
        return found

    # -- executing

    def execute(self, batch: Batch) -> RoundResult:
        """Run the next block. Raises nothing: what a block holds can't break a replica."""
        assert batch.height == self._tip.height + 1, "batches come in order"
        below = self.executed[self._tip.height].result.rows if self.executed else self.store
        policy = self.surroundings.policy(batch.registry_version)
        result = Round(self._tip, below, batch, policy).run()
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
        self.remove_checkpoints_below(cup_height, keep=2)
        for old in [h for h in self._key_requests if h < cup_height]:
            del self._key_requests[old]
        self.store.drop_retired(min(cup_height, self._certified_height))

    # -- checkpoints

    def folder(self, height: int) -> Path:
        return self.checkpoints / f"{height:016x}"

    def checkpoint_heights(self) -> list[int]:
        return sorted(
            int(p.name, 16) for p in self.checkpoints.iterdir() if p.is_dir() and len(p.name) == 16
        )

    def _rows(self) -> Layer:
        below = self.executed[self._tip.height].result.rows if self.executed else self.store
        return Layer(below)

    def make_checkpoint(self) -> bytes:
        """Write the state at the tip as files; return the manifest's root."""
        height = self._tip.height
        target = self.folder(height)
        if target.exists() and self._root_of(height) != self._recorded_root(height):
            self._discard(height)  # made before a restart, and rotten since
        written: dict[str, list[manifest.ChunkInfo]] = {}
        if not target.exists():
            aside = self.checkpoints / f"writing-{height}"
            checkpoint.remove(aside)
            aside.mkdir()
            base = self.folder(self._base) if self._base is not None else None
            if base is not None and not base.is_dir():
                base = None
            writer = checkpoint.Writer(aside, base)
            writer.write(self._tip, self._rows(), self._changed)
            sync_folder(aside)
            rename(aside, target)
            written = writer.written
        root = self._root_of(height, written)
        self._record_root(height, root)
        self._changed, self._base = checkpoint.Changed(), height
        return root

    def _root_path(self, height: int) -> Path:
        return self.checkpoints / f"{height:016x}.root"

    def _record_root(self, height: int, root: bytes) -> None:
        """Note, durably, what a checkpoint's root is: a disk may rot until it is read again."""
        if self._recorded_root(height) != root:
            write_durably(self._root_path(height), root)

    def _recorded_root(self, height: int) -> bytes | None:
        path = self._root_path(height)
        return path.read_bytes() if path.exists() else None

    def _discard(self, height: int) -> None:
        """Remove a checkpoint and all that is known of it: another may be made at its height."""
        checkpoint.remove(self.folder(height))
        self._root_path(height).unlink(missing_ok=True)
        self.manifests.pop(height, None)

    def _root_of(
        self, height: int, written: Mapping[str, list[manifest.ChunkInfo]] | None = None
    ) -> bytes:
        found = self.manifests.get(height)
        if found is None:
            base = None
            if self._base is not None and self._base in self.manifests:
                base = (self.folder(self._base), self.manifests[self._base])
            found = self.manifests[height] = checkpoint.compute_manifest(
                self.folder(height), base, written
            )
        return manifest.root(found)

    def remove_checkpoints_below(self, height: int, keep: int = 1) -> None:
        """Keep the newest `keep` checkpoints below a height, remove older ones."""
        below = [h for h in self.checkpoint_heights() if h < height]
        for h in below[:-keep] if keep else below:
            if h != self._base:
                self._discard(h)

    def install_synced(self, folder: Path, height: Height, root: bytes, epoch: int) -> None:
        """Take over a fetched checkpoint. Raises: NotVerified when its root is another one."""
        computed = checkpoint.compute_manifest(folder)
        if manifest.root(computed) != root:
            raise NotVerified("the fetched checkpoint does not hash to the CUP's root")
        target = self.folder(height)
        checkpoint.remove(target)
        sync_folder(folder)
        rename(folder, target)
        self._record_root(height, root)
        self.manifests[height] = computed
        snapshot, changes = checkpoint.load(target, height)
        self._start_from(snapshot, changes, epoch)
        self._base = height


__all__ = ["Certified", "StateFault", "StateManager", "Surroundings"]
