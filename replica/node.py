"""One replica: carries out what consensus decides, on the node's folder and database.

Knows no event loop and no socket: `replica.service` runs it on both, simulations run it under
virtual time. Order matters where promises are made: artifacts are durable before they are sent, a
CUP is on the disk before it is acted on.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from replica.certification.state_tree import SubnetEntry, Topology
from replica.client import local_registry as keys
from replica.client.key_receiver import KeyOffers
from replica.client.local_registry import LocalRegistry, SubnetRegistry
from replica.consensus import driver as consensus
from replica.consensus.delivery import Batch
from replica.consensus.dkg import fault_of_complaint, offers
from replica.consensus.door import Admission
from replica.consensus.reader import Context, SecretKeys, Status
from replica.execution.ingress import IngressPool, decode_cached
from replica.execution.management import Policy
from replica.execution.state_manager import StateFault, StateManager, Surroundings
from replica.p2p import wire
from replica.p2p.transport import Handlers, Peer
from replica.protocol import artifacts, canonical, cup, envelope
from replica.protocol.artifacts import Artifact, Certification, DkgComplaint, Finalization
from replica.protocol.crypto import bls
from replica.protocol.crypto.dkg import BlsDkg
from replica.protocol.crypto.keys import ED25519_DER_PREFIX
from replica.protocol.errors import (
    Malformed,
    NotVerified,
    Rejected,
    ReprisError,
    Unavailable,
)
from replica.protocol.ids import (
    MANAGEMENT_CANISTER,
    Height,
    NodeId,
    Principal,
    RegistryVersion,
    SubnetId,
)
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.protocol.signed import Question, Signed
from replica.runtime import leftovers, space, stored_cup
from replica.runtime.durable import make_folder, rename
from replica.runtime.pool_journal import open_pool, pool_identity, pool_journal_path
from replica.runtime.settings import NodeSettings
from replica.runtime.space import Space
from replica.state.store import Store
from replica.state_sync import fetch, serve

LOG_CHARACTERS_MAX = 400
ADVERTISED_MAX = 3
"""Newest checkpoints that are offered to peers."""
SPACE_AGE_NS = 100_000_000
"""How old a look at the disk may be by which requests are taken."""
DIVERGED_EXIT = 86
"""Exit status of a replica that found its own state diverged and set it aside."""
FAULT_EXIT = 87
"""Exit status of a replica whose disk, database or memory failed: see `MachineFault`."""


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} replica {text}\n")
    sys.stderr.flush()


@dataclass
class SyncStatistics:
    """What state sync moved since this replica started."""

    syncs: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    wasted: int = 0
    """Whole checkpoints that were fetched and then were not what was asked for: never, since every
    part is checked when it comes."""


class RegistrySurroundings:
    """Execution's view of the registry: who may create canisters, what the tree shows."""

    def __init__(self, records: LocalRegistry, subnet: SubnetId) -> None:
        self.records, self.subnet = records, subnet
        self.policy = lru_cache(maxsize=8)(self._policy)
        self.topology = lru_cache(maxsize=8)(self._topology)

    def _policy(self, version: RegistryVersion) -> Policy:
        raw = self.records.get(keys.WHITELIST, version)
        whitelist = parse(pb.ProvisionalWhitelist, raw or b"")
        allowed = {bytes(p.raw) for p in whitelist.set}
        everyone = whitelist.list_type == 2
        ranges = self._ranges(version).get(bytes(self.subnet), [])
        first, last = ranges[0] if ranges else (Principal(bytes(10)), Principal(bytes(10)))
        return Policy(
            may_create=lambda p: everyone or bytes(p) in allowed,
            trusted_bundles=self.records.view(self.subnet, version).trusted_bundles,
            canister_first=int.from_bytes(first[:8], "big"),
            canister_last=int.from_bytes(last[:8], "big"),
        )

    def _ranges(self, version: int) -> dict[bytes, list[tuple[Principal, Principal]]]:
        table = parse(pb.RoutingTable, self.records.need(keys.ROUTING_TABLE, version))
        ranges: dict[bytes, list[tuple[Principal, Principal]]] = {}
        for entry in table.entries:
            low = Principal(entry.range.start_canister_id.principal_id.raw)
            high = Principal(entry.range.end_canister_id.principal_id.raw)
            ranges.setdefault(entry.subnet_id.principal_id.raw, []).append((low, high))
        return ranges

    def _topology(self, version: RegistryVersion) -> Topology:
        ranges = self._ranges(version)
        entries = []
        for subnet in sorted(self.records.subnets(version)):
            view = self.records.view(subnet, version)
            nodes = tuple((n, ED25519_DER_PREFIX + view.keys[n].signing) for n in view.members)
            key = self.records.subnet_public_key(subnet, version)
            entries.append(
                SubnetEntry(
                    subnet,
                    bls.public_key_to_der(key),
                    tuple(ranges.get(bytes(subnet), [])),
                    "system" if view.is_system else "application",
                    nodes if subnet == self.subnet else (),
                )
            )
        return tuple(entries)


def fault_line(settings: NodeSettings, fault: BaseException) -> str:
    """Return a replica's last words when its machine failed."""
    return (
        f"DISK OR MEMORY FAILED, ends unsigned (data in {settings.data}): {fault}; a restart makes "
        "the database anew from the newest checkpoint"
    )


def secret_keys(settings: NodeSettings) -> SecretKeys:
    secrets = settings.secrets()
    return SecretKeys(
        settings.node, secrets.signing, secrets.committee, secrets.shares, secrets.dealing
    )


class Link(Protocol):
    """The way to the peers."""

    @property
    def connected(self) -> Sequence[NodeId]: ...

    def send(self, artifact: Artifact) -> None:
        """Offer an artifact to every peer, now and whenever one reconnects."""
        ...

    def send_ingress(self, raw: bytes) -> None: ...

    def ask(self, node: NodeId, question: wire.Ask) -> None:
        """Ask a peer for what it holds of some kinds and heights."""
        ...

    def ask_signed(self, node: NodeId, question: Question) -> None:
        """Ask a peer for what it holds that this node signed."""
        ...

    def blame(self, node: NodeId, subject: str, reason: str, size_bytes: int) -> None:
        """Hold against a peer that it sent something wrong by itself."""
        ...

    def standings(self) -> dict[NodeId, dict[str, float | int]]:
        """Return how each peer behaved, as the status shows it."""
        ...

    def update(self, peers: list[Peer]) -> None: ...

    async def request_state(
        self, node: NodeId, height: int, root: bytes, kind: str, index: int
    ) -> bytes | None:
        """Return a part of a checkpoint, as a peer sent it."""
        ...


@dataclass
class Replica:
    """A replica. `start_consensus`, then `step` whenever something came or time has passed."""

    settings: NodeSettings
    version: str
    records: LocalRegistry
    subnet: SubnetId
    package: cup.CatchUpPackage
    clock: Callable[[], int] = time.time_ns
    monotonic: Callable[[], int] = time.monotonic_ns
    """For all delays: a machine's clock may jump or stand."""
    link: Link = field(init=False)
    """Set before the first step."""
    wake: Callable[[], None] = field(default=lambda: None)
    """Called when `step` may have something to do."""
    on_certified: Callable[[], None] = field(default=lambda: None)
    begin_sync: Callable[[Height, bytes], None] = field(default=lambda _height, _root: None)
    """Called to have `sync` run beside consensus."""
    space: Callable[[], Space] = field(init=False)
    """Looks at the disk that the data are on."""
    log: Callable[[str], None] = log
    statistics: SyncStatistics = field(default_factory=SyncStatistics)

    def __post_init__(self) -> None:
        settings = self.settings
        make_folder(settings.data)
        settings.check_owner()
        data = os.fspath(settings.data)
        self.space = lambda: space.look(data)
        self.waits_for_space = False
        """Whether the last step was left out, as the disk is full."""
        self._space_seen: tuple[int, Space] | None = None
        """The last look at the disk, and when it was."""
        self.secrets = settings.secrets()
        self.registry = SubnetRegistry(self.records, self.subnet, settings.stable_age_ns)
        surroundings = RegistrySurroundings(self.records, self.subnet)
        # All rows come from the checkpoint: a damaged database is no reason not to start.
        self.store = Store(settings.database, fresh=True)
        self.state = StateManager(
            settings.data,
            self.subnet,
            self.store,
            Surroundings(surroundings.policy, surroundings.topology),
            log=self.log,
        )
        self.ingress = IngressPool(
            lambda id_: id_ in self.state._tip.ingress,
            lambda: not self._recent_space().is_below_reserve,
            lambda id_: id_ == MANAGEMENT_CANISTER or id_ in self.state._tip.canisters,
        )
        self._adverts: dict[NodeId, tuple[tuple[int, bytes], ...]] = {}
        self.syncing = False
        self.delegation: bytes | None = None
        self._promise = settings.promised_epoch()
        self._certified_before = Height(0)
        """What it knew to be certified when it started, and may have answered with before."""

    # -- start

    def start_consensus(self) -> None:
        """Open the state at the CUP and take back what this epoch's pool holds."""
        self._load_fault()
        self._sweep()
        self.state.open(self.package)
        now = self.monotonic()
        context = Context(
            subnet=self.subnet,
            replica_version=self.version,
            keys=secret_keys(self.settings),
            scheme=bls.VERIFIER,
            dkg=BlsDkg(),
            registry=self.registry,
            state=self.state,
            payloads=self.ingress,
            log=self.log,
            may_sign=self._may_sign,
        )
        self.driver = consensus.Driver(context, self.package, now)
        run = self.driver.run
        path = pool_journal_path(self.settings, self.package.epoch, run)
        identity = pool_identity(self.settings, self.subnet, self.package.epoch, run)
        self.journal = open_pool(path, identity)
        leftovers.sweep_pools(self.settings.data, path)
        if self.journal.cut_bytes:
            self.log(f"{self.journal.cut_bytes} bytes of an interrupted write are cut off")
        restored = [artifacts.decode(r) for r in self.journal.records]
        self.journal.records = []
        self.driver.restore(restored, now)
        certified = self.driver.certifications.validated.height_max(Certification)
        self._certified_before = Height(certified or 0)
        self.log(
            f"starts at CUP {self.package.height} (epoch {self.package.epoch}), state "
            f"{self.state.latest_height}, {len(restored)} artifacts"
        )

    def _sweep(self) -> None:
        """Remove what an earlier run left unfinished."""
        data = self.settings.data
        names = leftovers.sweep_unfinished(data)
        names += leftovers.sweep_syncs(data, self.package.state_hash)
        if names:
            self.log(f"removes what an earlier run left: {', '.join(names)}"[:LOG_CHARACTERS_MAX])

    def _may_sign(self, epoch: int) -> bool:
        """Keep the promise of an attestation until the registry has moved on."""
        promised = self._promise
        if promised is None or promised[0] != epoch:
            return True
        if self.registry.latest_version <= promised[1]:
            return False
        return not self.registry.subnet(self.registry.latest_version).is_halted

    def _load_fault(self) -> None:
        path = self.settings.fault_path
        if path.exists() and self.state.fault is None:
            plain = json.loads(path.read_text())
            salt = plain.get("salt", "").encode()
            self.state.fault = StateFault(plain["diverge_at_height"], plain["epoch"], salt)
            self.log(f"FAULT: will compute another state at height {plain['diverge_at_height']}")

    def peers(self) -> list[Peer]:
        """Return the members by the newest registry, and who still has a part in this interval."""
        members = set(self.registry.subnet(self.registry.latest_version).members)
        out = []
        for node in sorted(members | self.package.holders):
            if self.records.get(keys.node_record(node)) is None:
                continue
            record = parse(pb.NodeRecord, self.records.need(keys.node_record(node)))
            certificate = parse(pb.X509PublicKeyCert, self.records.need(keys.tls_certificate(node)))
            out.append(Peer(node, record.p2p.ip_addr, record.p2p.port, certificate.certificate_der))
        return out

    def handlers(self) -> Handlers:
        """Return what the transport does with what comes from peers."""
        return Handlers(
            artifact=self._on_artifact,
            is_worth_decoding=self.driver.is_worth_decoding,
            ingress=self._on_ingress,
            advert=self._on_advert,
            offered=self.driver.offered,
            answer=lambda ask: self.driver.answer(ask.kinds, ask.first, ask.last),
            serve_state=self._serve_state,
            connected=self._on_connected,
            signed_by=self.driver.signed_by,
            signed_answer=self._on_signed_answer,
            log=self.log,
            tag=self.driver.tag,
        )

    def step(self) -> Iterator[consensus.Effect]:
        """Let consensus decide; carry out and yield one effect after the other.

        Raises: MachineFault once this node's machine has failed: nothing is signed any more.
        """
        self.store.latch.check()
        if not self._has_space_to_step():
            return
        for effect in self.driver.step(self.monotonic(), self.clock()):
            self._carry_out(effect)
            yield effect

    def _has_space_to_step(self) -> bool:
        """Whether what a step has to make durable finds room: a failed write would end us."""
        found = self._look_at_space()
        if found.is_below_floor != self.waits_for_space:
            self.waits_for_space = found.is_below_floor
            self.log(f"the disk has {found.free_bytes} bytes free: {found.describe() or 'goes on'}")
        return not self.waits_for_space

    def _look_at_space(self) -> Space:
        found = self.space()
        self._space_seen = (self.monotonic(), found)
        return found

    def _recent_space(self) -> Space:
        """Return what a look lately showed: requests come faster than disks fill."""
        seen = self._space_seen
        if seen is None or self.monotonic() - seen[0] >= SPACE_AGE_NS:
            return self._look_at_space()
        return seen[1]

    def refresh_registry(self) -> None:
        """Take in what the orchestrator stored meanwhile."""
        # In this order: a version that ends a promise is never seen before the promise is.
        self._promise = self.settings.promised_epoch()
        if self.records.refresh():
            self.registry.arrived(self.monotonic())
            self.link.update(self.peers())
            self.wake()
        self._load_fault()

    def advert(self) -> wire.Advert:
        """Return the checkpoints that peers can fetch here."""
        states = tuple(
            (h, root)
            for h in self.state.checkpoint_heights()[-ADVERTISED_MAX:]
            if (root := self.state.checkpoint_root_at(h)) is not None
        )
        return wire.Advert(states)

    # -- effects

    def _carry_out(self, effect: consensus.Effect) -> None:
        if isinstance(effect, consensus.Persist):
            self.journal.append([artifacts.encode(a) for a in effect.artifacts])
        elif isinstance(effect, consensus.Send):
            self.link.send(effect.artifact)
        elif isinstance(effect, consensus.Execute):
            began = self.monotonic()
            result = self.state.execute(effect.batch)
            self.ingress.executed(effect.batch.ingress)
            self._trace(effect.batch)
            if result.moved_rows:
                took = (self.monotonic() - began) / 1e9
                self.log(f"an upgrade moved {result.moved_rows} rows in {took:.2f} s")
            for canister, line in result.logs:
                self.log(f"[{canister.short}] {line}")
            self.driver.executed(effect.batch.height)
            self.wake()
        elif isinstance(effect, consensus.DeliverCertification):
            self.state.deliver(effect.certification)
            self.wake()
            self.on_certified()
        elif isinstance(effect, consensus.AdoptCup):
            self._adopt_cup(effect.package)
        elif isinstance(effect, consensus.FetchState):
            if not self.syncing:
                self.syncing = True
                self.begin_sync(effect.height, effect.root)
        elif isinstance(effect, consensus.Ask):
            self.link.ask(effect.peer, wire.Ask(effect.kinds, effect.first, effect.last))
        elif isinstance(effect, consensus.Diverged):
            self._set_aside_diverged(effect.height)
        elif isinstance(effect, consensus.Misbehaved):
            subject, size_bytes = (
                type(effect.artifact).__name__,
                len(artifacts.encode(effect.artifact)),
            )
            for sender in effect.senders:
                self.link.blame(sender, subject, effect.reason, size_bytes)
        elif isinstance(effect, consensus.AskSigned):
            self.link.ask_signed(effect.peer, effect.question)
        elif isinstance(effect, consensus.BadAnswer):
            self.link.blame(effect.peer, "answer", effect.reason, 0)
        elif isinstance(effect, consensus.FoundOld):
            self.log(
                f"OLD COPY: this node signed at height {effect.shown} what its disk does not hold;"
                f" it signs nothing until a CUP above {effect.until}"
            )

    def _trace(self, batch: Batch) -> None:
        """Drills only: note which release executed which data block."""
        if self.settings.trace and batch.ingress:
            with open(self.settings.trace_path, "a") as file:
                file.write(f"{batch.epoch} {batch.height} {self.version}\n")

    def _adopt_cup(self, package: cup.CatchUpPackage) -> None:
        try:
            height = stored_cup.read(self.settings.cup_path).height
        except Malformed as error:
            self.log(str(error))
            height = Height(-1)
        if height < package.height:  # the orchestrator may hold a recovery CUP already
            stored_cup.write(self.settings.cup_path, package)
        self.package = package
        self.link.update(self.peers())
        keep = [artifacts.encode(a) for a in self.driver.pool.validated]
        keep += [artifacts.encode(a) for a in self.driver.certifications.validated]
        self.journal.rewrite(keep)
        self.state.forget_below(package.height)
        if not self.syncing:
            leftovers.sweep_syncs(self.settings.data, package.state_hash)
        if package.is_signed:
            interval = self.registry.subnet(self.registry.latest_version).interval_length + 1
            leftovers.sweep_diverged(self.settings.data, package.height - 2 * interval)
        self.log(f"CUP {package.height} state {package.state_hash.hex()[:12]}")

    def _set_aside_diverged(self, height: Height) -> None:
        """Our state is not what the subnet certified: drop it and start over from the CUP."""
        self.log(f"DIVERGED at height {height}: others certified another state; starting over")
        if self.package.height:
            aside = self.settings.data / leftovers.DIVERGED
            shutil.rmtree(aside, ignore_errors=True)
            rename(self.state.checkpoints, aside)
        raise SystemExit(DIVERGED_EXIT)

    async def sync(self, height: Height, root: bytes) -> None:
        """Fetch the CUP's state; consensus asks again when a newer CUP has come meanwhile."""
        try:
            if not root:
                return
            heights = [h for h in self.state.checkpoint_heights() if h != height]
            base = None
            if heights and self.state.checkpoint_root_at(heights[-1]) is None:
                self.state.look_at(heights[-1])
            if heights:
                base = (self.state.folder(heights[-1]), self.state.manifests[heights[-1]])
            fetcher = fetch.Fetcher(
                self.settings.data,
                self.settings.node,
                self.link.request_state,
                self._advertisers,
                self.log,
            )
            self.log(f"state sync to height {height} begins")
            fetched = await fetcher.fetch(height, root, base)
            self.state.install_synced(fetched.folder, height, root, self.package.epoch)
            shutil.rmtree(fetched.folder.parent, ignore_errors=True)
            self.statistics.syncs += 1
            self.statistics.bytes_fetched += fetched.bytes_fetched
            self.statistics.bytes_reused += fetched.bytes_reused
            self.log(
                f"state sync to height {height} done: {fetched.bytes_fetched} bytes fetched, "
                f"{fetched.bytes_reused} reused"
            )
        except (ReprisError, OSError) as error:
            self.statistics.wasted += isinstance(error, NotVerified)
            self.log(f"state sync to height {height} failed: {error}")
            await asyncio.sleep(0.5)
        finally:
            self.syncing = False
            self.driver.synced()
            self.wake()

    # -- from peers

    def _on_artifact(self, node: NodeId, artifact: Artifact) -> bool:
        """Return whether it led to something."""
        became = self.driver.take_in(artifact, node, self.monotonic())
        if became.is_in or became is Admission.WRONG:
            self.wake()
        return became is Admission.ADMITTED

    def _on_ingress(self, node: NodeId, raw: bytes) -> bool:
        """Return whether it is a request that can still be executed, here already or not."""
        if self.ingress.is_full(node):
            return True  # those who sent it have it
        try:
            self.ingress.add(decode_cached(raw, self.clock()), node)
        except Unavailable:
            return True
        except ReprisError:  # also when the clocks differ, or its canister is not here yet
            return False
        return True

    def _on_connected(self, node: NodeId) -> None:
        self.driver.connected(node)
        self.wake()

    def _on_signed_answer(self, node: NodeId, answer: Signed) -> None:
        self.driver.signed_answer(node, answer)
        self.wake()

    def _on_advert(self, node: NodeId, advert: wire.Advert) -> None:
        self._adverts[node] = advert.states

    def _advertisers(self, height: int, root: bytes) -> list[NodeId]:
        return [
            n for n in self.link.connected if any(r == root for _, r in self._adverts.get(n, ()))
        ]

    def _serve_state(self, request: wire.StateRequest) -> bytes | None:
        for height, contents in self.state.manifests.items():
            data = serve.serve(
                self.state.folder(height), contents, request.root, request.kind, request.index
            )
            if data is not None:
                return data
        return None

    # -- for the HTTP interface

    def submit(self, request: envelope.Request) -> None:
        """Take a checked call into the pool and pass it on. Raises: Unavailable."""
        if self.driver.reader(self.monotonic()).status is not Status.RUNNING:
            raise Unavailable("the subnet is halted: requests are not accepted now")
        if self.ingress.submit(request):
            self.link.send_ingress(request.raw)
            self.wake()

    def status(self) -> dict[str, Any]:
        """What operators and orchestrators read at /_/status."""
        reader = self.driver.reader(self.monotonic())
        chain = self.driver.chain
        tip = chain.finalized_tip.block
        pair = self.driver.divergence()
        disk = self.space()
        usage = _resident_bytes()
        return {
            "node_id": str(self.settings.node),
            "subnet_id": str(self.subnet),
            "replica_version": self.version,
            "status": reader.status.value,
            "registry_version": self.registry.latest_version,
            "epoch": self.package.epoch,
            "cup_height": self.package.height,
            "cup_signed": self.package.is_signed,
            "notarized_height": chain.notarized_height,
            "finalized_height": chain.finalized_height,
            "finalized_time_ns": tip.context.time_ns,
            "executed_height": self.state.latest_height,
            "certified_height": self.state.certified_height,
            "state_digest": self.state._tip.system.digest.hex(),
            "checkpoints": {str(h): root.hex() for h, root in self.state.known_roots().items()},
            "peers": [str(p) for p in self.link.connected],
            "peer_standings": {
                str(node): {**plain, "held_bytes": self.driver.held_bytes(node)}
                for node, plain in self.link.standings().items()
            },
            "syncing": self.syncing,
            "state_sync": vars(self.statistics),
            "divergence": [_share_plain(s) for s in pair] if pair else None,
            "signing": self.driver.signing,
            "shares_signed_at": self.driver.own_share_height(),
            "disk_free_bytes": disk.free_bytes,
            "disk_reserve_bytes": disk.reserve_bytes,
            "short_of_space": disk.describe(),
            "resident_bytes": usage,
            "resident_bytes_max": _resident_bytes_max(),
        }

    def evidence(self) -> dict[str, bytes]:
        """The newest quorum-signed artifacts, for whoever plans a recovery (canonical bytes)."""
        out = {"cup": self.package.encode()}
        for height in reversed(self.driver.pool.validated.heights(Finalization)):
            final = self.driver.pool.validated.at(Finalization, height)[0]
            entry = self.driver.chain.blocks.get(final.block)
            if entry is not None:
                out["finalization"] = artifacts.encode(final)
                out["block"] = canonical.encode(entry.block)
                break
        certifications = self.driver.certifications.validated
        for height in reversed(certifications.heights(Certification)):
            out["certification"] = artifacts.encode(certifications.at(Certification, height)[0])
            break
        return out

    def key_offers(self) -> KeyOffers:
        """What this subnet deals to nodes of other subnets in this interval."""
        return offers(self.driver.reader(self.monotonic()))

    def complain(self, raw: bytes) -> None:
        """Take a justified complaint of a node of another subnet. Raises: Malformed, Rejected."""
        artifact = artifacts.decode(raw)
        if not isinstance(artifact, DkgComplaint):
            raise Malformed("this endpoint takes complaints of dealings only")
        fault = fault_of_complaint(self.driver.reader(self.monotonic()), artifact)
        if fault is not None:
            raise Rejected(f"the complaint is refused: {fault}")
        self._on_artifact(artifact.accuser, artifact)

    def known_certified(self) -> Height:
        """Return a height below which no client is answered: what it saw must not go back."""
        return max(self._certified_before, self.package.height)

    def is_behind(self) -> bool:
        return self.state.certified_height < self.known_certified()

    def health(self) -> str:
        """Return what clients read as `replica_health_status`."""
        if self.state.certified is None:
            return "waiting_for_certified_state"
        if self.is_behind():
            return "certified_state_behind"
        return "halted" if self.is_halted() else "healthy"

    def is_halted(self) -> bool:
        return self.driver.reader(self.monotonic()).status is Status.HALTED


def _share_plain(share: artifacts.CertificationShare) -> dict[str, Any]:
    return {
        "height": share.height,
        "signer": str(share.signer),
        "root": share.root.hex(),
        "signature": share.signature.hex(),
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _resident_bytes_max() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


__all__ = ["Replica", "log"]
