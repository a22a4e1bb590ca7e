"""The one block that no consensus made: what an offline recovery changes in the NNS's state.

Plays governance's part: an upgrade of one canister in its controller's name, and the registry's
record of the recovery. Nothing that waits in a mailbox runs here.
"""

from __future__ import annotations

from typing import Any

from replica.abi.tables import TableHandle
from replica.execution.management import INTERFACE
from replica.execution.round import Round, RoundResult
from replica.protocol import candid
from replica.protocol.errors import Rejected
from replica.protocol.hashing import domain_hash, sha256
from replica.protocol.ids import (
    GOVERNANCE,
    LIFELINE,
    MANAGEMENT_CANISTER,
    REGISTRY,
    ROOT,
    CanisterId,
    Principal,
)
from replica.protocol.nns_recovery import Order
from replica.state.placement import tables_of
from replica.state.records import RECEIVED, REJECTED, REPLIED, FromUser, IngressStatus, Request
from replica.state.rows import RowStore
from replica.state.state import Snapshot

RECORD = candid.parse("""
service : { record_nns_recovery : (record {
  height : nat64; time_ns : nat64; state_height : nat64; state_hash : blob;
  replica_version_id : opt text; release_package_sha256_hex : opt text;
  release_package_urls : vec text; canister_id : opt principal; module_hash : opt blob;
  members : opt vec principal; root_key : opt blob;
}) -> () }
""")


Work = list[tuple[CanisterId, Principal, str, bytes]]
"""Messages: (target, sender, method, argument)."""


class RecoveryRound(Round):
    """Runs given messages and nothing else."""

    def run_work(self, work: Work) -> RoundResult:
        """Run (target, sender, method, argument) in order. Raises: Rejected when one fails."""
        for number, (target, sender, method, arg) in enumerate(work):
            id_ = domain_hash("reprise-nns-recovery", bytes([number]))
            status = IngressStatus(self.batch.time_ns, sender, target, RECEIVED)
            self.state.set_ingress(id_, status)
            request = Request(sender, FromUser(id_), method, arg)
            if target == MANAGEMENT_CANISTER:
                self._manage(request)
            elif target not in self.state.canisters or not self.state.canisters[target].bundle:
                raise Rejected(f"{target} has no code to run {method}")
            else:
                self._run_request(target, request)
            ended = self.state.ingress[id_]
            if ended.status != REPLIED:
                why = ended.reject_message if ended.status == REJECTED else "it did not answer"
                raise Rejected(f"{method} failed in the recovery: {why}")
            self.state.set_ingress(id_, None)
        return self._result(self.state.finish(self.batch.height))


def work_of(note: dict[str, Any], order: Order) -> Work:
    """Return the messages of a recovery. `note`: height, time_ns, state_height, state_hash."""
    work: Work = []
    release, module, committee = order.release, order.module, order.committee
    if module is not None:
        install = {
            "mode": {"upgrade": None},
            "canister_id": module.canister,
            "wasm_module": module.module,
            "arg": module.arg,
        }
        arg = candid.encode(INTERFACE.methods["install_code"].args, [install], INTERFACE)
        controller = LIFELINE if module.canister == ROOT else ROOT
        work.append((MANAGEMENT_CANISTER, Principal(controller), "install_code", arg))
    payload = {
        **note,
        "replica_version_id": release.version if release is not None else None,
        "release_package_sha256_hex": release.sha256_hex if release is not None else None,
        "release_package_urls": list(release.urls) if release is not None else [],
        "canister_id": module.canister if module is not None else None,
        "module_hash": sha256(module.module) if module is not None else None,
        "members": list(committee.members) if committee is not None else None,
        "root_key": committee.root_key if committee is not None else None,
    }
    raw = candid.encode(RECORD.methods["record_nns_recovery"].args, [payload], RECORD)
    work.append((REGISTRY, Principal(GOVERNANCE), "record_nns_recovery", raw))
    return work


def newest_registry_version(snapshot: Snapshot, rows: RowStore) -> tuple[int, bytes]:
    """Return (version, batch) of the registry in a state. Raises: Rejected when it has none."""
    registry = snapshot.canisters.get(REGISTRY)
    for placed in tables_of(registry) if registry is not None else []:
        if placed.table.name == "changelog":
            handle = TableHandle(
                placed.table,
                rows,  # type: ignore[arg-type]
                spend=lambda _: None,
                read_only=True,
                name=placed.name,
            )
            for row in handle.range(reverse=True):
                return int(row["version"]), bytes(row["batch"])
    raise Rejected("the state holds no registry")
