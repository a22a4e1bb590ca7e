"""`python -m orchestrator --node DIR`: look after one node until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from orchestrator.agent import Orchestrator
from replica.protocol.ballot import BALLOT_BYTES_MAX
from replica.protocol.errors import LimitExceeded, ReprisError
from replica.protocol.nns_recovery import BUNDLE_BYTES_MAX
from replica.runtime import settings as node_settings


def build(orchestrator: Orchestrator) -> FastAPI:
    app = FastAPI(title="reprise orchestrator", openapi_url=None)

    @app.get("/status")
    def status() -> JSONResponse:
        return JSONResponse(orchestrator.status())

    @app.get("/attestation")
    def attestation(height: int) -> Response:
        return Response(orchestrator.attest(height), media_type="application/octet-stream")

    @app.get("/registry_deltas")
    def registry_deltas(since: int) -> Response:
        body = orchestrator.replicator.certified_since(since)
        return Response(body, media_type="application/octet-stream")

    @app.get("/release/{sha256_hex}")
    def package(sha256_hex: str) -> Response:
        body = orchestrator.releases.package(sha256_hex)
        return Response(body, media_type="application/zip")

    @app.post("/halt")
    async def halt(request: Request) -> JSONResponse:
        order = await _body(request, BALLOT_BYTES_MAX)
        return JSONResponse(await asyncio.to_thread(orchestrator.halt, order))

    @app.post("/nns_recovery")
    async def stage(request: Request) -> JSONResponse:
        bundle = await _body(request, BUNDLE_BYTES_MAX)
        return JSONResponse(await asyncio.to_thread(orchestrator.recovery.stage, bundle))

    @app.get("/nns_recovery")
    def recovery() -> JSONResponse:
        return JSONResponse(orchestrator.recovery.status())

    @app.exception_handler(ReprisError)
    async def on_error(_request: Request, error: ReprisError) -> Response:
        return Response(str(error), status_code=error.http_status, media_type="text/plain")

    return app


async def _body(request: Request, bytes_max: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            raise LimitExceeded(f"at most {bytes_max} bytes are taken here")
    return bytes(body)


async def serve(folder: Path) -> None:
    settings = node_settings.load(folder)
    orchestrator = Orchestrator(settings)
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(
        orchestrator.check,
        "interval",
        seconds=settings.poll_ns / 1e9,
        max_instances=1,
        coalesce=True,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await asyncio.to_thread(orchestrator.check)
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
    asyncio.run(serve(parser.parse_args().node))


if __name__ == "__main__":
    main()
