"""An application subnet's delegation: the NNS's certificate of its key, fetched and kept fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx2

from replica.protocol import cbor, certificate, envelope
from replica.protocol.errors import ReprisError, Unavailable
from replica.protocol.ids import ANONYMOUS

if TYPE_CHECKING:
    from replica.node import Replica

REFRESH_S = 600.0
RETRY_S = 0.3


def http_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=5.0, trust_env=False)


async def keep_delegation(
    replica: Replica, connect: Callable[[], httpx2.AsyncClient] = http_client
) -> None:
    """Fetch the delegation and renew it now and then; the root subnet needs none."""
    if replica.subnet == replica.records.nns():
        return
    async with connect() as client:
        position = 0
        while True:
            url = replica.settings.nns_urls[position % len(replica.settings.nns_urls)]
            position += 1
            try:
                replica.delegation = await _fetch(client, url, replica)
                await asyncio.sleep(REFRESH_S)
            except (httpx2.HTTPError, ReprisError, KeyError):
                await asyncio.sleep(RETRY_S)


async def _fetch(client: httpx2.AsyncClient, url: str, replica: Replica) -> bytes:
    subnet = bytes(replica.subnet)
    paths = [
        [b"subnet", subnet, b"public_key"],
        [b"subnet", subnet, b"canister_ranges"],
        [b"subnet", subnet, b"type"],
        [b"canister_ranges", subnet],
    ]
    content = {
        "request_type": "read_state",
        "sender": bytes(ANONYMOUS),
        "ingress_expiry": replica.clock() + 240 * 10**9,
        "paths": paths,
    }
    _, body = envelope.sign_request(content, None)
    nns = replica.records.nns()
    response = await client.post(
        f"{url}/api/v3/subnet/{nns}/read_state",
        content=body,
        headers={"content-type": "application/cbor"},
    )
    response.raise_for_status()
    found = cbor.loads(response.content)["certificate"]
    delegation = certificate.Delegation(replica.subnet, found)
    key = certificate.verify_delegation(delegation, replica.settings.root_key, None)
    if key != replica.package.summary.high.public_key:
        raise Unavailable("this node of the NNS does not know the subnet's present key yet")
    return bytes(found)
