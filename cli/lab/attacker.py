"""A bad member as a process: a node's real keys, other code. For drills, on loopback only.

`python -m cli.lab.attacker FOLDER ATTACK --seconds N` dials the other members as the node whose
folder it is, listens as it would, and sends what the attack makes, to all of them, as fast as its
limits allow: bytes a second and a share of one core. It ends by itself; its last line is a JSON
object that tells what it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import signal
import ssl
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cli.lab import attacks
from cli.lab.insider import Insider, Target
from replica.client.agent import Agent
from replica.protocol import frames
from replica.protocol.errors import Malformed, ReprisError
from replica.runtime import settings as node_settings

BYTES_A_SECOND, CPU_SHARE = 10_000_000, 0.2
TURN_BYTES, TURN_FRAMES = 64 << 10, 32
"""Made and sent between two looks at the limits."""
SPARE_S_MAX = 1.0
"""So much of what it was allowed and did not do may be caught up with."""
BUFFERED_BYTES_MAX = 1 << 20
"""Of a peer that reads slowly: what it does not take is not sent to it."""
LEARN_S, REDIAL_S, FULL_S = 1.0, 0.5, 0.01
GRACE_S = 30
"""After its time and so much more the system ends it, whatever it does."""


@dataclass
class Deeds:
    """What it did, for whoever reads its last line."""

    attack: str
    seconds: float = 0.0
    frames: int = 0
    bytes_sent: int = 0
    connections: int = 0
    cpu_share: float = 0.0
    bytes_a_second: float = 0.0


@dataclass
class Limits:
    """Keeps what is done within bytes and processor time; it is told both clocks."""

    bytes_a_second: float
    cpu_share: float
    began_s: float = 0.0
    cpu_began_s: float = 0.0

    def pause_s(self, bytes_sent: int, now_s: float, cpu_s: float) -> float:
        """Return for how long to do nothing; less than 0: there is time to spare."""
        passed, worked = now_s - self.began_s, cpu_s - self.cpu_began_s
        pause_s = max(bytes_sent / self.bytes_a_second, worked / self.cpu_share) - passed
        self.began_s += max(0.0, -pause_s - SPARE_S_MAX)
        return pause_s


class Attacker:
    def __init__(self, me: Insider, attack: str, limits: Limits) -> None:
        self.me, self.attack, self.limits = me, attack, limits
        self.deeds = Deeds(attack)
        self._writers: dict[Target, asyncio.StreamWriter] = {}
        self._client = self._context(server=False)
        self._server = self._context(server=True)

    def _context(self, *, server: bool) -> ssl.SSLContext:
        """Return a context with the node's certificate; it believes whoever answers."""
        purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        secrets = self.me.secrets
        with tempfile.NamedTemporaryFile() as file:  # the library reads keys from files only
            file.write(secrets.tls_key_pem + secrets.tls_certificate_pem)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    async def run(self, seconds: float) -> Deeds:
        await self._learn_once()
        port = self.me.settings.p2p_port
        server = await asyncio.start_server(self._hear, "127.0.0.1", port, ssl=self._server)
        work = self._flood if self.attack != attacks.CONNECTIONS else self._connect_in_a_loop
        tasks = [asyncio.create_task(t) for t in (self._learn(), work(), self._keep_dialling())]
        self.limits.began_s, self.limits.cpu_began_s = time.monotonic(), time.process_time()
        began_s, cpu_s = time.monotonic(), time.process_time()
        _tell("attacking")
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        deeds, passed = self.deeds, time.monotonic() - began_s
        deeds.seconds, deeds.bytes_a_second = passed, deeds.bytes_sent / passed
        deeds.cpu_share = (time.process_time() - cpu_s) / passed
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        return deeds

    # -- what it sends

    async def _flood(self) -> None:
        turn: list[bytes] = []
        size = 0
        for frame in attacks.ATTACKS[self.attack](self.me):
            turn.append(frame)
            size += len(frame)
            if size < TURN_BYTES and len(turn) < TURN_FRAMES:
                continue
            await self._send(turn)
            turn, size = [], 0

    async def _send(self, turn: list[bytes]) -> None:
        """Send frames to every peer that takes them, then wait as long as the limits say."""
        data, taken = b"".join(turn), False
        for target, writer in list(self._writers.items()):
            if writer.is_closing():
                del self._writers[target]
            elif writer.transport.get_write_buffer_size() < BUFFERED_BYTES_MAX:
                writer.write(data)
                taken = True
                self.deeds.bytes_sent += len(data)
                self.deeds.frames += len(turn)
        pause_s = self._pause_s()
        await asyncio.sleep(max(pause_s, 0.0 if taken else FULL_S))

    def _pause_s(self) -> float:
        sent = self.deeds.bytes_sent
        return self.limits.pause_s(sent, time.monotonic(), time.process_time())

    async def _keep_dialling(self) -> None:
        while True:
            if self.attack != attacks.CONNECTIONS:
                for target in self.me.others:
                    if target not in self._writers:
                        await self._dial(target)
            await asyncio.sleep(REDIAL_S)

    async def _dial(self, target: Target) -> None:
        """Connect to a peer, if it lets us; that it does not is what the attack is about."""
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            dialling = asyncio.open_connection(target.host, target.port, ssl=self._client)
            _, writer = await asyncio.wait_for(dialling, 2.0)
            self.deeds.connections += 1
            self._writers[target] = writer

    async def _connect_in_a_loop(self) -> None:
        while True:
            for target in self.me.others:
                await self._dial(target)
                await asyncio.sleep(max(0.0, self._pause_s()))

    # -- what it hears

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what a peer sends, to know its newest blocks; who asks all of them never reads."""
        if self.attack == "questions":
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ReprisError):
            while True:
                head = await reader.readexactly(frames.HEAD_BYTES)
                length = int.from_bytes(head[:4], "big")
                if length > frames.FRAME_BYTES_MAX:
                    raise Malformed(f"a frame of {length} bytes")
                body = await reader.readexactly(length)
                if head[4] == frames.ARTIFACT:
                    self.me.hear(body)
        writer.close()

    async def _learn(self) -> None:
        while True:
            await asyncio.sleep(LEARN_S)
            await self._learn_once()

    async def _learn_once(self) -> None:
        """Ask one peer after the other how far it is, until one answers."""
        for target in self.me.others:
            agent = Agent([], self.me.settings.root_key, timeout_s=2.0)
            try:
                await asyncio.to_thread(self.me.learn, agent, target)
                return
            except ReprisError:
                continue  # it is busy: that is what the attack is for
            finally:
                agent.close()


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with the drill
    parser = argparse.ArgumentParser(description="Attack one's own subnet, in a drill.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("attack", choices=attacks.NAMES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bytes-a-second", type=float, default=BYTES_A_SECOND)
    parser.add_argument("--cpu-share", type=float, default=CPU_SHARE)
    given = parser.parse_args()
    signal.alarm(int(given.seconds) + GRACE_S)
    me = Insider.of(node_settings.load(given.folder))
    limits = Limits(given.bytes_a_second, given.cpu_share)
    deeds = asyncio.run(Attacker(me, given.attack, limits).run(given.seconds))
    _tell(json.dumps(vars(deeds)))


if __name__ == "__main__":
    main()
