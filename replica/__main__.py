"""`python -m replica`: run a replica, or replay finalized blocks offline.

python -m replica run --node DIR --replica-version V
python -m replica replay --node DIR --height R --out DIR [--order FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import sys
from pathlib import Path

import uvloop

from replica.client.folders import is_disk_error
from replica.client.local_registry import LocalRegistry
from replica.node import FAULT_EXIT, Replica, fault_line, log
from replica.protocol.errors import MachineFault
from replica.runtime import settings as node_settings
from replica.runtime import stored_cup
from replica.service import Service


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m replica", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the replica of a node")
    run.add_argument("--node", type=Path, required=True, help="the node's folder")
    run.add_argument("--replica-version", required=True, help="version id of this release")
    replay = commands.add_parser("replay", help="re-execute finalized blocks up to a height")
    replay.add_argument("--node", type=Path, required=True, help="the node's folder")
    replay.add_argument("--height", type=int, required=True, help="stop after this height")
    replay.add_argument("--out", type=Path, required=True, help="working folder for the replay")
    replay.add_argument("--order", type=Path, help="changes of an NNS recovery to make on top")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            return uvloop.run(_run(arguments.node, arguments.replica_version))
        return _replay(arguments)
    except (MachineFault, OSError) as fault:
        if isinstance(fault, OSError) and not is_disk_error(fault):
            raise
        log(fault_line(node_settings.load(arguments.node), fault))
        return FAULT_EXIT


def _replay(arguments: argparse.Namespace) -> int:
    from replica.protocol import canonical
    from replica.protocol.nns_recovery import Order
    from replica.replay import replay as run_replay

    order = None
    if arguments.order is not None:
        order = canonical.decode(Order, arguments.order.read_bytes())
    result = run_replay(arguments.node, arguments.height, arguments.out, order)
    print(json.dumps(result))  # noqa: T201
    return 0


def _calm_collector() -> None:
    """Look for cycles less often: next to nothing of ours has any, and all of it is looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _run(folder: Path, version: str) -> int:
    import uvicorn

    from replica.delegation import keep_delegation
    from replica.http import app

    settings = node_settings.load(folder)
    records = LocalRegistry(settings.registry_path, identity=settings.registry_identity)
    package = stored_cup.read(settings.cup_path)
    replica = Replica(settings, version, records, package.subnet, package)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(replica)
    work = asyncio.create_task(service.run())
    starting = asyncio.create_task(service.started.wait())
    await asyncio.wait({work, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    _calm_collector()
    server = uvicorn.Server(
        uvicorn.Config(
            app.build(replica, service.wait_certified),
            host="127.0.0.1",
            port=settings.http_port,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    delegating = asyncio.create_task(keep_delegation(replica))
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({work, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    status = 0
    fault: BaseException | None = None
    if work in done:
        error = work.exception()
        if isinstance(error, SystemExit):
            status = int(error.code or 0)
        elif isinstance(error, MachineFault) or is_disk_error(error):
            fault = error
        elif error is not None:
            log(f"crashed: {error!r}")
            raise error
    server.should_exit = True
    delegating.cancel()
    work.cancel()
    await asyncio.gather(work, serving, delegating, return_exceptions=True)
    if fault is not None:
        raise fault  # once all else is closed: last words are what the orchestrator's status tells
    return status


if __name__ == "__main__":
    sys.exit(main())
