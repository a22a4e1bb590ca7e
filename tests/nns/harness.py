"""A subnet's execution without consensus: batches go straight in, the real rounds and rows run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nns
from replica.abi import bundle as bundles
from replica.consensus.delivery import Batch, Randomness
from replica.execution.management import INTERFACE, Policy
from replica.execution.round import QueryAnswer, RoundResult, query
from replica.execution.state_manager import StateManager, Surroundings
from replica.protocol import candid, envelope
from replica.protocol.artifacts import Certification
from replica.protocol.crypto.dkg import KeyResult
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.ids import (
    MANAGEMENT_CANISTER,
    CanisterId,
    Epoch,
    Height,
    Principal,
    RegistryVersion,
    SubnetId,
    TimeNs,
)
from replica.state.records import IngressStatus
from replica.state.store import Store

START_NS = 1_700_000_000 * 10**9
ADMIN = Ed25519Key(b"\x07" * 32)
SUBNET = SubnetId(Principal(b"a subnet under test"))


class Refused(Exception):
    """The call was rejected."""


@dataclass
class Machine:
    """One state machine on an in-memory database."""

    folder: Path
    trusted: tuple[bytes, ...] = ()
    height: int = 0
    time_ns: int = START_NS
    steps_max: int | None = None
    results: list[RoundResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nonce = itertools.count()
        surroundings = Surroundings(lambda _: self.policy(), lambda _: ())
        self.state = StateManager(self.folder, SUBNET, Store("sqlite://"), surroundings)
        self.state.store.set_fence(0, 1)

    def policy(self) -> Policy:
        return Policy(
            may_create=lambda p: p == ADMIN.principal,
            trusted_bundles=self.trusted,
            canister_first=0,
            canister_last=1 << 20,
        )

    def block(
        self,
        *requests: bytes,
        checkpoint: bool = False,
        seconds: float = 1,
        keys: tuple[KeyResult, ...] = (),
    ) -> RoundResult:
        self.height += 1
        self.time_ns += int(seconds * 10**9)
        batch = Batch(
            Height(self.height),
            Epoch(1),
            TimeNs(self.time_ns),
            RegistryVersion(1),
            Randomness(Height(self.height), bytes(32)),
            requests,
            checkpoint,
            keys,
        )
        result = self.state.execute(batch)
        self.results.append(result)
        return result

    def certify(self) -> None:
        """Flush all rows to the database, as when the tip is certified."""
        height = self.state.latest_height
        root, witness = self.state.certified_root_at(height) or (b"", b"")
        self.state.deliver(Certification(Epoch(1), height, root, witness, b""))

    def request(
        self, canister: CanisterId, method: str, arg: bytes, key: Ed25519Key = ADMIN
    ) -> tuple[bytes, bytes]:
        content = {
            "request_type": "call",
            "sender": bytes(key.principal),
            "ingress_expiry": self.time_ns + 200 * 10**9,
            "canister_id": bytes(canister),
            "method_name": method,
            "arg": arg,
            "nonce": next(self._nonce).to_bytes(8, "big"),
        }
        return envelope.sign_request(content, key)

    def status(self, request_id: bytes) -> IngressStatus:
        return self.state._tip.ingress[request_id]

    def raw_call(
        self, canister: CanisterId, method: str, arg: bytes, key: Ed25519Key = ADMIN
    ) -> bytes:
        id_, raw = self.request(canister, method, arg, key)
        self.block(raw)
        for _ in range(5):
            status = self.status(id_)
            if status.status == "replied":
                return status.reply
            if status.status == "rejected":
                raise Refused(f"{status.error_code} {status.reject_message}")
            self.block()
        raise AssertionError(f"no answer: {status}")

    def call(
        self,
        canister: CanisterId,
        did: candid.Interface,
        method: str,
        *values: Any,
        key: Ed25519Key = ADMIN,
    ) -> Any:
        spec = did.methods[method]
        raw = self.raw_call(canister, method, candid.encode(spec.args, values, did), key)
        results = candid.decode(spec.results, raw, did)
        return results[0] if len(results) == 1 else tuple(results)

    def query(
        self,
        canister: CanisterId,
        did: candid.Interface,
        method: str,
        *values: Any,
        key: Ed25519Key = ADMIN,
    ) -> Any:
        spec = did.methods[method]
        answer = self.raw_query(canister, method, candid.encode(spec.args, values, did), key)
        if answer.reply is None:
            raise Refused(f"{answer.error_code} {answer.reject_message}")
        results = candid.decode(spec.results, answer.reply, did)
        return results[0] if len(results) == 1 else tuple(results)

    def raw_query(
        self, canister: CanisterId, method: str, arg: bytes, key: Ed25519Key = ADMIN
    ) -> QueryAnswer:
        request = envelope.Request(
            "query", key.principal, TimeNs(self.time_ns), b"", b"", canister, method, arg
        )
        return query(self.state._tip, self.state._rows(), request, b"a certificate")

    def manage(self, method: str, value: dict[str, Any], key: Ed25519Key = ADMIN) -> Any:
        return self.call(MANAGEMENT_CANISTER, INTERFACE, method, value, key=key)

    def create(self, canister: CanisterId, controllers: list[Principal]) -> None:
        value = {
            "amount": None,
            "settings": {"controllers": controllers},
            "specified_id": canister,
        }
        self.manage("provisional_create_canister_with_cycles", value)

    def install(
        self, canister: CanisterId, module: bytes, argument: object = None, mode: str = "install"
    ) -> None:
        did = bundles.read(module).interface
        values = [argument] if did.init else []
        arg = candid.encode(did.init, values, did)
        inner: Any = None
        value = {
            "mode": {mode: inner},
            "canister_id": canister,
            "wasm_module": module,
            "arg": arg,
        }
        self.manage("install_code", value)


def nns_bundle(name: str) -> bytes:
    return bundles.build(Path(nns.__file__).parent / name)


def make_bundle(
    folder: Path, code: str, did: str, tables: str = "", extra: dict[str, str] | None = None
) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "canister.toml").write_text(f'name = "sample"\nabi = "v1"\n{tables}')
    (folder / "sample.did").write_text(did)
    (folder / "__init__.py").write_text(code)
    for name, text in (extra or {}).items():
        (folder / name).write_text(text)
    return bundles.build(folder)
