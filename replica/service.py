"""The replica on one event loop: its peers over TLS, its timers, its clients' waiting."""

from __future__ import annotations

import asyncio

from replica.consensus import driver as consensus
from replica.node import Replica
from replica.p2p.transport import Transport
from replica.protocol.ids import Height

REGISTRY_POLL_S = 0.15
ADVERT_S = 0.5
SPACE_POLL_S = 0.5
"""How often a replica that waits for space on its disk looks again."""
STEP_S_MAX = 1.0
"""At the latest so long after the last step the next one is made."""


class Service:
    """Runs a replica until it is cancelled."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.started = asyncio.Event()
        self._wake = asyncio.Event()
        self._certified = asyncio.Event()
        self._sync: asyncio.Task[None] | None = None
        replica.wake = self._wake.set
        replica.on_certified = self._notify
        replica.begin_sync = self._begin_sync

    def _notify(self) -> None:
        self._certified.set()
        self._certified = asyncio.Event()

    async def wait_certified(self) -> None:
        """Wait until a new height was certified."""
        await self._certified.wait()

    def _begin_sync(self, height: Height, root: bytes) -> None:
        self._sync = asyncio.create_task(self.replica.sync(height, root))

    async def run(self) -> None:
        """Run until cancelled."""
        replica = self.replica
        replica.start_consensus()
        transport = Transport(
            replica.settings.node,
            replica.settings.p2p_port,
            replica.secrets,
            replica.peers(),
            replica.handlers(),
        )
        replica.link = transport
        await transport.start()
        self.started.set()
        tasks = [
            asyncio.create_task(self._consensus_loop()),
            asyncio.create_task(self._registry_loop()),
            asyncio.create_task(self._advert_loop(transport)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await transport.stop()

    async def _consensus_loop(self) -> None:
        replica = self.replica
        while True:
            self._wake.clear()
            for effect in replica.step():
                if isinstance(effect, consensus.Execute):
                    await asyncio.sleep(0)  # others may want to be answered before the next
            if replica.waits_for_space:
                await asyncio.sleep(SPACE_POLL_S)
                continue
            if self._wake.is_set():
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0)  # also when consensus has not come to rest
            wait_ns = replica.driver.wake_ns(replica.monotonic()) - replica.monotonic()
            try:
                delay = min(max(0.0, wait_ns / 1e9), STEP_S_MAX)
                await asyncio.wait_for(self._wake.wait(), delay)
            except TimeoutError:
                continue

    async def _registry_loop(self) -> None:
        while True:
            self.replica.refresh_registry()
            await asyncio.sleep(REGISTRY_POLL_S)

    async def _advert_loop(self, transport: Transport) -> None:
        while True:
            transport.advertise(self.replica.advert())
            await asyncio.sleep(ADVERT_S)
