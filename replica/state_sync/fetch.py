"""Fetching a checkpoint: only from peers that advertise the CUP's root, every part verified.

Meta-manifest, then sub-manifests, then what the plan could not reuse, from many peers at once. A
peer that sends a wrong byte is not asked again during this sync.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from replica.protocol import manifest
from replica.protocol.errors import NotVerified, ReprisError, Unavailable
from replica.protocol.ids import Height, NodeId
from replica.state_sync.assemble import Assembly, order
from replica.state_sync.plan import plan

Request = Callable[[NodeId, int, bytes, str, int], Awaitable[bytes | None]]
PARALLEL_PER_PEER = 4
ATTEMPTS_MAX = 2000


@dataclass
class Fetched:
    """A complete, verified checkpoint in a scratch folder."""

    folder: Path
    bytes_fetched: int
    bytes_reused: int


@dataclass
class Fetcher:
    scratch: Path
    node: NodeId
    request: Request
    advertisers: Callable[[int, bytes], list[NodeId]]
    """Peers that now advertise a checkpoint (height, root)."""
    log: Callable[[str], None]
    penalised: set[NodeId] = field(default_factory=set)

    async def fetch(
        self, height: Height, root: bytes, base: tuple[Path, manifest.Manifest] | None
    ) -> Fetched:
        """Fetch the checkpoint of a height. Runs until it succeeds or is cancelled."""
        folder = self.scratch / f"sync-{root.hex()[:16]}"
        for old in self.scratch.glob("sync-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        target = await self._manifest(height, root)
        assembly = Assembly(
            folder, target, base[0] if base else None, plan(base[1] if base else None, target)
        )
        assembly.prepare()
        await self._chunks(height, root, assembly)
        return Fetched(assembly.finish(), assembly.bytes_fetched, assembly.bytes_reused)

    def _peers(self, height: int, root: bytes) -> list[NodeId]:
        return [p for p in self.advertisers(height, root) if p not in self.penalised]

    async def _verified(
        self, height: Height, root: bytes, kind: str, index: int, check: Callable[[bytes], None]
    ) -> bytes:
        """Ask peers in turn until one sends bytes that pass the check."""
        for attempt in itertools.count():
            peers = self._peers(height, root)
            if not peers:
                if attempt and not self.advertisers(height, root):
                    await asyncio.sleep(0.2)
                self.penalised.clear()
                await asyncio.sleep(0.2)
                if attempt > ATTEMPTS_MAX:
                    raise Unavailable("no peer serves the state that the CUP names")
                continue
            peer = peers[(attempt + index) % len(peers)]
            data = await self.request(peer, height, root, kind, index)
            if data is None:
                await asyncio.sleep(0.05)
                continue
            try:
                check(data)
            except ReprisError as error:
                self.log(f"{peer.short} sent a wrong {kind} {index}: {error}")
                self.penalised.add(peer)
                continue
            return data
        raise AssertionError("unreachable")

    async def _manifest(self, height: Height, root: bytes) -> manifest.Manifest:
        def check_meta(data: bytes) -> None:
            if manifest.decode_meta(data).root != root:
                raise NotVerified("the meta-manifest does not hash to the CUP's root")

        meta = manifest.decode_meta(await self._verified(height, root, "meta", 0, check_meta))

        async def piece(index: int) -> bytes:
            def check_piece(data: bytes) -> None:
                if manifest.sub_manifest_hash(data) != meta.sub_manifest_hashes[index]:
                    raise NotVerified("a sub-manifest does not match its hash")

            return await self._verified(height, root, "sub", index, check_piece)

        pieces = await asyncio.gather(*[piece(i) for i in range(len(meta.sub_manifest_hashes))])
        return manifest.decode(b"".join(pieces))

    async def _chunks(self, height: Height, root: bytes, assembly: Assembly) -> None:
        waiting = iter(order(assembly.missing, bytes(self.node)))

        async def work() -> None:
            for index in waiting:
                await self._verified(height, root, "chunk", index, partial(assembly.accept, index))

        workers = PARALLEL_PER_PEER * max(1, len(self._peers(height, root)))
        await asyncio.gather(*[work() for _ in range(workers)])
