"""The local registry store: certified deltas that an orchestrator wrote and its replica reads.

Append-only and checksummed. The writer has all of it in memory, and what it lies in is the lesser
of the two: whatever becomes of the file, it is written anew. Readers take what follows what they
have, and wait for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from replica.client.registry_records import (
    COMMITTEE_SIGNING,
    DKG_DEALING,
    NNS_SUBNET,
    NODE_SIGNING,
    ROUTING_TABLE,
    SUBNET_LIST,
    WHITELIST,
    VersionedRecords,
    cup_contents,
    node_key,
    node_operator_record,
    node_record,
    replica_version,
    subnet_record,
    threshold_key,
    tls_certificate,
)
from replica.client.subnet_view import SubnetView
from replica.protocol import canonical
from replica.protocol.errors import Malformed, ReprisError
from replica.protocol.ids import RegistryVersion, SubnetId
from replica.protocol.registry_transport import Delta
from replica.runtime.durable import copy_durably
from replica.runtime.journal import DAMAGED, Journal, JournalReader


class LocalRegistry(VersionedRecords):
    """The store on disk. One orchestrator appends; any number of readers `refresh`.

    Damage costs its writer nothing but time: the versions before it are kept, and the NNS and
    peers have the others, certified.
    """

    def __init__(self, path: Path, *, writable: bool = False, identity: str = "") -> None:
        """`identity`: whose it must be (see `NodeSettings.registry_identity`); empty: anybody's.

        Raises: ForeignJournal; Malformed for a damaged store that is opened for reading.
        """
        super().__init__()
        self.damage = ""
        """What was wrong with the store when it was opened; its copy is kept beside it."""
        self._journal: Journal | None = None
        self._reader = JournalReader(path, identity)
        if not writable:
            self._follow(self._reader.new_records())
            return
        self._journal = Journal(path, identity, salvage=True)
        self.damage = self._journal.damage
        records, self._journal.records = self._journal.records, []
        try:
            self._follow(records)
        except ReprisError as error:
            self._salvage(self._journal, str(error))

    def _salvage(self, journal: Journal, why: str) -> None:
        """Keep a copy of a store that leads on to nothing, and go on from what comes before."""
        self.damage = self.damage or why
        journal.failed = why
        with suppress(OSError):  # then the next `append` or `mend` tries again
            copy_durably(journal.path, journal.path.with_name(journal.path.name + DAMAGED))
            self._write_anew(journal)

    def _follow(self, records: Iterable[bytes]) -> None:
        """Take in what goes on from what is here. Raises: Malformed at the first that does not."""
        for record in records:
            delta = canonical.decode(Delta, record)
            if delta.version > self.version:
                self.apply(delta)

    def _write_anew(self, journal: Journal) -> None:
        journal.rewrite(canonical.encode(d) for d in self.deltas)

    def mend(self) -> bool:
        """Write anew, from memory, a store that has rotted, was replaced, or is gone. Return
        whether it had. Raises: OSError; then the next call tries again."""
        assert self._journal is not None, "opened for reading"
        if self._journal.is_sound():
            return False
        self._write_anew(self._journal)
        return True

    def refresh(self) -> bool:
        """Take in what was appended; True when there was anything.

        A store that is damaged, or lacks something, is for its writer to mend: until then this one
        goes on with what it has.
        """
        before = self.version
        if self._journal is None:
            try:
                self._follow(self._reader.new_records())
            except Malformed:
                self._reader.start_over()
        return self.version > before

    def append(self, deltas: Iterable[Delta]) -> None:
        """Store verified deltas durably, then make them visible here. Raises: Malformed, OSError"""
        assert self._journal is not None, "opened for reading"
        fresh = [d for d in deltas if d.version > self.version]
        if not fresh:
            return
        if fresh[0].version != self.version + 1:
            raise Malformed(f"registry delta {fresh[0].version} leaves a gap after {self.version}")
        if self._journal.failed:
            self._write_anew(self._journal)
        self._journal.append([canonical.encode(d) for d in fresh])
        for delta in fresh:
            self.apply(delta)


class SubnetRegistry:
    """The registry as one replica's consensus sees it (implements `RegistryView`)."""

    def __init__(self, records: VersionedRecords, subnet: SubnetId, stable_age_ns: int) -> None:
        self.records, self._subnet, self._age = records, subnet, stable_age_ns
        self._arrivals: list[tuple[int, RegistryVersion]] = [(0, records.version)]
        self._view = lru_cache(maxsize=64)(self._load)
        self.node_keys = lru_cache(maxsize=512)(records.node_keys)

    def _load(self, version: RegistryVersion) -> SubnetView:
        return self.records.view(self._subnet, version)

    @property
    def latest_version(self) -> RegistryVersion:
        return self.records.version

    def subnet(self, version: RegistryVersion) -> SubnetView:
        return self._view(version)

    def arrived(self, now_ns: int) -> None:
        """Note that the records may have grown."""
        if self.records.version > self._arrivals[-1][1]:
            self._arrivals.append((now_ns, self.records.version))

    def stable_version(self, now_ns: int) -> RegistryVersion:
        old = [v for t, v in self._arrivals if t + self._age <= now_ns]
        return old[-1] if old else self._arrivals[0][1]


__all__ = [
    "COMMITTEE_SIGNING",
    "DKG_DEALING",
    "LocalRegistry",
    "NNS_SUBNET",
    "NODE_SIGNING",
    "ROUTING_TABLE",
    "SUBNET_LIST",
    "SubnetRegistry",
    "VersionedRecords",
    "WHITELIST",
    "cup_contents",
    "node_key",
    "node_operator_record",
    "node_record",
    "replica_version",
    "subnet_record",
    "threshold_key",
    "tls_certificate",
]
