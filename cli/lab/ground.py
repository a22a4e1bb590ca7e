"""What a swarm stands on: this machine, with its processes, sockets and clocks.

Simulations put another ground under the same scenarios.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cli.lab.mirror import Mirror
from cli.lab.supervisor import Supervisor
from replica.client import release
from replica.client.agent import World


class Processes(Protocol):
    """The nodes' orchestrators, started again when they end; their replicas end with them."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pid(self, folder: Path) -> int: ...
    def hold(self, folder: Path) -> None:
        """Stop one node's orchestrator (and its replica) and leave it down."""
        ...

    def kill(self, folder: Path) -> None:
        """The same at once, as when its machine goes."""
        ...

    def release(self, folder: Path) -> None: ...


class Published(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class Ground:
    """This machine."""

    def __init__(self) -> None:
        self.world = World()

    def free_ports(self, count: int) -> list[int]:
        """Ask the system for ports nobody listens on now."""
        sockets = []
        for _ in range(count):
            s = socket.socket()
            s.bind(("127.0.0.1", 0))
            sockets.append(s)
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        return ports

    def first_release(self, published: Path) -> Path:
        """Build the release that a swarm starts with; return its unpacked folder."""
        package = release.build()
        return release.unpack(package, published, release.digest(package))

    def processes(self, folders: Sequence[Path]) -> Processes:
        return Supervisor(list(folders))

    def mirror(self, folder: Path, port: int) -> Published:
        return Mirror(folder, port)
