"""A local swarm's folder, and what the command line needs to know of it.

swarm.json     first root key, subnets, nodes and their addresses
root_key.der   the root key that is trusted since, if the first was lost
identities/    private keys in PEM: default, council, community, operator-<node>
published/     release packages by SHA-256, served on loopback (the mirror)
nodes/<name>/  one folder a node (see replica.runtime.settings)
supervisor.pid
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from replica.client.agent import Agent, World
from replica.client.local_registry import VersionedRecords
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Malformed, NotFound
from replica.protocol.ids import CanisterId, Principal, SubnetId
from replica.runtime.settings import trusted_root_key


@dataclass(frozen=True)
class NodeEntry:
    name: str
    id: Principal
    subnet: str
    http_url: str
    orchestrator_url: str
    folder: Path


def read_swarm(folder: Path) -> dict[str, Any]:
    """Read swarm.json. Raises: NotFound, Malformed, with the way on."""
    path = folder / "swarm.json"
    if not path.exists():
        raise NotFound(f"no swarm in {folder}; start one with `reprise swarm up`")
    try:
        plain: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise Malformed(
            f"{path} can't be read ({path.stat().st_size} bytes: {error}). Put a good copy there, "
            "or remove the folder and start another swarm"
        ) from error
    return plain


def registered(
    records: VersionedRecords, node: Principal, subnet: str, folder: Path = Path()
) -> NodeEntry:
    """Return a node as the registry knows it."""
    http, orchestrator = records.http_url(node), records.orchestrator_url(node)
    return NodeEntry(node.short, node, subnet, http, orchestrator, folder)


@dataclass(frozen=True)
class SubnetEntry:
    name: str
    id: SubnetId
    nodes: tuple[NodeEntry, ...]

    @property
    def urls(self) -> list[str]:
        return [n.http_url for n in self.nodes]


@dataclass(frozen=True)
class Swarm:
    folder: Path
    root_key: bytes
    subnets: tuple[SubnetEntry, ...]
    spares: tuple[NodeEntry, ...]
    """Nodes that were in no subnet at first; the registry says where they are now."""
    journal: CanisterId
    mirror_port: int
    world: World = field(default_factory=World)

    @classmethod
    def load(cls, folder: Path, world: World | None = None) -> Swarm:
        """Raises: NotFound, with the command that makes a swarm; Malformed."""
        plain = read_swarm(folder)
        subnets = []
        for s in plain["subnets"]:
            nodes = tuple(_node(folder, n, s["name"]) for n in s["nodes"])
            subnets.append(SubnetEntry(s["name"], SubnetId(Principal.from_text(s["id"])), nodes))
        journal = CanisterId(Principal.from_text(plain["journal"]))
        return cls(
            folder,
            trusted_root_key(folder, bytes.fromhex(plain["root_key"])),
            tuple(subnets),
            tuple(_node(folder, n, "spare") for n in plain.get("spares", ())),
            journal,
            plain["mirror_port"],
            world or World(),
        )

    def with_nns(self, members: tuple[NodeEntry, ...], root_key: bytes) -> Swarm:
        """Return this swarm with other members of the NNS, whose root key is trusted."""
        nns = replace(self.nns, nodes=members)
        return replace(self, subnets=(nns, self.app), root_key=root_key)

    def with_app(self, members: tuple[NodeEntry, ...]) -> Swarm:
        """Return this swarm with other members of the application subnet."""
        app = replace(self.app, nodes=members)
        return replace(self, subnets=(self.nns, app))

    @property
    def published(self) -> Path:
        return self.folder / "published"

    def mirror_url(self, sha256_hex: str) -> str:
        return f"http://127.0.0.1:{self.mirror_port}/{sha256_hex}.zip"

    @property
    def nns(self) -> SubnetEntry:
        return self.subnets[0]

    @property
    def app(self) -> SubnetEntry:
        return self.subnets[1]

    @property
    def nodes(self) -> list[NodeEntry]:
        return [n for s in self.subnets for n in s.nodes] + list(self.spares)

    def node(self, text: str) -> NodeEntry:
        for node in self.nodes:
            if text == node.name or str(node.id).startswith(text):
                return node
        raise NotFound(f"no node {text}; `reprise node list` shows them")

    def subnet(self, text: str) -> SubnetEntry:
        for subnet in self.subnets:
            if text == subnet.name or str(subnet.id).startswith(text):
                return subnet
        raise NotFound(f"no subnet {text}; `reprise subnet list` shows them")

    def subnet_of_canister(self, canister: Principal) -> SubnetEntry:
        return self.nns if int.from_bytes(canister[:8], "big") < 1 << 20 else self.app

    def identity(self, name: str) -> Ed25519Key:
        path = self.folder / "identities" / f"{name}.pem"
        if not path.exists():
            raise NotFound(f"no identity {name} in {path.parent}; see `reprise identity list`")
        try:
            return Ed25519Key.from_pem(path.read_bytes())
        except (ValueError, Malformed) as error:
            raise Malformed(
                f"{path} holds no private key ({path.stat().st_size} bytes): put a good copy there"
            ) from error

    def agent(self, subnet: SubnetEntry, key: Ed25519Key | None = None) -> Agent:
        return Agent(subnet.urls, self.root_key, key, world=self.world)

    def probe(self, timeout_s: float) -> Agent:
        """Return an agent that asks single nodes for what they say of themselves."""
        return Agent([], self.root_key, timeout_s=timeout_s, world=self.world)


def _node(folder: Path, plain: dict[str, Any], subnet: str) -> NodeEntry:
    return NodeEntry(
        plain["name"],
        Principal.from_text(plain["id"]),
        subnet,
        f"http://127.0.0.1:{plain['http_port']}",
        f"http://127.0.0.1:{plain['orchestrator_port']}",
        folder / "nodes" / plain["name"],
    )
