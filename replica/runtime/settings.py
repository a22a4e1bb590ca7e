"""A node's folder: its settings, its secret keys, and where everything lies.

node.json        addresses and the first root key
root_key.der     the root key that is trusted since, if the first was lost
root_keys/       recoveries of the NNS that prove it
keys.json        secrets (mode 0600); kept apart from the data, as in a vault
fault.json       drills only: the documented fault of this node
executed.log     drills only: which release executed which block
releases/        the releases that this node holds, by SHA-256
promise.json     an epoch in which this node will sign nothing more
promise.reserve  room for it on a full disk
data/            all below: what a lost disk loses
  owner             the node whose data this is
  reserve           room that is given back when the disk is full
  registry.journal  local registry store
  cup.stored        the newest catch-up package this node acts on
  checkpoints/, pool-*.journal, state.db

Paths in node.json are taken from the folder itself, so it may be moved or copied.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica.protocol.crypto.bls import public_key_from_der
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Conflict, Malformed
from replica.protocol.ids import NodeId, Principal
from replica.runtime import journal
from replica.runtime.durable import make_folder, read_checked, sync_directory, write_checked

ROOT_KEY = "root_key.der"


@dataclass(frozen=True)
class Secrets:
    signing: Ed25519Key
    committee: bytes
    shares: dict[bytes, bytes]
    """Threshold key shares of the genesis dealer, by their public share keys."""
    dealing: bytes
    """Opens what key generation seals for this node."""
    tls_key_pem: bytes
    tls_certificate_pem: bytes


@dataclass(frozen=True)
class NodeSettings:
    folder: Path
    node: NodeId
    http_port: int
    p2p_port: int
    orchestrator_port: int
    nns_urls: tuple[str, ...]
    root_key: bytes
    """DER, 133 bytes."""
    releases: Path
    """Folder of releases, each in a folder named by its SHA-256."""
    poll_ns: int
    """How often the orchestrator polls."""
    stable_age_ns: int
    """How long a registry version must have been here before a block may refer to it."""
    database_url: str = ""
    trace: bool = False
    """Drills only: note which release executed which block."""

    @property
    def trace_path(self) -> Path:
        return self.folder / "executed.log"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def registry_path(self) -> Path:
        return self.folder / "data" / "registry.journal"

    @property
    def cup_path(self) -> Path:
        return self.folder / "data" / "cup.stored"

    @property
    def root_key_path(self) -> Path:
        return self.folder / ROOT_KEY

    @property
    def promise_path(self) -> Path:
        return self.folder / "promise.json"

    @property
    def promise_reserve_path(self) -> Path:
        return self.folder / "promise.reserve"

    @property
    def reserve_path(self) -> Path:
        return self.data / "reserve"

    @property
    def fault_path(self) -> Path:
        return self.folder / "fault.json"

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data / 'state.db'}"

    @property
    def registry_identity(self) -> str:
        """What the journal of the registry store says of itself."""
        return f"registry store of node {self.node}"

    @property
    def owner_path(self) -> Path:
        return self.data / "owner"

    def secrets(self) -> Secrets:
        """Read keys.json. Raises: Malformed, with the way on."""
        path = self.folder / "keys.json"
        try:
            plain = json.loads(path.read_text())
            return Secrets(
                Ed25519Key(bytes.fromhex(plain["signing"])),
                bytes.fromhex(plain["committee"]),
                {bytes.fromhex(k): bytes.fromhex(v) for k, v in plain["shares"].items()},
                bytes.fromhex(plain["dealing"]),
                plain["tls_key"].encode(),
                plain["tls_certificate"].encode(),
            )
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise Malformed(
                f"{path} can't be read ({_reason(error)}): without its keys this node is nobody. "
                "Put a good copy there; if there is none, have governance replace the node"
            ) from error

    def check_owner(self) -> bool:
        """Refuse the data of another node; return whether it says that it is this one's.

        What is signed there binds that node, and says nothing of what this one has signed.
        Raises: Conflict, ForeignJournal; nothing was changed.
        """
        try:
            owner = read_checked(self.owner_path).decode()
        except (FileNotFoundError, Malformed):  # of a release before, or the mark is lost
            if self.registry_path.exists():
                journal.read(self.registry_path, self.registry_identity)
            return False
        if owner != str(self.node):
            raise Conflict(
                f"{self.data} is the data of node {owner}, and this is node {self.node}: nothing "
                "was changed. Move it to where it belongs; without any, this node fetches all anew"
            )
        return True

    def claim_data(self) -> None:
        """Make the folder of data, marked as this node's. Raises: as `check_owner`, OSError."""
        make_folder(self.data)
        if not self.check_owner():
            write_checked(self.owner_path, str(self.node).encode())

    def clear_state(self) -> None:
        """Forget the state of the subnet that this node was in; the registry store stays.

        The catch-up package, which tells that there is one to forget, goes last: whoever finds it
        after a crash in between goes on with this.
        """
        kept = {self.registry_path, self.owner_path, self.reserve_path, self.cup_path}
        for path in sorted(self.data.iterdir()):
            if path in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_directory(self.data)
        self.cup_path.unlink(missing_ok=True)
        sync_directory(self.data)

    def promised_epoch(self) -> tuple[int, int] | None:
        """Return (epoch, registry version at which the promise was made). Raises: Malformed."""
        if not self.promise_path.exists():
            return None
        try:
            plain = json.loads(read_checked(self.promise_path))
        except Malformed as error:
            raise Malformed(
                f"{error}: what this node promised can't be read back. Put a good copy there. If "
                "there is none, leave the node down until its subnet has been recovered; then "
                "remove the file, and it follows the subnet into its new epoch"
            ) from error
        return int(plain["epoch"]), int(plain["registry_version"])

    def promise(self, epoch: int, registry_version: int) -> None:
        """Promise, durably, to sign nothing more in an epoch."""
        plain = {"epoch": epoch, "registry_version": registry_version}
        write_checked(self.promise_path, json.dumps(plain).encode())


def load(folder: Path) -> NodeSettings:
    """Read node.json. Raises: Malformed, with the way on."""
    try:
        plain: dict[str, Any] = json.loads((folder / "node.json").read_text())
        return NodeSettings(
            folder=folder,
            node=NodeId(Principal.from_text(plain["node_id"])),
            http_port=plain["http_port"],
            p2p_port=plain["p2p_port"],
            orchestrator_port=plain["orchestrator_port"],
            nns_urls=tuple(plain["nns_urls"]),
            root_key=trusted_root_key(folder, bytes.fromhex(plain["root_key"])),
            releases=folder / plain["releases"],
            poll_ns=plain["poll_ms"] * 1_000_000,
            stable_age_ns=plain["stable_age_ms"] * 1_000_000,
            database_url=plain.get("database_url", ""),
            trace=plain.get("trace", False),
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise Malformed(
            f"{folder}/node.json can't be read ({_reason(error)}). Put a good copy there: nothing "
            "else says which node this is, and at which addresses"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "it is empty" if not error.doc.strip() else f"no JSON: {error}"
    return f"{type(error).__name__}: {error}"


def trusted_root_key(folder: Path, first: bytes) -> bytes:
    """Return the root key (DER) that is trusted in a folder: the first, or what followed it.

    Raises: Malformed for a file that holds no key.
    """
    newer = folder / ROOT_KEY
    if not newer.exists():
        return first
    key = newer.read_bytes()
    try:
        public_key_from_der(key)
    except Malformed as error:
        raise Malformed(
            f"{newer} holds no root key: {error}, and it has {len(key)} bytes. Put a good copy "
            "there, or remove it: then the first root key is trusted, and who followed it is asked "
            "for again"
        ) from error
    return key
