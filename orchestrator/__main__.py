"""`python -m orchestrator --node DIR`: look after one node until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from pathlib import Path

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from orchestrator.agent import Orchestrator, log
from orchestrator.interface import Interface
from replica.protocol.errors import LimitExceeded, ReprisError
from replica.runtime import settings as node_settings

LOOK_AGAIN_S = 1.0
"""How often a folder that can't be opened is tried again: a person has to put it right."""


def build(orchestrator: Orchestrator) -> FastAPI:
    """Return an application that hands everything to the orchestrator's `Interface`."""
    app = FastAPI(title="reprise orchestrator", openapi_url=None, docs_url=None, redoc_url=None)
    interface = Interface(orchestrator)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def everything(request: Request) -> Response:
        path, bytes_max = request.url.path, interface.body_bytes_max(request.url.path)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > bytes_max:
                text = f"at most {bytes_max} bytes are taken here"
                return Response(text, LimitExceeded.http_status, media_type="text/plain")
        query = dict(request.query_params)
        answer = await run_in_threadpool(interface.answer, request.method, path, query, bytes(body))
        return Response(answer.body, answer.status, media_type=answer.media)

    return app


def open_node(folder: Path) -> Orchestrator:
    """Open a node's folder; while it is not as it should be, say so once, and look again."""
    said = ""
    while True:
        try:
            return Orchestrator(node_settings.load(folder))
        except (ReprisError, OSError) as error:
            if str(error) != said:
                said = str(error)
                log(f"does not start: {said}")
            time.sleep(LOOK_AGAIN_S)


def check(orchestrator: Orchestrator) -> None:
    """Check once; what the disk refuses stands in the status, and is tried again."""
    try:
        orchestrator.check()
    except OSError as error:
        if not orchestrator.disk.problem:
            raise
        logging.getLogger(__name__).debug("a check failed: %s", error)


async def serve(orchestrator: Orchestrator) -> None:
    settings = orchestrator.settings
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(
        check,
        "interval",
        args=[orchestrator],
        seconds=settings.poll_ns / 1e9,
        max_instances=1,
        coalesce=True,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await asyncio.to_thread(check, orchestrator)
    scheduler.start()
    server = uvicorn.Server(
        uvicorn.Config(
            build(orchestrator),
            host="127.0.0.1",
            port=settings.orchestrator_port,
            log_level="warning",
            access_log=False,
            lifespan="off",
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    await stop.wait()
    server.should_exit = True
    scheduler.shutdown(wait=False)
    await asyncio.to_thread(orchestrator.stop)
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator", description=__doc__)
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    asyncio.run(serve(open_node(parser.parse_args().node)))


if __name__ == "__main__":
    main()
