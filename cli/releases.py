"""Releases of the replica and code of canisters: building, proposing, listing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli import context, views
from cli import nns_client as nns
from cli.actions import proposer, told
from cli.output import say
from replica.abi import bundle as bundles
from replica.client import local_registry as keys
from replica.client import release
from replica.client.table_schema import admit
from replica.protocol.errors import Malformed, NotFound
from replica.protocol.hashing import sha256
from replica.protocol.ids import Principal
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.runtime.durable import write_durably

MODES = {"install": 1, "reinstall": 2, "upgrade": 3}


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    return path.read_bytes()


# --- the replica ---------------------------------------------------------------------------------


def build(out: Path, label: str) -> dict[str, Any]:
    package = release.build(label)
    write_durably(out.resolve(), package)
    say(f"written to {out}; propose it with `reprise release publish {out}`")
    return release.describe(package)


def describe(path: Path) -> dict[str, Any]:
    return release.describe(_read(path))


def elected(folder: Path) -> list[dict[str, Any]]:
    found = context.swarm(folder)
    records = context.records(found)
    blessed = parse(pb.BlessedReplicaVersions, records.need("blessed_replica_versions"))
    names = {s.id: s.name for s in found.subnets}
    views_of = {n: records.view(i, records.version) for i, n in names.items()}
    rows = []
    for version in blessed.blessed_version_ids:
        record = parse(pb.ReplicaVersionRecord, records.need(keys.replica_version(version)))
        rows.append(
            {
                "version": version,
                "sha256": record.release_package_sha256_hex,
                "runs_on": ",".join(n for n, v in views_of.items() if v.replica_version == version),
                "recalled_on": ",".join(
                    n for n, v in views_of.items() if version in v.recalled_versions
                ),
                "urls": " ".join(record.release_package_urls),
            }
        )
    return rows


def publish(folder: Path, path: Path, urls: list[str], identity: str, neuron: int | None) -> None:
    found = context.swarm(folder)
    package = _read(path)
    shown = release.describe(package)
    digest, version = str(shown["sha256"]), str(shown["version"])
    if not urls:
        write_durably((found.published / f"{digest}.zip").resolve(), package)
        urls = [found.mirror_url(digest)]
    payload = {
        "release_package_urls": urls,
        "replica_versions_to_unelect": [],
        "replica_version_to_elect": version,
        "release_package_sha256_hex": digest,
    }
    _propose(
        folder, f"Elect release {version[:12]}", nns.REVISE_RELEASES, payload, identity, neuron
    )
    say(f"once it is elected: `reprise release deploy {version} app`")


def full_version(folder: Path, text: str) -> str:
    """Return the elected release whose id begins with a text. Raises: NotFound."""
    found = [r["version"] for r in elected(folder) if r["version"].startswith(text)]
    if len(found) != 1:
        raise NotFound(f"no single elected release {text}; `reprise release list` shows them")
    return str(found[0])


def deploy(folder: Path, text: str, subnet: str, identity: str, neuron: int | None) -> None:
    version = full_version(folder, text)
    entry = context.swarm(folder).subnet(subnet)
    payload = {"subnet_id": entry.id, "replica_version_id": version}
    title = f"Deploy release {version[:12]} to {entry.name}"
    _propose(folder, title, nns.DEPLOY_RELEASE, payload, identity, neuron)


def recall(folder: Path, text: str, subnet: str, identity: str, neuron: int | None) -> None:
    version = full_version(folder, text)
    found = context.swarm(folder)
    entry = found.subnet(subnet)
    records = context.records(found)
    recalled = list(records.view(entry.id, records.version).recalled_versions)
    payload = {
        "subnet_id": entry.id,
        "operational_level": None,
        "recalled_replica_version_ids": [*recalled, version],
    }
    title = f"Recall release {version[:12]} on {entry.name}"
    _propose(folder, title, nns.SET_OPERATIONAL_LEVEL, payload, identity, neuron)


def _propose(
    folder: Path,
    title: str,
    number: int,
    payload: dict[str, Any],
    identity: str,
    neuron: int | None,
) -> None:
    agent, chosen = proposer(folder, identity, neuron)
    text = "What is proposed can be checked with `reprise proposal show`."
    told(nns.propose(agent, chosen, title, text, number, payload), agent)


# --- canisters -----------------------------------------------------------------------------------


def build_bundle(source: Path, out: Path | None) -> dict[str, Any]:
    if not (source / "canister.toml").is_file():
        raise NotFound(f"{source} has no canister.toml: it is no canister's folder")
    module = bundles.build(source)
    read = admit(module)
    target = out if out is not None else Path(f"{read.name}.zip")
    write_durably(target.resolve(), module)
    return {
        "name": read.name,
        "module_hash": read.module_hash,
        "bytes": len(module),
        "modules": len(read.modules),
        "tables": [t.name for t in read.tables],
        "methods": len(read.interface.methods),
        "file": str(target),
    }


def install(
    folder: Path, canister: str, path: Path, mode: str, identity: str, neuron: int | None
) -> None:
    if mode not in MODES:
        raise Malformed(f"the mode is {', '.join(MODES)}, not {mode}")
    module = _read(path)
    admit(module)
    target = Principal.from_text(views.resolve_canister(folder, canister))
    title = f"{mode} {canister} to {sha256(module).hex()[:12]}"
    _propose_action(
        folder, title, nns.install_action(target, module, MODES[mode]), identity, neuron
    )


def snapshots(folder: Path, canister: str) -> list[dict[str, Any]]:
    agent = context.nns_agent(context.swarm(folder))
    target = Principal.from_text(views.resolve_canister(folder, canister))
    return list(nns.call(agent, "root", "list_canister_snapshots", {"canister_id": target}))


def snapshot(
    folder: Path, canister: str, load: str | None, identity: str, neuron: int | None
) -> None:
    target = Principal.from_text(views.resolve_canister(folder, canister))
    action: dict[str, Any]
    if load is None:
        action = {"TakeCanisterSnapshot": {"canister_id": target, "replace_snapshot": None}}
        title = f"Take a snapshot of {canister}"
    else:
        try:
            id_ = bytes.fromhex(load)
        except ValueError as error:
            raise Malformed("a snapshot's id is hexadecimal") from error
        action = {"LoadCanisterSnapshot": {"canister_id": target, "snapshot_id": id_}}
        title = f"Load a snapshot of {canister}"
    _propose_action(folder, title, action, identity, neuron)


def _propose_action(
    folder: Path, title: str, action: dict[str, Any], identity: str, neuron: int | None
) -> None:
    agent, chosen = proposer(folder, identity, neuron)
    text = "What is proposed can be checked with `reprise proposal show`."
    told(nns.propose_action(agent, chosen, title, text, action), agent)
