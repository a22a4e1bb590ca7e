"""Offline replay: re-execute finalized blocks beside an idle replica, check every certification.

Reads the node's CUP, pool and checkpoints; writes only to its own folder, where the checkpoint at
the target height is left for the orchestrator to take over. For the NNS it can make the changes of
an offline recovery on top.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from replica.client.folders import link_or_copy
from replica.client.local_registry import LocalRegistry, SubnetRegistry
from replica.consensus import driver as consensus
from replica.consensus.delivery import Batch, Randomness, next_batch
from replica.consensus.reader import Context
from replica.execution.ingress import IngressPool
from replica.execution.recovery import newest_registry_version, work_of
from replica.execution.state_manager import StateManager, Surroundings
from replica.node import RegistrySurroundings, secret_keys
from replica.protocol import artifacts, cup, nns_recovery
from replica.protocol.artifacts import Certification
from replica.protocol.crypto import bls
from replica.protocol.crypto.dkg import BlsDkg
from replica.protocol.errors import NotVerified, Unavailable
from replica.protocol.ids import Epoch, RegistryVersion
from replica.runtime import settings as node_settings
from replica.runtime import stored_cup
from replica.runtime.pool_journal import read_pool
from replica.state.store import Store


def replay(
    folder: Path, height: int, out: Path, order: nns_recovery.Order | None = None
) -> dict[str, Any]:
    """Replay up to a height; return {height, state_hash, certified_root, checkpoint}.

    With an order, the changes of an NNS recovery are made on top, and the result also has
    {new_state_hash, new_checkpoint, registry_version, registry_batch}.

    Raises: Unavailable when blocks are missing, NotVerified when a certification contradicts,
    MachineFault: what this node can't read or write gives no root.
    """
    settings = node_settings.load(folder)
    records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
    package = stored_cup.read(settings.cup_path)
    shutil.rmtree(out, ignore_errors=True)
    (out / "checkpoints").mkdir(parents=True)
    _hang_checkpoints(settings, min(height, package.height), out)
    surroundings = RegistrySurroundings(records, package.subnet)
    state = StateManager(
        out,
        package.subnet,
        Store("sqlite://"),
        Surroundings(surroundings.policy, surroundings.topology),
    )
    state.open(package)
    is_behind = state.latest_height < package.height
    version = records.view(package.subnet, package.registry_version).replica_version
    driver = _driver(settings, records, package, state, version)
    root = b""
    while state.latest_height < height:
        batch = next_batch(driver.reader(time.time_ns()))
        if batch is None:
            why = f"the block after height {state.latest_height} is not here"
            if is_behind:
                why += (
                    f", and the checkpoint of {package.height} is missing or damaged: restart this "
                    "node, and it fetches the state from its peers; or go to another one"
                )
            raise Unavailable(why)
        state.execute(batch)
        root = _check(driver, state, batch.height)
    state_hash = state.make_checkpoint()
    result = {
        "height": state.latest_height,
        "state_hash": state_hash.hex(),
        "certified_root": root.hex(),
        "checkpoint": str(state.folder(state.latest_height)),
    }
    if order is not None:
        result |= _recover(state, order, state_hash)
    return result


def _hang_checkpoints(settings: node_settings.NodeSettings, height_max: int, out: Path) -> None:
    """Give the replica's checkpoints a second name in the replay's folder. Raises: Unavailable."""
    for source in sorted((settings.data / "checkpoints").glob("[0-9a-f]" * 16)):
        if int(source.name, 16) > height_max:
            continue
        target = out / "checkpoints" / source.name
        try:
            shutil.copytree(source, target, copy_function=link_or_copy)
        except OSError as error:  # also when the replica has just removed it
            raise Unavailable(f"{source} can't be linked or copied: {error}") from error


def _recover(state: StateManager, order: nns_recovery.Order, state_hash: bytes) -> dict[str, Any]:
    """Make a recovery's changes and a checkpoint of what comes out."""
    version, _ = newest_registry_version(state._tip, state._rows())
    note = {
        "height": order.height,
        "time_ns": order.time_ns,
        "state_height": state.latest_height,
        "state_hash": state_hash,
    }
    batch = Batch(
        height=order.height,
        epoch=Epoch(version + 1),
        time_ns=order.time_ns,
        registry_version=RegistryVersion(version),
        randomness=Randomness(order.height, bytes(32)),
        ingress=(),
        is_checkpoint=True,
    )
    written, content = state.recover(batch, work_of(note, order))
    return {
        "new_state_hash": state.make_checkpoint().hex(),
        "new_checkpoint": str(state.folder(order.height)),
        "registry_version": written,
        "registry_batch": content.hex(),
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
        dkg=BlsDkg(),
        registry=SubnetRegistry(records, package.subnet, 0),
        state=state,
        payloads=IngressPool(lambda _: False),
        may_sign=lambda _: False,
    )
    driver = consensus.Driver(context, package, time.time_ns())
    stored = read_pool(settings, package, driver.run)
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
