"""The management canister aaaaa-aa: creating, installing, starting, stopping, asking.

One function a method; each returns the Candid reply or raises `Refused`.
Source: interface specification "The IC management canister".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replica.abi import bundle as bundles
from replica.execution import install, snapshots
from replica.execution.errors import Refused
from replica.protocol import candid
from replica.protocol.crypto.dkg import KeyRequest
from replica.protocol.errors import Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    LIFELINE,
    REGISTRY,
    ROOT,
    CanisterId,
    NodeId,
    Principal,
    RegistryVersion,
    canister_id,
)
from replica.state.placement import all_tables
from replica.state.records import (
    RUNNING,
    STOPPED,
    STOPPING,
    Canister,
    KeyCall,
    Origin,
    Request,
    StopWaiter,
)
from replica.state.rows import Layer
from replica.state.state import BlockState

INTERFACE = candid.parse("""
type canister_settings = record { controllers : opt vec principal };
type status = variant { running; stopping; stopped };
type snapshot = record { id : blob; taken_at_timestamp : nat64; total_size : nat64 };
service : {
  create_canister : (record { settings : opt canister_settings }) -> (record {
    canister_id : principal;
  });
  provisional_create_canister_with_cycles : (record {
    amount : opt nat; settings : opt canister_settings; specified_id : opt principal;
  }) -> (record { canister_id : principal });
  install_code : (record {
    mode : variant { install; reinstall; upgrade : opt record { skip_pre_upgrade : opt bool } };
    canister_id : principal; wasm_module : blob; arg : blob;
  }) -> ();
  update_settings : (record { canister_id : principal; settings : canister_settings }) -> ();
  start_canister : (record { canister_id : principal }) -> ();
  stop_canister : (record { canister_id : principal }) -> ();
  uninstall_code : (record { canister_id : principal }) -> ();
  delete_canister : (record { canister_id : principal }) -> ();
  take_canister_snapshot : (record {
    canister_id : principal; replace_snapshot : opt blob;
  }) -> (snapshot);
  load_canister_snapshot : (record { canister_id : principal; snapshot_id : blob }) -> ();
  list_canister_snapshots : (record { canister_id : principal }) -> (vec snapshot);
  delete_canister_snapshot : (record { canister_id : principal; snapshot_id : blob }) -> ();
  canister_status : (record { canister_id : principal }) -> (record {
    status : status; settings : record { controllers : vec principal };
    module_hash : opt blob; memory_size : nat; cycles : nat; idle_cycles_burned_per_day : nat;
  });
  setup_initial_dkg : (record { node_ids : vec principal; registry_version : nat64 }) -> (record {
    low_threshold_transcript_record : blob; high_threshold_transcript_record : blob;
    subnet_threshold_public_key : blob;
  });
}
""")
CONTROLLERS_MAX = 10
KEY_CALLS_MAX = 8
RECEIVERS_MAX = 64


@dataclass
class Policy:
    """What the registry allows on this subnet, at the block's registry version."""

    may_create: Callable[[Principal], bool]
    trusted_bundles: tuple[bytes, ...]
    canister_first: int
    """Number of the first canister id of this subnet's range."""
    canister_last: int


@dataclass
class Effort:
    """What a call cost, also when it failed."""

    steps: int = 0
    moved: int = 0
    """Rows that an upgrade moved."""


@dataclass
class Management:
    """Executes management calls against a block's state."""

    state: BlockState
    policy: Policy
    layer: Layer
    caller: Principal
    effort: Effort = field(default_factory=Effort)
    rejections: list[tuple[Origin, str, str]] = field(default_factory=list)
    """Calls that nobody will answer any more: (who waits, error code, text)."""

    def execute(self, method: str, arg: bytes, origin: Origin) -> bytes | None:
        """Run a method; None: answered later (stop_canister). Raises: Refused."""
        spec = INTERFACE.methods.get(method)
        handler = getattr(self, f"_{method}", None)
        if spec is None or handler is None:
            raise Refused("IC0407", f"the management canister has no method {method[:60]}")
        try:
            (decoded,) = candid.decode(spec.args, arg, INTERFACE)
        except Rejected as error:
            raise Refused("IC0408", f"{method}: {error}") from error
        if method == "stop_canister":
            return self._stop_canister(decoded, origin)
        if method == "setup_initial_dkg":
            self._setup_initial_dkg(decoded, origin)
            return None
        value = handler(decoded)
        return candid.encode(spec.results, [value] if spec.results else [], INTERFACE)

    # -- creating

    def _create_canister(self, arg: dict[str, Any]) -> dict[str, Any]:
        return self._create(None, arg["settings"])

    def _provisional_create_canister_with_cycles(self, arg: dict[str, Any]) -> dict[str, Any]:
        return self._create(arg["specified_id"], arg["settings"])

    def _create(self, specified: Principal | None, settings: Any) -> dict[str, Any]:
        if not self.policy.may_create(self.caller):
            raise Refused("IC0512", f"{self.caller} may not create canisters on this subnet")
        first, last = self.policy.canister_first, self.policy.canister_last
        if specified is None:
            taken = [int.from_bytes(i[:8], "big") for i in self.state.canisters]
            number = max([t for t in taken if first <= t <= last], default=first - 1) + 1
            id_ = canister_id(number)
        else:
            id_ = CanisterId(specified)
        if not canister_id(first) <= id_ <= canister_id(last):
            raise Refused("IC0301", f"{id_} is not in this subnet's range of canisters")
        if id_ in self.state.canisters:
            raise Refused("IC0205", f"the canister {id_} exists already")
        controllers = self._controllers(settings)
        self.state.set(Canister(id_, (self.caller,) if controllers is None else controllers))
        return {"canister_id": id_}

    def _controllers(self, settings: Any) -> tuple[Principal, ...] | None:
        if settings is None or settings["controllers"] is None:
            return None
        wanted = tuple(dict.fromkeys(settings["controllers"]))
        if len(wanted) > CONTROLLERS_MAX:
            raise Refused("IC0405", f"a canister has at most {CONTROLLERS_MAX} controllers")
        return wanted

    def _controlled(self, arg: dict[str, Any]) -> Canister:
        canister = self.state.canisters.get(CanisterId(arg["canister_id"]))
        if canister is None:
            raise Refused("IC0301", f"there is no canister {arg['canister_id']}")
        if self.caller not in canister.controllers:
            raise Refused("IC0512", f"{self.caller} does not control {canister.id}")
        return canister

    # -- code

    def _install_code(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        ((mode, _),) = arg["mode"].items()
        self._check_trust(canister, arg["wasm_module"])
        layer = Layer(self.layer)
        done = install.run(
            canister, mode, arg["wasm_module"], arg["arg"], self.caller, self.state.time_ns, layer
        )
        self.effort.steps += done.steps
        if done.failure:
            raise Refused(done.error_code, done.failure)
        layer.merge_into(self.layer)
        self.effort.moved += done.moved
        self.state.set(done.canister)

    def _check_trust(self, canister: Canister, module: bytes) -> None:
        """A bundle is not sandboxed: who may run one is decided by governance or the registry."""
        if not bundles.is_bundle(module):
            raise Refused("IC0505", "only Python bundles (zip) can be installed by this release")
        by_governance = ROOT in canister.controllers or LIFELINE in canister.controllers
        if not by_governance and sha256(module) not in self.policy.trusted_bundles:
            raise Refused(
                "IC0505",
                f"the registry does not list the bundle {sha256(module).hex()} for this subnet, "
                "and neither root nor lifeline controls the canister",
            )

    def _uninstall_code(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        self._abandon_calls(canister, "was uninstalled")
        self.state.set(install.without_code(self.state.canisters[canister.id]))

    def _abandon_calls(self, canister: Canister, why: str) -> None:
        """Answer everybody who waits for a canister that will not answer any more."""
        text = f"{canister.id} {why} while the call was open"
        waiting = [c.origin for c in canister.contexts.values()]
        waiting += [m.origin for m in canister.inbox if isinstance(m, Request)]
        self.rejections += [(origin, "IC0504", text) for origin in waiting]
        self.state.change(canister.id, contexts={}, callbacks={}, inbox=())

    # -- snapshots

    def _take_canister_snapshot(self, arg: dict[str, Any]) -> dict[str, Any]:
        canister = self._controlled(arg)
        taken, steps = snapshots.take(
            canister, arg["replace_snapshot"], self.state.time_ns, self.layer
        )
        self.effort.steps += steps
        self.state.set(taken)
        return snapshots.describe(taken, taken.snapshots[-1])

    def _load_canister_snapshot(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        loaded, steps = snapshots.load(canister, arg["snapshot_id"], self.layer)
        self.effort.steps += steps
        self.state.set(loaded)

    def _list_canister_snapshots(self, arg: dict[str, Any]) -> list[dict[str, Any]]:
        canister = self._controlled(arg)
        return [snapshots.describe(canister, s) for s in canister.snapshots]

    def _delete_canister_snapshot(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        self.state.set(snapshots.delete(canister, arg["snapshot_id"]))

    # -- keys

    def _setup_initial_dkg(self, arg: dict[str, Any], origin: Origin) -> None:
        """Have this subnet deal fresh keys to nodes of another; answered in a later block."""
        if self.caller != REGISTRY:
            raise Refused("IC0512", "only the registry asks for other subnets' keys")
        receivers = tuple(sorted(NodeId(n) for n in arg["node_ids"]))
        if not receivers or len(set(receivers)) != len(receivers):
            raise Refused("IC0408", "setup_initial_dkg: name each node once")
        if len(receivers) > RECEIVERS_MAX:
            raise Refused("IC0408", f"a subnet has at most {RECEIVERS_MAX} nodes")
        if len(self.state.key_calls) >= KEY_CALLS_MAX:
            raise Refused("IC0201", f"{KEY_CALLS_MAX} key generations are open already")
        number, version = self.state.next_key_request, RegistryVersion(arg["registry_version"])
        call = KeyCall(KeyRequest(number, version, receivers), origin)
        self.state.key_calls = (*self.state.key_calls, call)
        self.state.next_key_request = number + 1

    # -- life cycle

    def _update_settings(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        controllers = self._controllers(arg["settings"])
        if controllers is not None:
            self.state.change(canister.id, controllers=controllers, version=canister.version + 1)

    def _start_canister(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        for waiter in canister.stop_waiters:
            self.rejections.append((waiter.origin, "IC0509", f"{canister.id} was started again"))
        self.state.change(
            canister.id, status=RUNNING, stop_waiters=(), version=canister.version + 1
        )

    def _stop_canister(self, arg: dict[str, Any], origin: Origin) -> bytes | None:
        canister = self._controlled(arg)
        if canister.status == STOPPED or not canister.contexts:
            self.state.change(canister.id, status=STOPPED, version=canister.version + 1)
            return candid.encode([], [])
        waiters = (*canister.stop_waiters, StopWaiter(origin, self.state.time_ns))
        self.state.change(canister.id, status=STOPPING, stop_waiters=waiters)
        return None

    def _delete_canister(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        if canister.status != STOPPED:
            raise Refused("IC0510", f"{canister.id} must be stopped before it is deleted")
        self._abandon_calls(canister, "was deleted")
        for placed in all_tables(canister):
            for name in placed.row_tables:
                for key in [k for k, _ in self.layer.scan(name, b"", None)]:
                    self.layer.put(name, key, None)
        del self.state.canisters[canister.id]
        self.state.touched[canister.id] = None

    def _canister_status(self, arg: dict[str, Any]) -> dict[str, Any]:
        canister = self.state.canisters.get(CanisterId(arg["canister_id"]))
        if canister is None:
            raise Refused("IC0301", f"there is no canister {arg['canister_id']}")
        if self.caller not in (*canister.controllers, canister.id):
            raise Refused("IC0512", f"{self.caller} does not control {canister.id}")
        return {
            "status": {canister.status: None},
            "settings": {"controllers": list(canister.controllers)},
            "module_hash": sha256(canister.bundle) if canister.bundle else None,
            "memory_size": len(canister.bundle),
            "cycles": 0,
            "idle_cycles_burned_per_day": 0,
        }


__all__ = ["INTERFACE", "Effort", "Management", "Policy", "Refused"]
