"""Checkpoints: the state as immutable files, a function of logical state alone.

    system.cbor  ingress/<expiry>.cbor
    canisters/<id>/canister.cbor  bundle.zip  tables/<table>[@<generation>]/<bucket>.rows
    canisters/<id>/snapshots/<n>/bundle.zip  tables/<table>/<bucket>.rows

Rows are packed in buckets whose borders depend on the keys present (a key opens a bucket when the
first byte of its hash is below 4: 64 rows on average), so one changed row changes one file. Users'
requests are packed by the ten seconds in which they expire. No file holds the height, so
a checkpoint can be adopted under another one. Unchanged files are hard-linked from the checkpoint
before. Written aside, synced, renamed: a checkpoint that has its name is whole.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from replica.abi.tables import decode_row, index_key, index_table
from replica.client.folders import files, link_or_copy, scan
from replica.protocol import canonical, cbor, manifest
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import sha256
from replica.protocol.ids import CanisterId, Height, Principal
from replica.state.placement import all_tables, snapshot_folder
from replica.state.records import Canister, IngressStatus, System
from replica.state.rows import Changes, RowStore
from replica.state.state import Snapshot

FIRST = "first"
INGRESS_SPAN_NS = 10_000_000_000


def is_border(key: bytes) -> bool:
    return sha256(key)[0] < 4


def bucket_name(border: bytes | None) -> str:
    return FIRST if border is None else sha256(b"bucket" + border)[:16].hex()


def border_below(rows: RowStore, table: str, key: bytes) -> bytes | None:
    """Return the key that opens the bucket before a key; None: the first bucket."""
    for candidate, _ in rows.scan(table, b"", key, reverse=True):
        if is_border(candidate):
            return candidate
    return None


def _bucket(rows: RowStore, table: str, border: bytes | None) -> tuple[bytes, bytes | None]:
    """Return the canonical bytes of one bucket (empty when it holds no row) and the next border."""
    packed: list[list[bytes]] = []
    end: bytes | None = None
    for key, row in rows.scan(table, border or b"", None, reverse=False):
        if is_border(key) and key != border:
            end = key
            break
        packed.append([key, row])
    return cbor.dumps(packed) if packed else b"", end


def span_of(status: IngressStatus) -> int:
    """Return the number of the file that a user's request is packed into."""
    return status.expiry_ns // INGRESS_SPAN_NS


@dataclass
class Changed:
    """What has changed since the base checkpoint: all else is linked."""

    tables: dict[str, set[bytes]] = field(default_factory=dict)
    """Keys, by qualified table name."""
    spans: set[int] = field(default_factory=set)
    """Of users' requests."""


class Writer:
    """Writes one checkpoint into a new folder."""

    def __init__(
        self, folder: Path, base: Path | None, contents: manifest.Manifest | None = None
    ) -> None:
        """`contents`: what the base held when it was written or last looked at."""
        self.folder, self.base = folder, base
        self._known: dict[str, list[manifest.ChunkInfo]] = {}
        if contents is not None:
            for info, chunks in zip(contents.files, contents.chunks_by_file(), strict=True):
                self._known[info.path] = list(chunks)
        self.copied = 0
        """So many files that did not change could not be linked."""
        self.written: dict[str, list[manifest.ChunkInfo]] = {}
        """What was written, hashed before: the disk may have put something else there."""

    def write(self, snapshot: Snapshot, rows: RowStore, changed: Changed) -> None:
        self._put("system.cbor", canonical.encode(snapshot.system))
        self._requests(snapshot, changed.spans)
        for id_ in sorted(snapshot.canisters):
            self._canister(snapshot.canisters[id_], rows, changed.tables)

    def _requests(self, snapshot: Snapshot, changed: set[int]) -> None:
        spans: dict[int, list[bytes]] = {}
        for id_, status in snapshot.ingress.items():
            spans.setdefault(span_of(status), []).append(id_)
        for number, ids in sorted(spans.items()):
            path = f"ingress/{number:016x}.cbor"
            if number not in changed and self.base is not None and (self.base / path).is_file():
                self._link(path)
            else:
                packed = [[i, canonical.pack(snapshot.ingress[i])] for i in sorted(ids)]
                self._put(path, cbor.dumps(packed))

    def _canister(self, canister: Canister, rows: RowStore, dirty: dict[str, set[bytes]]) -> None:
        folder = f"canisters/{canister.id.hex()}"
        bare = tuple([replace(s, bundle=b"") for s in canister.snapshots])
        record = replace(canister, bundle=b"", snapshots=bare)
        self._put(f"{folder}/canister.cbor", canonical.encode(record))
        if canister.bundle:
            self._put(f"{folder}/bundle.zip", canister.bundle)
        for snapshot in canister.snapshots:
            self._put(f"{folder}/{snapshot_folder(snapshot)}/bundle.zip", snapshot.bundle)
        for placed in all_tables(canister):
            self._table(f"{folder}/{placed.folder}", placed.name, rows, dirty.get(placed.name))

    def _table(self, folder: str, qualified: str, rows: RowStore, dirty: set[bytes] | None) -> None:
        base = self.base / folder if self.base is not None else None
        if base is None or not base.is_dir():
            self._all_buckets(folder, qualified, rows)
            return
        rewritten, gone = self._changed_buckets(folder, qualified, rows, sorted(dirty or ()))
        for name in sorted(os.listdir(base)):
            bucket = name.removesuffix(".rows")
            if bucket not in rewritten and bucket not in gone:
                self._link(f"{folder}/{name}")

    def _changed_buckets(
        self, folder: str, qualified: str, rows: RowStore, dirty: list[bytes]
    ) -> tuple[set[str], set[str]]:
        """Write the buckets that changed keys, in order, are in; return these and those that went.

        Each bucket is read once, however many of its keys have changed.
        """
        rewritten: set[str] = set()
        gone: set[str] = set()
        end: bytes | None = b""
        """The first key after the bucket that was written last; None: it is the last bucket."""
        for key in dirty:
            is_inside = end is None or key < end
            opens = False
            if is_border(key):
                opens = rows.get(qualified, key) is not None
                if not opens:
                    gone.add(bucket_name(key))
            if is_inside and not opens:
                continue
            borders: list[bytes | None] = []
            if key != end:  # else the bucket below was just written
                borders.append(border_below(rows, qualified, key))
            if opens:
                borders.append(key)
            for border in borders:
                data, end = _bucket(rows, qualified, border)
                name = bucket_name(border)
                rewritten.add(name)
                if data:
                    self._put(f"{folder}/{name}.rows", data)
        return rewritten, gone

    def _all_buckets(self, folder: str, qualified: str, rows: RowStore) -> None:
        packed: list[list[bytes]] = []
        border: bytes | None = None
        for key, row in rows.scan(qualified, b"", None, reverse=False):
            if is_border(key):
                if packed:
                    self._put(f"{folder}/{bucket_name(border)}.rows", cbor.dumps(packed))
                packed, border = [], key
            packed.append([key, row])
        if packed:
            self._put(f"{folder}/{bucket_name(border)}.rows", cbor.dumps(packed))

    def _link(self, path: str) -> None:
        assert self.base is not None
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if link_or_copy(self.base / path, target):
            return
        self.copied += 1
        known = self._known.get(path)
        if known is None:
            return
        self.written[path] = known
        if [c.hash for c in scan(target)] != [c.hash for c in known]:
            raise OSError(errno.EIO, "has rotten since it was written", str(self.base / path))

    def _put(self, path: str, data: bytes) -> None:
        """Write a file, or link the base's when it holds the same bytes."""
        if self.base is not None:
            old = self.base / path
            if old.is_file() and old.stat().st_size == len(data) and old.read_bytes() == data:
                self._link(path)
                return
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.written[path] = manifest.scan_file(0, len(data), lambda at, size: data[at : at + size])


# --- reading ---------------------------------------------------------------------------------


def load(folder: Path, height: Height) -> tuple[Snapshot, Changes]:
    """Read a checkpoint: the snapshot under this height, and all rows with their index rows.

    Raises: Malformed, NotVerified, for files that are missing, cut short or not canonical.
    """
    try:
        system = canonical.decode(System, (folder / "system.cbor").read_bytes())
        ingress: dict[bytes, IngressStatus] = {}
        spans = folder / "ingress"
        for name in sorted(os.listdir(spans)) if spans.is_dir() else []:
            for id_, status in cbor.loads((spans / name).read_bytes(), bytes_max=1 << 30):
                ingress[id_] = canonical.unpack(IngressStatus, status)
        canisters: dict[CanisterId, Canister] = {}
        changes: Changes = {}
        root = folder / "canisters"
        for name in sorted(os.listdir(root)) if root.is_dir() else []:
            canister = _load_canister(root / name)
            canisters[canister.id] = canister
            _load_tables(root / name, canister, changes)
    except FileNotFoundError as error:
        raise Malformed(f"the checkpoint misses {error.filename}") from error
    return Snapshot(height, system, canisters, dict(sorted(ingress.items()))), changes


def _load_canister(folder: Path) -> Canister:
    canister = canonical.decode(Canister, (folder / "canister.cbor").read_bytes())
    if canister.id != Principal(bytes.fromhex(folder.name)):
        raise NotVerified(f"the checkpoint holds another canister under {folder.name}")
    bundle = folder / "bundle.zip"
    snapshots = tuple(
        [
            replace(s, bundle=(folder / snapshot_folder(s) / "bundle.zip").read_bytes())
            for s in canister.snapshots
        ]
    )
    code = bundle.read_bytes() if bundle.is_file() else b""
    return replace(canister, bundle=code, snapshots=snapshots)


def _load_tables(folder: Path, canister: Canister, changes: Changes) -> None:
    for placed in all_tables(canister):
        table, qualified = placed.table, placed.name
        rows: dict[bytes, bytes | None] = {}
        path = folder / placed.folder
        for name in sorted(os.listdir(path)) if path.is_dir() else []:
            for key, row in cbor.loads((path / name).read_bytes(), bytes_max=1 << 30):
                rows[key] = row
        changes[qualified] = dict(sorted(rows.items()))
        for spec in table.indexes:
            changes[index_table(qualified, spec.name)] = {
                index_key(table, spec, decode_row(table, row), key): key
                for key, row in rows.items()
                if row is not None
            }


# --- manifests of folders --------------------------------------------------------------------


def compute_manifest(
    folder: Path,
    base: tuple[Path, manifest.Manifest] | None = None,
    written: Mapping[str, list[manifest.ChunkInfo]] | None = None,
) -> manifest.Manifest:
    """Compute a checkpoint's manifest. Files hard-linked from `base` keep their hashes, and those
    `written` have the ones they were written with."""
    known: dict[tuple[int, int], list[manifest.ChunkInfo]] = {}
    if base is not None:
        for info, chunks in zip(base[1].files, base[1].chunks_by_file()):
            status = os.stat(base[0] / info.path)
            known[(status.st_dev, status.st_ino)] = chunks
    scanned = []
    for path in files(folder):
        status = os.stat(folder / path)
        found = (written or {}).get(path, known.get((status.st_dev, status.st_ino)))
        scanned.append((path, status.st_size, found if found is not None else scan(folder / path)))
    return manifest.assemble(scanned)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Changed", "Writer", "compute_manifest", "files", "load", "remove"]
