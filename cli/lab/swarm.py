"""Making and bringing up a local swarm: real processes, real keys, loopback only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.lab.ground import Ground
from cli.lab.layout import Swarm
from nns import genesis
from replica.abi import bundle as bundles
from replica.abi import v1
from replica.client import release
from replica.client.agent import Agent, CallRejected, World
from replica.client.local_registry import LocalRegistry
from replica.protocol import candid
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import ReprisError, Unavailable
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    GOVERNANCE,
    LEDGER,
    LIFELINE,
    MANAGEMENT_CANISTER,
    REGISTRY,
    ROOT,
    CanisterId,
    Principal,
    canister_id,
)
from replica.protocol.registry_transport import Delta, encode_batch
from replica.runtime import settings as node_settings
from replica.runtime.durable import make_folder, sync_folder, write_durably

E8S = 100_000_000
INTERVAL_BLOCKS = 100
JOURNAL = canister_id(1 << 20)
GENESIS_STAKES_E8S = {"default": 1_000 * E8S, "council": 1_000 * E8S, "community": 100 * E8S}
"""Stake by identity: nobody decides alone, default and council together do."""
SIX_MONTHS_S = 15_778_800
MANAGEMENT = candid.parse("""
service : {
  create : (record {
    amount : opt nat; settings : opt record { controllers : opt vec principal };
    specified_id : opt principal;
  }) -> (record { canister_id : principal });
  install : (record {
    mode : variant { install; reinstall; upgrade : opt record {} };
    canister_id : principal; wasm_module : blob; arg : blob;
  }) -> ();
  settings : (record {
    canister_id : principal; settings : record { controllers : opt vec principal };
  }) -> ();
}
""")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    nns_nodes: int = 1
    app_nodes: int = 4
    spare_nodes: int = 0
    """Registered nodes that are in no subnet."""
    interval_blocks: int | None = None
    """Heights from one CUP to the next; None: 100, or what a drill needs."""
    notary_delay_ms: int = 40
    unit_delay_ms: int = 400
    nns_notary_delay_ms: int | None = None
    """Of the NNS alone, where it should take little of the machine; None: as the others."""
    backoff_ms: int = 10
    stall_limit_ms: int = 5000
    poll_ms: int = 300
    trusted_bundles: tuple[bytes, ...] = ()
    """SHA-256 of bundles that may run on the application subnet, besides the journal."""
    journal_entries: int = 400
    """How many entries a drill on state sync writes first."""
    trace: bool = False
    """Whether replicas note which release executed which block."""


def folder_of_bundle(name: str) -> Path:
    """Return where a canister's sources lie in this installation."""
    import cli.lab.journal
    import nns

    if name == "journal":
        return Path(cli.lab.journal.__file__).parent
    return Path(nns.__file__).parent / name


def create(folder: Path, options: Options, ground: Ground | None = None) -> Swarm:
    """Write a new swarm's folder: genesis, keys, release, node folders.

    All of it is durable before swarm.json is, without which there is no swarm.
    """
    ground = ground or Ground()
    entropy = ground.world.entropy
    make_folder(folder)
    unpacked = ground.first_release(folder / "published")
    package_hash = unpacked.name
    initializer = Ed25519Key(entropy(32))
    journal = bundles.build(folder_of_bundle("journal"))
    common: dict[str, Any] = {
        "interval_length": (options.interval_blocks or INTERVAL_BLOCKS) - 1,
        "unit_delay_ms": options.unit_delay_ms,
        "notary_delay_ms": options.notary_delay_ms,
        "backoff_ms": options.backoff_ms,
        "stall_limit_ms": options.stall_limit_ms,
    }
    nns: dict[str, Any] = {}
    if options.nns_notary_delay_ms is not None:
        nns = {"notary_delay_ms": options.nns_notary_delay_ms}
    plans = [
        genesis.SubnetPlan("nns", options.nns_nodes, True, **{**common, **nns}),
        genesis.SubnetPlan(
            "app",
            options.app_nodes,
            False,
            trusted_bundles=(sha256(journal), *options.trusted_bundles),
            **common,
        ),
    ]
    count = options.nns_nodes + options.app_nodes + options.spare_nodes
    *node_ports, mirror_port = ground.free_ports(3 * count + 1)
    made = genesis.make(
        plans,
        release.version_of(package_hash),
        package_hash,
        initializer.principal,
        node_ports,
        ground.world.now_ns(),
        options.spare_nodes,
        entropy,
    )
    _write_identities(folder, initializer, made, entropy)
    _write_nodes(folder, made, options, unpacked)
    shutil.rmtree(unpacked)
    plain = {
        "root_key": made.root_key.hex(),
        "journal": str(JOURNAL),
        "mirror_port": mirror_port,
        "subnets": [
            {
                "name": s.plan.name,
                "id": str(s.id),
                "nodes": [_entry(n) for n in s.nodes],
            }
            for s in made.subnets
        ],
        "spares": [_entry(n) for n in made.spares],
        "genesis": made.batch().hex(),
    }
    sync_folder(folder)
    write_durably(folder / "swarm.json", json.dumps(plain, indent=1).encode())
    return Swarm.load(folder, ground.world)


def _entry(node: genesis.NodeSecrets) -> dict[str, object]:
    return {
        "name": node.name,
        "id": str(node.node),
        "http_port": node.http_port,
        "orchestrator_port": node.orchestrator_port,
    }


def _write_identities(
    folder: Path,
    initializer: Ed25519Key,
    made: genesis.Genesis,
    entropy: Callable[[int], bytes],
) -> None:
    identities = folder / "identities"
    make_folder(identities)
    keys = {
        "initializer": initializer,
        "default": Ed25519Key(entropy(32)),
        "council": Ed25519Key(entropy(32)),
        "community": Ed25519Key(entropy(32)),
    }
    for node in made.nodes:
        keys[f"operator-{node.name}"] = Ed25519Key(node.operator_seed)
    for name, key in keys.items():
        write_secret(identities / f"{name}.pem", key.to_pem())


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, durably."""
    write_durably(path, data, mode=0o600)


def _write_nodes(
    folder: Path, made: genesis.Genesis, options: Options, release_folder: Path
) -> None:
    urls = [f"http://127.0.0.1:{n.http_port}" for n in made.nns.nodes]
    delta = Delta(genesis.GENESIS_VERSION, encode_batch(tuple(made.mutations)))
    for node in made.nodes:
        home = folder / "nodes" / node.name
        make_folder(home)
        held = home / "releases" / release_folder.name
        shutil.copytree(release_folder, held, copy_function=os.link)
        for suffix in (".zip", ".files"):
            os.link(release_folder.with_suffix(suffix), held.with_suffix(suffix))
        write_secret(home / "keys.json", json.dumps(node.to_plain()).encode())
        settings = {
            "node_id": str(node.node),
            "http_port": node.http_port,
            "p2p_port": node.p2p_port,
            "orchestrator_port": node.orchestrator_port,
            "nns_urls": urls,
            "root_key": made.root_key.hex(),
            "releases": "releases",
            "trace": options.trace,
            "poll_ms": options.poll_ms,
            "stable_age_ms": 2 * options.poll_ms + 400,
        }
        write_durably(home / "node.json", json.dumps(settings, indent=1).encode())
        loaded = node_settings.load(home)
        loaded.claim_data()
        LocalRegistry(
            loaded.registry_path, writable=True, identity=loaded.registry_identity
        ).append([delta])


# --- bringing up -----------------------------------------------------------------------------


def wait_for(
    what: str,
    condition: Callable[[], bool],
    timeout_s: float,
    every_s: float = 0.1,
    world: World | None = None,
) -> None:
    """Raises: Unavailable when the condition does not come true in time."""
    world = world or World()
    end = world.monotonic_s() + timeout_s
    while not condition():
        if world.monotonic_s() > end:
            raise Unavailable(f"waited {timeout_s:.0f} s in vain for: {what}")
        world.pause(every_s)


def is_up(agent: Agent, url: str) -> bool:
    try:
        return bool(agent.node_status(url)["certified_height"] > 0)
    except ReprisError:
        return False


def initialize(swarm: Swarm, say: Say) -> None:
    """Install the NNS canisters and the journal, and hand them to their controllers."""
    key = swarm.identity("initializer")
    nns, app = swarm.agent(swarm.nns, key), swarm.agent(swarm.app, key)
    for agent in (nns, app):
        for url in agent.urls:
            up = partial(is_up, agent, url)
            wait_for(f"{url} to certify a state", up, 60, world=swarm.world)
    say("subnets certify; installing the NNS canisters")
    from nns.governance.actions import neuron_subaccount, staking_account

    owners = [swarm.identity(name).principal for name in GENESIS_STAKES_E8S]
    stakes = [
        (neuron_subaccount(owner, 0), owner, e8s)
        for owner, e8s in zip(owners, GENESIS_STAKES_E8S.values())
    ]
    accounts = [(staking_account(subaccount), e8s) for subaccount, _, e8s in stakes]
    accounts += [(v1.account_identifier(p), 10_000 * E8S) for p in owners]
    genesis_batch = bytes.fromhex(json.loads((swarm.folder / "swarm.json").read_text())["genesis"])
    arguments = {
        "registry": {"mutations": [genesis_batch]},
        "ledger": {
            "minting_account": v1.account_identifier(GOVERNANCE),
            "initial": [{"account": a, "e8s": e} for a, e in accounts],
        },
        "governance": {
            "neurons": [
                {
                    "id": number,
                    "controller": owner,
                    "subaccount": subaccount,
                    "stake_e8s": e8s,
                    "dissolve_delay_seconds": SIX_MONTHS_S,
                }
                for number, (subaccount, owner, e8s) in enumerate(stakes, 1)
            ],
            "voting_period_seconds": 4 * 86_400,
            "reject_cost_e8s": E8S,
            "minimum_stake_e8s": E8S,
            "minimum_dissolve_delay_to_vote_seconds": 3600,
        },
        "root": None,
        "lifeline": None,
    }
    ids = {
        "registry": REGISTRY,
        "ledger": LEDGER,
        "governance": GOVERNANCE,
        "root": ROOT,
        "lifeline": LIFELINE,
    }
    for name, id_ in ids.items():
        guardian = LIFELINE if name == "root" else ROOT
        install(nns, id_, name, arguments[name], [key.principal, guardian])
        set_controllers(nns, id_, [guardian])
    install(app, JOURNAL, "journal", None, [key.principal])
    say("canisters are installed")


def _manage(agent: Agent, entry: str, method: str, effective: CanisterId, value: object) -> None:
    arg = candid.encode(MANAGEMENT.methods[entry].args, [value], MANAGEMENT)
    agent.call(MANAGEMENT_CANISTER, method, arg, effective=effective)


def install(
    agent: Agent, id_: CanisterId, name: str, argument: object, controllers: list[Principal]
) -> None:
    """Create a canister under a given id and install a bundle of ours."""
    code = bundles.build(folder_of_bundle(name))
    interface = bundles.read(code).interface
    values = [argument] if interface.init else []
    install_module(agent, id_, code, controllers, candid.encode(interface.init, values, interface))


def install_module(
    agent: Agent, id_: CanisterId, code: bytes, controllers: list[Principal], arg: bytes = b""
) -> None:
    """Create a canister under a given id, unless it is there, and install any bundle."""
    create_arg = {
        "amount": None,
        "settings": {"controllers": controllers},
        "specified_id": id_,
    }
    try:
        _manage(agent, "create", "provisional_create_canister_with_cycles", id_, create_arg)
    except CallRejected as error:
        if error.error_code != "IC0205":  # it is there: an earlier attempt got this far
            raise
    value = {"mode": {"install": None}, "canister_id": id_, "wasm_module": code, "arg": arg}
    _manage(agent, "install", "install_code", id_, value)


def set_controllers(agent: Agent, id_: CanisterId, controllers: list[Principal]) -> None:
    value = {"canister_id": id_, "settings": {"controllers": controllers}}
    _manage(agent, "settings", "update_settings", id_, value)
