"""The scenario upgrade: an elected release takes over at a CUP height, under load."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cli import nns_client as nns
from cli.lab import workload
from cli.lab.drill import Drill, Outcome, describe_settings
from cli.recovery import detect
from replica.client import release
from replica.protocol.errors import NotVerified, ReprisError

CLIENTS = 4


def upgrade(drill: Drill) -> Outcome:
    """Elect a release, deploy it, and watch four nodes swap it while clients write."""
    swarm, phases, app = drill.swarm, drill.phases, drill.swarm.app
    with phases.phase("swarm up") as notes:
        drill.up()
        clients = [drill.client(pad=256) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        notes.append(f"{describe_settings(drill)}; {CLIENTS + 1} clients write")
    voter = drill.council()
    with phases.phase("build and publish") as notes:
        package = release.build(label="upgrade drill")
        shown = release.describe(package)
        digest, version = str(shown["sha256"]), str(shown["version"])
        (swarm.published / f"{digest}.zip").write_bytes(package)
        notes.append(f"release {version[:12]}, {shown['files']} files, {shown['bytes']} bytes")
    with phases.phase("elect") as notes:
        payload = {
            "release_package_urls": [swarm.mirror_url(digest)],
            "replica_versions_to_unelect": [],
            "replica_version_to_elect": version,
            "release_package_sha256_hex": digest,
        }
        number = drill.adopt("Elect a release", nns.REVISE_RELEASES, payload, voter)
        notes.append(f"proposal {number}")
    old = str(drill.refresh().view(app.id, drill.records.version).replica_version)
    pulse = Pulse(drill)
    pulse.start()
    with phases.phase("deploy") as notes:
        before = drill.certified_height(app)
        target = {"subnet_id": app.id, "replica_version_id": version}
        number = drill.adopt("Deploy the release", nns.DEPLOY_RELEASE, target, voter)
        notes.append(f"proposal {number}")
    with phases.phase("download ahead") as notes:
        drill.wait_for("all nodes to hold it", lambda: _holding(drill, digest) == 4, 90)
        running = [(drill.status(n) or {}).get("replica_version", "") for n in app.nodes]
        notes.append(f"4 of 4 nodes hold it, verified; {running.count(old)} still run the old one")
    with phases.phase("switch") as notes:
        drill.wait_for("all nodes to run it", lambda: _running(drill, version) == 4, 120, 0.05)
        switch = min(int((drill.status(n) or {"cup_height": 0})["cup_height"]) for n in app.nodes)
        drill.wait_for("new blocks", lambda: drill.certified_height(app) > switch + 5, 60, 0.05)
        pulse.stop()
        notes.append(f"at CUP height {switch}; block production paused {pulse.longest_s:.1f} s")
    with phases.phase("next CUP") as notes:
        interval = drill.interval_blocks
        drill.wait_for(
            "a CUP signed by the new release",
            lambda: all(
                (drill.status(n) or {}).get("cup_height", 0) >= switch + interval for n in app.nodes
            ),
            90,
        )
        notes.append(f"at {switch + interval}")
    with phases.phase("verify") as notes:
        for client in clients:
            client.stop()
        kept, text = drill.verify_journal()
        entries = workload.read_all(drill.app, swarm, clients)
        kept = kept and all(not c.fault and workload.preserved(c, entries) for c in clients)
        executed = executed_by([n.folder for n in app.nodes])
        twice = [height for height, versions in executed.items() if len(versions) > 1]
        if twice:
            raise NotVerified(f"data blocks {twice} were executed by two releases")
        versions = sorted({v for found in executed.values() for v in found})
        if versions != sorted([old, version]):
            raise NotVerified(f"data blocks were executed by {versions}")
        notes.append(f"{text}; {len(executed)} data blocks, each executed by one release")
    return drill.outcome(
        "upgrade",
        rto_seconds=pulse.longest_s,
        kept=kept,
        before=before,
        after=drill.certified_height(app),
    )


def executed_by(folders: list[Path]) -> dict[tuple[int, int], set[str]]:
    """Return, by epoch and height, the releases that executed a data block on any node."""
    out: dict[tuple[int, int], set[str]] = defaultdict(set)
    for folder in folders:
        for line in (folder / "executed.log").read_text().splitlines():
            epoch, height, version = line.split()
            out[(int(epoch), int(height))].add(version)
    return dict(out)


def _holding(drill: Drill, digest: str) -> int:
    count = 0
    for node in drill.swarm.app.nodes:
        try:
            status = drill.probe.orchestrator_status(node.orchestrator_url)
        except ReprisError:
            continue
        count += digest in status["releases"]
    return count


def _running(drill: Drill, version: str) -> int:
    found = [(drill.status(n) or {}).get("replica_version") for n in drill.swarm.app.nodes]
    return found.count(version)


@dataclass
class Pulse:
    """Watches the certified height and remembers the longest time in which it did not move."""

    drill: Drill
    longest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._task = self.drill.world.spawn(self._run)

    def _run(self) -> None:
        drill, probe = self.drill, self.drill.swarm.probe(1.0)
        height, since = -1, drill.now_s()
        while not self._stop.is_set():
            now = detect.certified_height(detect.look(drill.swarm.app, probe))
            if now > height:
                moved = drill.now_s()
                if height >= 0:
                    self.longest_s = max(self.longest_s, moved - since)
                height, since = now, moved
            drill.world.pause(0.05)

    def stop(self) -> None:
        self._stop.set()
        self._task.join(10)
