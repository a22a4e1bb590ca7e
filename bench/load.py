"""A client that sends signed updates over HTTP as fast as the nodes take them.

Runs as a process of its own: `python -m bench.load PLAN`. Requests are signed before the clock
starts; then keep-alive connections each send one request after another.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from cli.lab import workload
from replica.protocol import envelope
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.ids import Principal

EXPIRY_NS = 240_000_000_000


def requests(key: Ed25519Key, canister: Principal, host: str, count: int) -> list[bytes]:
    """Return whole HTTP requests, each a call of its own."""
    out = []
    expiry = time.time_ns() + EXPIRY_NS
    path = f"/api/v2/canister/{canister}/call"
    for sequence in range(count):
        content = {
            "request_type": "call",
            "sender": bytes(key.principal),
            "ingress_expiry": expiry,
            "canister_id": bytes(canister),
            "method_name": "append",
            "arg": workload.encode("append", {"sequence": sequence, "text": "x" * 32}),
            "nonce": sequence.to_bytes(8, "big"),
        }
        _, body = envelope.sign_request(content, key)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/cbor\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        out.append(head.encode() + body)
    return out


async def send(url: str, prepared: list[bytes], end: float, counts: dict[str, int]) -> None:
    """Send over one connection until the time is up or nothing is left."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        while prepared and time.monotonic() < end:
            writer.write(prepared.pop())
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b" ", 2)[1].decode()
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            counts[status] = counts.get(status, 0) + 1
            if status != "202":
                await asyncio.sleep(0.05)  # the node is full: its answer says so
    finally:
        writer.close()


async def run(plan: dict[str, object]) -> dict[str, int]:
    urls = [str(u) for u in plan["urls"]]  # type: ignore[attr-defined]
    canister = Principal.from_text(str(plan["canister"]))
    key = Ed25519Key(bytes.fromhex(str(plan["seed"])))
    per_node = int(str(plan["count"])) // len(urls)
    everything = requests(key, canister, "localhost", per_node * len(urls))
    counts: dict[str, int] = {}
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + float(str(plan["seconds"]))
    tasks = []
    for i, url in enumerate(urls):
        part = everything[i * per_node : (i + 1) * per_node]
        tasks += [send(url, part, end, counts) for _ in range(int(str(plan["connections"])))]
    await asyncio.gather(*tasks)
    return counts


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))), flush=True)
