"""What a swarm stands on: this machine, with its processes, sockets and clocks.

Simulations put another ground under the same scenarios.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from cli.lab.mirror import Mirror
from cli.lab.supervisor import Supervisor
from replica.client import release
from replica.client.agent import World
from replica.protocol.errors import Unavailable

PORTS_FROM = 20_000


def first_given_port() -> int:
    """Return the lowest port that the system gives to connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


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
        """Return ports that nobody uses now, of those that no outgoing connection is ever given.

        Else a connection might hold a node's port while the node is down, for as long as it lasts.
        Raises: Unavailable.
        """
        ports = range(PORTS_FROM, first_given_port())
        start = int.from_bytes(self.world.entropy(4), "big")
        turned = (ports[(start + offset) % len(ports)] for offset in range(len(ports)))
        found = list(islice(filter(is_free, turned), count))
        if len(found) < count:
            raise Unavailable(f"fewer than {count} ports are free")
        return found

    def first_release(self, published: Path) -> Path:
        """Build the release that a swarm starts with; return its unpacked folder."""
        package = release.build()
        return release.unpack(package, published, release.digest(package))

    def processes(self, folders: Sequence[Path]) -> Processes:
        return Supervisor(list(folders))

    def mirror(self, folder: Path, port: int) -> Published:
        return Mirror(folder, port)
