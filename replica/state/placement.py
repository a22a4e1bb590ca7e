"""Where the tables of a canister lie: in rows, in SQL, and in a checkpoint.

A table whose declaration or whole content is replaced opens a new generation, so that the rows of
the old one need not be touched; the host drops them once a catch-up package is past them. A
snapshot's rows lie in tables of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from replica.abi import bundle as bundles
from replica.abi.tables import Table, index_table
from replica.protocol.ids import CanisterId
from replica.state.records import Canister, CanisterSnapshot


@dataclass(frozen=True, slots=True)
class Placed:
    """One table of one canister and its names."""

    table: Table
    name: str
    """`<canister hex>/<table>`, followed by `@<generation>` or `~<snapshot>`."""
    sql_name: str
    folder: str
    """Relative to the canister's folder in a checkpoint."""

    @property
    def row_tables(self) -> list[str]:
        """Return the names under which rows lie: the table's, then its indexes'."""
        return [self.name, *[index_table(self.name, i.name) for i in self.table.indexes]]


def generation_of(canister: Canister, table: str) -> int:
    return canister.generations.get(table, 0)


def tables_of(canister: Canister) -> list[Placed]:
    """Return the tables of a canister's code; none when it has no code."""
    if not canister.bundle:
        return []
    return list(_tables(canister.id, canister.bundle, tuple(canister.generations.items())))


@lru_cache(maxsize=1024)
def _tables(
    id_: CanisterId, code: bytes, generations: tuple[tuple[str, int], ...]
) -> tuple[Placed, ...]:
    bundle, known = bundles.read(code), dict(generations)
    return tuple(
        [_place(id_, bundle.name, t, _suffix("@", known.get(t.name, 0)), "") for t in bundle.tables]
    )


def tables_of_snapshot(canister: Canister, snapshot: CanisterSnapshot) -> list[Placed]:
    """Return the tables that hold a snapshot's rows; none when it was taken without code."""
    if not snapshot.bundle:
        return []
    bundle = bundles.read(snapshot.bundle)
    root = f"{snapshot_folder(snapshot)}/"
    return [_place(canister.id, bundle.name, t, f"~{snapshot.number}", root) for t in bundle.tables]


def snapshot_folder(snapshot: CanisterSnapshot) -> str:
    return f"snapshots/{snapshot.number}"


def all_tables(canister: Canister) -> list[Placed]:
    """Return every table that holds rows of a canister, snapshots included."""
    out = tables_of(canister)
    for snapshot in canister.snapshots:
        out += tables_of_snapshot(canister, snapshot)
    return out


def _suffix(mark: str, number: int) -> str:
    return f"{mark}{number}" if number else ""


def _place(id_: CanisterId, bundle: str, table: Table, suffix: str, root: str) -> Placed:
    number = int.from_bytes(id_[:8], "big")
    in_folder = suffix if suffix.startswith("@") else ""
    return Placed(
        table,
        f"{id_.hex()}/{table.name}{suffix}",
        f"c{number}_{bundle}_{table.name}" + suffix.replace("@", "$g").replace("~", "$s"),
        f"{root}tables/{table.name}{in_folder}",
    )
