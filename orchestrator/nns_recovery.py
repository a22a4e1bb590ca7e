"""An offline recovery of the NNS on this node: staged, counted, replayed, adopted.

A node's operator can order it to halt; a bundle is kept with the ballots that are known so far, and
acted on once n - f nodes' operators have signed. Every step can be repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.cup_provider import CupProvider
from orchestrator.releases import Releases
from orchestrator.replays import Promises, Replays
from replica.client import nns_recovery as judging
from replica.client.agent import Agent, Task
from replica.client.local_registry import LocalRegistry
from replica.client.nns_recovery import Verdict
from replica.protocol import ballot as ballots
from replica.protocol import nns_recovery
from replica.protocol.errors import (
    Conflict,
    NotAuthorized,
    NotFound,
    NotVerified,
    ReprisError,
)
from replica.protocol.ids import SubnetId
from replica.protocol.nns_recovery import Bundle
from replica.runtime.durable import write_durably
from replica.runtime.settings import NodeSettings


class NnsRecovery:
    def __init__(
        self,
        settings: NodeSettings,
        records: LocalRegistry,
        cups: CupProvider,
        releases: Releases,
        replays: Replays,
        promises: Promises,
        stop_replica: Callable[[str], None],
        log: Callable[[str], None],
        follow_root_key: Callable[[Bundle], None],
    ) -> None:
        """`follow_root_key`: has this node trust the root key that a recovery brings."""
        self.follow_root_key = follow_root_key
        self.settings, self.records, self.cups = settings, records, cups
        self.replays, self.promises = replays, promises
        self.world = world = replays.world
        self.releases, self.stop_replica, self.log = releases, stop_replica, log
        self.staged_path = settings.folder / "nns_recovery.staged"
        self.applied_path = settings.folder / "nns_recovery.applied"
        self._lock = world.lock()
        self._staged = self._read(self.staged_path)
        self._applied = self._read(self.applied_path)
        self._judged: tuple[object, Verdict] | None = None
        self._replaying: Task | None = None
        self._replayed: bytes | None = None
        """Subject of the recovery whose state was tried to be replayed here."""
        self.note = ""

    def _read(self, path: Path) -> Bundle | None:
        try:
            return nns_recovery.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except ReprisError as error:
            self.log(f"{path.name} can't be read: {error}")
            return None

    def _judge(self, bundle: Bundle) -> Verdict:
        local = self.cups.local()
        seen = (bundle, self.records.version, local)
        if self._judged is None or self._judged[0] != seen:
            verdict = judging.judge(
                bundle,
                self.settings.root_key,
                self.records,
                local,
                self._applied,
                self.world.now_ns() // 10**9,
            )
            self._judged = (seen, verdict)
        return self._judged[1]

    # -- orders from outside

    def halt(self, raw: bytes, subnet: SubnetId | None, agent: Agent) -> dict[str, Any]:
        """Halt this node's replica for the rest of its epoch, on its operator's signed order.

        Raises: NotAuthorized, Conflict, Malformed, NotVerified.
        """
        if subnet is None or subnet != self.records.nns():
            raise Conflict("only a node of the NNS subnet is halted this way")
        order = ballots.decode(raw)
        status = agent.node_status(f"http://127.0.0.1:{self.settings.http_port}")
        view = self.records.view(subnet, self.records.version)
        operator = judging.operators(self.records, view)[self.settings.node]
        if order.voter != operator:
            raise NotAuthorized(f"{order.voter} does not operate this node; {operator} does")
        subject = nns_recovery.halt_subject(self.settings.node, subnet, status["epoch"])
        if order.purpose != ballots.NODE_HALT or order.subject != subject:
            raise NotAuthorized("the order is for another node or epoch")
        if order.deadline_s < self.world.now_ns() // 10**9:
            raise NotAuthorized("the order is too old")
        self.promises.give(status["epoch"], status["registry_version"])
        self.log(f"halts in epoch {status['epoch']}: ordered by its operator")
        return {"halted_in_epoch": status["epoch"]}

    def stage(self, raw: bytes) -> dict[str, Any]:
        """Take a bundle or further ballots for it. Raises: the reason why it is refused."""
        bundle = nns_recovery.decode(raw)
        with self._lock:
            staged, before = self._staged, 0
            if staged is not None and staged.recovery == bundle.recovery:
                bundle = bundle.with_ballots(staged.ballots)
            elif staged is not None:
                before = len(self._judge(staged).signed)
            verdict = self._judge(bundle)
            if not verdict.signed:
                why = "; ".join(verdict.faults) or "it carries no ballot"
                raise NotVerified(f"no operator of the NNS has signed this recovery: {why}")
            if len(verdict.signed) < before:
                raise Conflict(f"another recovery is staged here, with {before} nodes signed")
            write_durably(self.staged_path, bundle.encode())
            self._staged = bundle
            self.log(
                f"NNS recovery to height {bundle.recovery.height}: operators of "
                f"{len(verdict.signed)} nodes have signed, {verdict.needed} are needed"
            )
            return self._describe(bundle, verdict)

    def status(self) -> dict[str, Any]:
        """What `recover nns status` shows of this node. Raises: NotFound."""
        with self._lock:
            if self._staged is not None:
                return self._describe(self._staged, self._judge(self._staged))
            if self._applied is None:
                raise NotFound("no recovery of the NNS is staged on this node")
            recovery = self._applied.recovery
            return {
                "subject": recovery.subject.hex(),
                "height": recovery.height,
                "state": "applied",
                "note": self.note,
            }

    def _describe(self, bundle: Bundle, verdict: Verdict) -> dict[str, Any]:
        local = self.cups.local()
        is_applied = local is not None and local.epoch >= verdict.package.epoch
        return {
            "subject": bundle.recovery.subject.hex(),
            "height": bundle.recovery.height,
            "signed": [str(n) for n in verdict.signed],
            "needed": verdict.needed,
            "nodes": len(verdict.before),
            "refused": list(verdict.faults),
            "state": "applied" if is_applied else "quorum" if verdict.has_quorum else "waiting",
            "note": self.note,
        }

    # -- acting

    def step(self) -> None:
        """Go on with a staged recovery that has its quorum."""
        with self._lock:
            bundle = self._staged
            if bundle is None:
                return
            try:
                verdict = self._judge(bundle)
            except ReprisError as error:
                self._drop(f"the staged recovery is refused by now: {error}")
                return
            local = self.cups.local()
            if local is not None and local.epoch >= verdict.package.epoch:
                self.records.append(verdict.records.deltas)
                self._finish(bundle)
            elif verdict.has_quorum:
                self.records.append(verdict.records.deltas[:-1])
                if self._has_state(bundle):
                    self._adopt(bundle, verdict)

    def _has_state(self, bundle: Bundle) -> bool:
        """Whether the replay of the recovered state was tried; begins it when it was not."""
        subject = bundle.recovery.subject
        if self._replayed == subject:
            return True
        if self._replaying is None or not self._replaying.is_alive():
            self._replaying = self.world.spawn(partial(self._try_replay, bundle, subject))
        return False

    def _try_replay(self, bundle: Bundle, subject: bytes) -> None:
        recovery = bundle.recovery
        try:
            local = self.cups.local()
            if local is None:
                raise NotFound("this node has no catch-up package")
            before = self.records.view(recovery.subnet, local.registry_version).replica_version
            folder = self.releases.ready(before)
            with self.replays.replayed(folder, recovery.state_height, recovery.order) as result:
                if result["new_state_hash"] == recovery.new_state_hash.hex():
                    self.replays.keep(Path(result["new_checkpoint"]))
                    self.note = "replayed the recovered state here"
                else:
                    self.note = "replay gives another state here: others have the recovered one"
        except (ReprisError, OSError) as error:
            self.note = f"no replay here ({error}): the state will be fetched from other nodes"
        self.log(self.note)
        self._replayed = subject

    def _adopt(self, bundle: Bundle, verdict: Verdict) -> None:
        """Restart from the recovery: the old epoch's replica is gone before anything is new."""
        recovery = bundle.recovery
        if bundle.package and recovery.release is not None:
            self.releases.take(bundle.package, recovery.release.sha256_hex)
        self.stop_replica(f"the NNS is recovered to height {recovery.height}")
        # In this order: a replica of the old epoch that sees the new version signs nothing.
        self.records.append(verdict.records.deltas)
        self.cups.store(verdict.package)
        self._finish(bundle)
        self.log(f"adopts the NNS recovery at height {recovery.height}")

    def _finish(self, bundle: Bundle) -> None:
        write_durably(self.applied_path, bundle.encode())
        if bundle.recovery.keys is not None:
            self.follow_root_key(bundle)
        self._applied, self._staged = bundle, None
        self.staged_path.unlink(missing_ok=True)

    def _drop(self, why: str) -> None:
        self.log(why)
        self.note = why
        self._staged = None
        self.staged_path.unlink(missing_ok=True)
