"""A swarm of 1 + 4 nodes that a drill on disks does its worst to, seen as an operator sees it.

The command brings it up, as for a person. Each process of it is found by the folder that it names:
nothing else is ever ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.lab import swarm as lab
from cli.lab import workload
from cli.lab.disks.tools import run
from cli.lab.disks.witness import Witness
from cli.lab.layout import NodeEntry, SubnetEntry, Swarm
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotVerified, ReprisError, Unavailable

UP_S_MAX = 150.0
HEALTHY_S_MAX = 60.0
ENTRIES_S_MAX = 30.0
ENDED_S_MAX = 15.0
LOOK_EVERY_S = 1.0
"""Pools keep at least 50 heights below a package, which take longer than this to make."""
WRITERS = 3
INTERVAL_BLOCKS = 40
NOTARY_DELAY_MS = 40


class Stand:
    def __init__(self, folder: Path, patience: float = 1.0) -> None:
        """`patience`: every bound in time is so many times as long."""
        self.folder, self.patience = folder, patience
        self.witness = Witness()
        self.writers: list[workload.Writer] = []
        self._heights: dict[str, int] = {}

    # -- the swarm

    def begin(self) -> None:
        """Make a swarm with short intervals, so that faults meet checkpoints, and bring it up.

        Raises: Unavailable.
        """
        delay_ms = int(NOTARY_DELAY_MS * self.patience)
        options = lab.Options(interval_blocks=INTERVAL_BLOCKS, notary_delay_ms=delay_ms)
        lab.create(self.folder, options)
        self.up()
        self.wait_healthy()
        lab.initialize(self.swarm, lambda _: None)

    def up(self) -> float:
        """Bring the swarm up; return how long the command took.

        It may give up waiting for a swarm that it started again: `wait_healthy` judges that.
        Raises: Unavailable.
        """
        begin = time.monotonic()
        is_new = not (self.folder / "swarm.json").exists()
        try:
            run(self._command("up"), UP_S_MAX * self.patience)
        except Unavailable:
            if is_new or not self.pids("cli.lab.supervisor"):
                raise
        self.swarm = Swarm.load(self.folder)
        self.probe = self.swarm.probe(2.0)
        return time.monotonic() - begin

    def down(self) -> None:
        """Stop the swarm gently and keep its folder. Raises: Unavailable."""
        run([*self._command("down"), "--keep"])

    def _command(self, what: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", "swarm", what, "--swarm", str(self.folder)]

    def pids(self, *words: str) -> list[int]:
        """Return the processes that name this folder (or one below) and have these words."""
        out = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            ours = any(Path(a).is_relative_to(self.folder) for a in arguments if a[:1] == "/")
            if ours and set(words) <= set(arguments) and int(path.parent.name) != os.getpid():
                out.append(int(path.parent.name))
        return out

    def replica(self, node: NodeEntry) -> int | None:
        return next(iter(self.pids("replica", "run", str(node.folder))), None)

    def orchestrator(self, node: NodeEntry) -> int | None:
        return next(iter(self.pids("orchestrator", str(node.folder))), None)

    def kill(self) -> None:
        """End every process at once, as a power cut does. Raises: Unavailable if one stays."""
        end = time.monotonic() + ENDED_S_MAX
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                raise Unavailable(f"processes that don't end: {pids}")
            time.sleep(0.05)

    def keep_logs(self) -> Path:
        """Copy all logs that can be read to where they outlive the swarm."""
        target = Path(tempfile.mkdtemp(prefix="reprise-disks-failed-"))
        with contextlib.suppress(OSError):  # of a disk that is gone
            for path in self.folder.rglob("*.log"):
                shutil.copyfile(path, target / "-".join(path.relative_to(self.folder).parts))
        return target

    # -- what its clients were told

    def load(self, count: int = WRITERS, pad: int = 640) -> list[workload.Writer]:
        """Have clients write, from now on and through whatever happens."""
        keys = [Ed25519Key(os.urandom(32)) for _ in range(count)]
        made = [workload.Writer(self.swarm, key, pad=pad) for key in keys]
        for writer in made:
            writer.start()
        self.writers += made
        return made

    @property
    def entries(self) -> int:
        """How many entries were acknowledged, certified, since the beginning."""
        return sum(w.count for w in self.writers)

    def wait_for_entries(self, more: int = 3, timeout_s: float = ENTRIES_S_MAX) -> float:
        """Wait until so many more are acknowledged; return how long. Raises: Unavailable."""
        count = self.entries

        def are_there() -> bool:
            self._check_clients()
            return self.entries >= count + more

        return self.wait_for("the clients", are_there, timeout_s)

    def _check_clients(self) -> None:
        """Raises: NotVerified when a client was refused, or told what can't be."""
        faults = [w.fault for w in self.writers if w.fault]
        if faults:
            raise NotVerified(f"a client failed: {faults[0]}")

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float) -> float:
        """Wait until something is so; return how long. Raises: Unavailable."""
        begin = time.monotonic()
        lab.wait_for(what, condition, timeout_s * self.patience, 0.02)
        return time.monotonic() - begin

    def stop_load(self) -> None:
        for writer in self.writers:
            writer.request_stop()
        for writer in self.writers:
            writer.stop()

    def verify(self) -> None:
        """Check that each acknowledged entry is there, in order, once, and nobody signed twice.

        Raises: NotVerified, Malformed, Unavailable.
        """
        self.stop_load()
        self.look()
        self._check_clients()
        agent = self.swarm.agent(self.swarm.app)
        entries = workload.read_all(agent, self.swarm, self.writers)
        agent.close()
        lost = sum(not workload.preserved(w, entries) for w in self.writers)
        if lost:
            raise NotVerified(f"{lost} of {len(self.writers)} clients miss what they were told")
        bad = self.witness.contradictions()
        if bad:
            raise NotVerified(f"{len(bad)} contradictions, the first: {bad[0]}")

    # -- what can be seen of it

    def look(self, *, at_rest: bool = False) -> None:
        """Take in what the application subnet signed, and how far each subnet is."""
        self.witness.look(self.swarm.app, at_rest=at_rest)
        if at_rest:
            return
        for subnet in self.swarm.subnets:
            heights = [(self.status(n) or {}).get("certified_height", 0) for n in subnet.nodes]
            self._heights[subnet.name] = max(self._heights.get(subnet.name, 0), *heights)

    def look_for(self, seconds: float) -> None:
        """Let time pass, and look all the while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(LOOK_EVERY_S, max(0.0, left)))
        self.look()

    def status(self, node: NodeEntry) -> dict[str, Any] | None:
        try:
            return self.probe.node_status(node.http_url)
        except ReprisError:
            return None

    def wait_healthy(self) -> float:
        """Wait until each node signs above all that was certified before; return how long.

        Raises: Unavailable, with what is wrong where.
        """
        timeout_s = HEALTHY_S_MAX * self.patience
        begin = looked = time.monotonic()
        while ailing := self.ailments():
            if time.monotonic() > begin + timeout_s:
                raise Unavailable(f"after {timeout_s:.0f} s: " + "; ".join(ailing))
            if time.monotonic() > looked + LOOK_EVERY_S:
                looked = time.monotonic()
                self.witness.look(self.swarm.app)
            time.sleep(0.2)
        return time.monotonic() - begin

    def ailments(self) -> list[str]:
        """Return what is wrong, by node; empty: the swarm is healthy."""
        out = []
        for subnet in self.swarm.subnets:
            for node in subnet.nodes:
                words = self._ailment(subnet, node)
                out += [f"{node.name}: {words}"] if words else []
        return out

    def _ailment(self, subnet: SubnetEntry, node: NodeEntry) -> str:
        status = self.status(node)
        if status is None:
            return "answers nothing"
        if status["divergence"]:
            return f"a divergence at {status['divergence'][0]}"
        height = self._heights.get(subnet.name, 0)
        if status["shares_signed_at"] <= height:
            return f"signs nothing above {height}: is at {status['certified_height']}"
        try:
            problem = self.probe.orchestrator_status(node.orchestrator_url)["disk_error"]
        except ReprisError:
            return "its orchestrator answers nothing"
        return str(problem)
