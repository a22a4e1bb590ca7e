"""A client that never stops writing to the journal, and can prove afterwards what it was told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.lab.layout import Swarm
from cli.lab.swarm import folder_of_bundle
from replica.client.agent import Agent, CallRejected
from replica.protocol import candid
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import NotVerified, ReprisError, Unavailable
from replica.protocol.hashing import sha256

JOURNAL = candid.parse((folder_of_bundle("journal") / "journal.did").read_text())
PAGE = 500


def encode(method: str, *values: Any) -> bytes:
    return candid.encode(JOURNAL.methods[method].args, values, JOURNAL)


def decode(method: str, raw: bytes) -> Any:
    return candid.decode(JOURNAL.methods[method].results, raw, JOURNAL)[0]


@dataclass
class Writer:
    """Appends one entry after another; every answer is verified against the root key."""

    swarm: Swarm
    key: Ed25519Key
    pad: int = 0
    """Extra characters per entry, to give the state some size."""
    acknowledged: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Entries by our sequence number, as certified."""
    fault: str = ""

    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._agent = self.swarm.agent(self.swarm.app, self.key)
        self._agent.timeout_s = 4.0

    def move(self, swarm: Swarm) -> None:
        """From now on, ask the nodes of this swarm's application subnet, and trust its root key."""
        self._agent.urls, self._agent.root_key = swarm.app.urls, swarm.root_key

    def start(self) -> None:
        self._task = self.swarm.world.spawn(self._run)

    def _run(self) -> None:
        sequence = 0
        try:
            while not self._stop.is_set():
                text = f"entry {sequence} " + hashlib.sha256(str(sequence).encode()).hexdigest() * (
                    self.pad // 64
                )
                arg = encode("append", {"sequence": sequence, "text": text})
                raw = self._agent.call(
                    self.swarm.journal, "append", arg, wait_s=200.0, on_retry=self._on_retry
                )
                self.acknowledged[sequence] = decode("append", raw)
                sequence += 1
        except (ReprisError, CallRejected) as error:
            if not self._stop.is_set():
                self.fault = str(error)

    def _on_retry(self, _reason: str) -> None:
        if self._stop.is_set():
            raise Unavailable("stopped")

    def request_stop(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        self.request_stop()
        self._task.join(15)

    @property
    def count(self) -> int:
        return len(self.acknowledged)


def read_all(agent: Agent, swarm: Swarm, writers: Sequence[Writer] = ()) -> list[dict[str, Any]]:
    """Read the whole journal from one node and check its chain up to the certified head.

    A node that is behind shows an older journal, as well certified: it must be as long as what
    the writers know. Raises: NotVerified.
    """
    known = max(
        (told["number"] + 1 for w in writers for told in w.acknowledged.values()), default=0
    )
    for _ in range(40):
        entries: list[dict[str, Any]] = []
        while True:
            arg = encode("page", {"start": len(entries), "limit": PAGE})
            page = decode("page", agent.query(swarm.journal, "page", arg))
            entries += page
            if len(page) < PAGE:
                break
        path = (b"canister", bytes(swarm.journal), b"certified_data")
        status = decode("status", agent.query(swarm.journal, "status", encode("status")))
        from replica.protocol import certificate

        verified = certificate.verify(status["certificate"], swarm.root_key, swarm.journal)
        if verified.leaf(*path) != status["head"]:
            raise NotVerified("the journal's head is not the certified one")
        heads = chain(entries)
        if status["head"] in heads and len(entries) >= known:
            return entries
        if len(entries) < known:
            agent.next_node()
            agent.world.pause(0.3)
        # Else the journal grew between the pages and the head: read on.
    raise NotVerified("the journal's chain does not lead to its certified head")


def chain(entries: list[dict[str, Any]]) -> list[bytes]:
    """Recompute the hash chain; return the head after each entry. Raises: NotVerified."""
    before, heads = bytes(32), [bytes(32)]
    for number, entry in enumerate(entries):
        own = sha256(bytes(entry["client"]))
        before = sha256(
            before + own + entry["sequence"].to_bytes(8, "big") + entry["text"].encode()
        )
        if entry["number"] != number or entry["hash"] != before:
            raise NotVerified(f"the journal's chain breaks at entry {number}")
        heads.append(before)
    return heads


def preserved(writer: Writer, entries: list[dict[str, Any]]) -> bool:
    """Whether everything that was certified to the client is there, in order, once."""
    own = [e for e in entries if bytes(e["client"]) == bytes(writer.key.principal)]
    sequences = [e["sequence"] for e in own]
    if sequences != sorted(set(sequences)):
        return False
    by_sequence = {e["sequence"]: e for e in own}
    return all(
        by_sequence.get(s, {}).get("hash") == told["hash"]
        and by_sequence[s]["number"] == told["number"]
        for s, told in writer.acknowledged.items()
    )
