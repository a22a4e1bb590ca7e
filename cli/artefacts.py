"""Commands on artefacts that anyone can check offline: CUPs, certificates, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli import context
from cli.output import say
from replica.client.agent import Agent
from replica.protocol import certificate, cup, manifest
from replica.protocol.crypto import bls
from replica.protocol.errors import Malformed, NotFound, NotVerified, Rejected
from replica.protocol.ids import Principal


def hex_argument(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise Malformed(f"{what} is not hexadecimal") from error


def read_cup(source: str, folder: Path) -> cup.CatchUpPackage:
    """Read a CUP from a file or from a running node."""
    path = Path(source)
    if path.is_file():
        return cup.decode(path.read_bytes())
    found = context.swarm(folder)
    try:
        node = found.node(source)
    except NotFound:
        raise NotFound(f"{source} is neither a file nor a node of the swarm") from None
    agent = Agent([], found.root_key)
    return cup.decode(agent.get_bytes(node.http_url, "/_/catch_up_package"))


def describe_cup(package: cup.CatchUpPackage) -> dict[str, Any]:
    summary = package.summary
    return {
        "subnet": package.subnet,
        "height": package.height,
        "epoch": package.epoch,
        "registry_version": package.registry_version,
        "replica_version": package.block.version,
        "time_ns": package.block.context.time_ns,
        "state_hash": package.state_hash,
        "signed": package.is_signed,
        "next_height": summary.next_start,
        "members": list(summary.high.committee),
        "threshold": summary.high.threshold,
        "public_key": summary.high.public_key,
    }


def verify_cup(source: str, key: str | None, folder: Path) -> None:
    package = read_cup(source, folder)
    if key is not None:
        public_key = bls.public_key_from_der(hex_argument(key, "--key"))
    else:
        records = context.records(context.swarm(folder))
        public_key = records.subnet_public_key(package.subnet)
        if not package.is_signed:
            built = records.registry_cup(package.subnet)
            if built is None or built.encode() != package.encode():
                raise NotVerified("an unsigned CUP that is not the registry's")
            say(f"unsigned, and equal to the registry's at height {package.height}")
            return
    package.verify(public_key)
    say(f"signed by the subnet at height {package.height}")


def verify_certificate(file: Path, root_key: str, canister: str | None) -> dict[str, Any]:
    """Raises: NotVerified, also for what can't be decoded."""
    key = hex_argument(root_key, "--root-key")
    bls.public_key_from_der(key)
    target = Principal.from_text(canister) if canister is not None else None
    try:
        found = certificate.verify(file.read_bytes(), key, target)
        time_ns = found.time_ns
    except Rejected as error:
        raise NotVerified(f"{file}: {error}") from error
    return {
        "valid": True,
        "time_ns": time_ns,
        "root_hash": found.tree.digest,
        "delegation": found.delegation.subnet_id if found.delegation else None,
    }


def manifest_of(folder: Path, version: int, chunk_bytes: int) -> dict[str, Any]:
    from replica.client import folders

    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder")
    computed = folders.manifest_of(folder, version, chunk_bytes)
    return {
        "root_hash": manifest.root(computed),
        "version": computed.version,
        "files": len(computed.files),
        "chunks": len(computed.chunks),
        "bytes": computed.size_bytes,
    }
