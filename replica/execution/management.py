"""The management canister aaaaa-aa: creating, installing, starting, stopping, asking.

One function a method; each returns the Candid reply or raises `Refused`.
Source: interface specification "The IC management canister".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replica.abi import bundle as bundles
from replica.abi.tables import Table
from replica.execution import python_runtime as python
from replica.protocol import candid
from replica.protocol.errors import Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import LIFELINE, ROOT, CanisterId, Principal, canister_id
from replica.state.records import RUNNING, STOPPED, STOPPING, Canister, Origin
from replica.state.rows import Layer
from replica.state.state import BlockState

INTERFACE = candid.parse("""
type canister_settings = record { controllers : opt vec principal };
type status = variant { running; stopping; stopped };
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
  canister_status : (record { canister_id : principal }) -> (record {
    status : status; settings : record { controllers : vec principal };
    module_hash : opt blob; memory_size : nat; cycles : nat; idle_cycles_burned_per_day : nat;
  });
}
""")
CONTROLLERS_MAX = 10


class Refused(Rejected):
    """A management call failed; carries the IC's reject and error codes."""

    def __init__(self, error_code: str, message: str) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.reject_code = int(error_code[3])


@dataclass
class Policy:
    """What the registry allows on this subnet, at the block's registry version."""

    may_create: Callable[[Principal], bool]
    trusted_bundles: tuple[bytes, ...]
    canister_first: int
    """Number of the first canister id of this subnet's range."""
    canister_last: int


@dataclass
class Management:
    """Executes management calls against a block's state."""

    state: BlockState
    policy: Policy
    layer: Layer
    caller: Principal
    declared: dict[str, tuple[str, Table]]
    """Tables that came into being: qualified name to SQL name and declaration."""

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
        controllers = self._controllers(settings) or (self.caller,)
        self.state.set(Canister(id_, controllers))
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
        module = arg["wasm_module"]
        self._check_trust(canister, module)
        try:
            loaded = python.program(module)
        except Rejected as error:
            raise Refused("IC0505", f"the bundle is refused: {error}") from error
        if mode == "install" and canister.bundle:
            raise Refused("IC0538", f"{canister.id} has code already; use upgrade or reinstall")
        if mode == "upgrade" and not canister.bundle:
            raise Refused("IC0537", f"{canister.id} has no code to upgrade")
        if mode == "upgrade":
            self._check_tables(canister, loaded)
        else:
            self._drop_rows(canister)
        self._declare_tables(canister, loaded)
        layer = Layer(self.layer)
        meter = python.Meter(10 * python.STEPS_MAX)
        context = python.InvocationContext(
            loaded,
            canister.id,
            canister.controllers,
            self.caller,
            self.state.time_ns,
            layer,
            meter,
            read_only=False,
        )
        entry = "post_upgrade" if mode == "upgrade" else "init"
        if (entry, "") in loaded.entries:
            result = self._run_entry(loaded, context, entry, arg["arg"])
            layer.merge_into(self.layer.changes)
        else:
            result = python.Result()
        certified = canister.certified_data if mode == "upgrade" else b""
        self.state.change(
            canister.id,
            bundle=module,
            version=canister.version + 1,
            certified_data=result.certified_data
            if result.certified_data is not None
            else certified,
            timer_ns=result.timer_ns or 0,
        )

    def _run_entry(
        self, loaded: python.Program, context: Any, entry: str, arg: bytes
    ) -> python.Result:
        values: list[Any] = []
        if entry == "init":
            try:
                values = candid.decode(loaded.bundle.interface.init, arg, loaded.bundle.interface)
            except Rejected as error:
                raise Refused("IC0408", f"init argument: {error}") from error
        result = python.run(context, loaded, entry, "", tuple(values), None)
        failure = result.trap or result.rejected
        if failure or result.calls:
            raise Refused("IC0503", f"{entry} failed: {failure or 'it must not call out'}")
        return result

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

    def _check_tables(self, canister: Canister, loaded: python.Program) -> None:
        before = {t.name: t for t in bundles.read(canister.bundle).tables}
        for table in loaded.bundle.tables:
            if table.name in before and before[table.name] != table:
                raise Refused("IC0505", f"an upgrade can't change the table {table.name}")
        missing = set(before) - {t.name for t in loaded.bundle.tables}
        if missing:
            raise Refused("IC0505", f"an upgrade can't drop the table {min(missing)}")

    def _declare_tables(self, canister: Canister, loaded: python.Program) -> None:
        for qualified, sql_name, table in declarations(canister.id, loaded.bundle):
            self.declared[qualified] = (sql_name, table)

    def _drop_rows(self, canister: Canister) -> None:
        if not canister.bundle:
            return
        for qualified, _, table in declarations(canister.id, bundles.read(canister.bundle)):
            for name in [qualified, *[f"{qualified}#{i.name}" for i in table.indexes]]:
                for key in [k for k, _ in self.layer.scan(name, b"", None)]:
                    self.layer.put(name, key, None)

    def _uninstall_code(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        self._drop_rows(canister)
        self.state.change(
            canister.id, bundle=b"", certified_data=b"", timer_ns=0, version=canister.version + 1
        )

    # -- life cycle

    def _update_settings(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        controllers = self._controllers(arg["settings"])
        if controllers is not None:
            self.state.change(canister.id, controllers=controllers, version=canister.version + 1)

    def _start_canister(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        self.state.change(canister.id, status=RUNNING, version=canister.version + 1)

    def _stop_canister(self, arg: dict[str, Any], origin: Origin) -> bytes | None:
        canister = self._controlled(arg)
        if canister.status == STOPPED or not canister.contexts:
            self.state.change(canister.id, status=STOPPED, version=canister.version + 1)
            return candid.encode([], [])
        waiters = (*canister.stop_waiters, origin)
        self.state.change(canister.id, status=STOPPING, stop_waiters=waiters)
        return None

    def _delete_canister(self, arg: dict[str, Any]) -> None:
        canister = self._controlled(arg)
        if canister.status != STOPPED:
            raise Refused("IC0510", f"{canister.id} must be stopped before it is deleted")
        self._drop_rows(canister)
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


def declarations(id_: CanisterId, bundle: bundles.Bundle) -> list[tuple[str, str, Table]]:
    """Return (qualified name, SQL name, declaration) of a canister's tables."""
    number = int.from_bytes(id_[:8], "big")
    return [
        (f"{id_.hex()}/{t.name}", f"c{number}_{bundle.name}_{t.name}", t) for t in bundle.tables
    ]


__all__ = ["INTERFACE", "Management", "Policy", "Refused", "declarations"]
