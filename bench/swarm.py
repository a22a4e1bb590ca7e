"""A swarm for benchmarks: real processes on loopback, taken down whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.lab import swarm as lab
from cli.lab.layout import Swarm
from cli.lab.supervisor import Supervisor
from replica.client.agent import Agent
from replica.protocol.errors import ReprisError


@contextmanager
def running(options: lab.Options) -> Iterator[Swarm]:
    folder = Path(tempfile.mkdtemp(prefix="reprise-bench-"))
    supervisor: Supervisor | None = None
    try:
        swarm = lab.create(folder, options)
        supervisor = Supervisor([n.folder for n in swarm.nodes])
        supervisor.start()
        lab.initialize(swarm, lambda _: None)
        yield swarm
    finally:
        if supervisor is not None:
            supervisor.stop()
        shutil.rmtree(folder, ignore_errors=True)


def heights(swarm: Swarm, probe: Agent, field: str = "finalized_height") -> list[int]:
    """Return a figure of every application node that answers."""
    found = []
    for node in swarm.app.nodes:
        try:
            found.append(int(probe.node_status(node.http_url)[field]))
        except ReprisError:
            continue
    return found
