"""Offline replay: re-execute finalized blocks beside an idle replica, check every certification.

Reads the node's CUP, pool and checkpoints; writes only to its own folder, where the checkpoint at
the target height is left for the orchestrator to take over.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from replica.client.local_registry import LocalRegistry, SubnetRegistry
from replica.consensus import driver as consensus
from replica.consensus.delivery import next_batch
from replica.consensus.reader import Context
from replica.execution.ingress import IngressPool
from replica.execution.state_manager import StateManager, Surroundings
from replica.node import RegistrySurroundings, pool_journal_path, secret_keys
from replica.protocol import artifacts, cup
from replica.protocol.artifacts import Certification
from replica.protocol.crypto import bls
from replica.protocol.errors import NotVerified, Unavailable
from replica.runtime import settings as node_settings
from replica.runtime.journal import scan
from replica.state.store import Store


def replay(folder: Path, height: int, out: Path) -> dict[str, Any]:
    """Replay up to a height; return {height, state_hash, certified_root, checkpoint}.

    Raises: Unavailable when blocks are missing, NotVerified when a certification contradicts.
    """
    settings = node_settings.load(folder)
    records = LocalRegistry(settings.registry_path)
    package = cup.decode(settings.cup_path.read_bytes())
    shutil.rmtree(out, ignore_errors=True)
    (out / "checkpoints").mkdir(parents=True)
    for source in sorted((settings.data / "checkpoints").glob("[0-9a-f]" * 16)):
        if int(source.name, 16) <= min(height, package.height):
            shutil.copytree(source, out / "checkpoints" / source.name, copy_function=os.link)
    surroundings = RegistrySurroundings(records, package.subnet)
    state = StateManager(
        out,
        package.subnet,
        Store("sqlite://"),
        Surroundings(surroundings.policy, surroundings.topology),
    )
    state.open(package)
    version = records.view(package.subnet, package.registry_version).replica_version
    driver = _driver(settings, records, package, state, version)
    root = b""
    while state.latest_height < height:
        batch = next_batch(driver.reader(time.time_ns()))
        if batch is None:
            raise Unavailable(f"the block after height {state.latest_height} is not here")
        state.execute(batch)
        root = _check(driver, state, batch.height)
    state_hash = state.make_checkpoint()
    return {
        "height": state.latest_height,
        "state_hash": state_hash.hex(),
        "certified_root": root.hex(),
        "checkpoint": str(state.folder(state.latest_height)),
    }


def _driver(
    settings: node_settings.NodeSettings,
    records: LocalRegistry,
    package: cup.CatchUpPackage,
    state: StateManager,
    version: str,
) -> consensus.Driver:
    context = Context(
        subnet=package.subnet,
        replica_version=version,
        keys=secret_keys(settings),
        scheme=bls.VERIFIER,
        registry=SubnetRegistry(records, package.subnet, 0),
        state=state,
        payloads=IngressPool(lambda _: False),
        may_sign=lambda _: False,
    )
    driver = consensus.Driver(context, package, time.time_ns())
    path = pool_journal_path(settings, package.epoch, version)
    stored, _ = scan(path.read_bytes()) if path.exists() else ([], 0)
    driver.restore([artifacts.decode(r) for r in stored], time.time_ns())
    return driver


def _check(driver: consensus.Driver, state: StateManager, height: int) -> bytes:
    """Return the replayed root of a height; where it was certified, it must be that root."""
    found = driver.certifications.validated.at(Certification, height)
    ours = state.certified_root_at(height)
    assert ours is not None
    if found:
        if found[0].root != ours[0]:
            raise NotVerified(f"replaying height {height} gave another state than was certified")
        state.deliver(found[0])
    return ours[0]
