"""What operators ask: is it alive, is it ready, how busy is it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from trimtab._version import __version__
from trimtab.serving.gateway import Gateway

guarded = APIRouter(tags=["operations"])
open_to_all = APIRouter(tags=["operations"])

_NOT_YET = {"retry-after": "5", "cache-control": "no-store"}


@guarded.get("/version")
async def version() -> dict[str, str]:
    """Return the version of the program."""
    return {"version": __version__}


@guarded.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return what is counted and timed, in Prometheus' text format."""
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.metrics.expose(), headers={"content-type": CONTENT_TYPE_LATEST})


@guarded.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """Return the description of the API."""
    schema: dict[str, Any] = request.app.openapi()
    return JSONResponse(schema)


@open_to_all.get("/health")
async def health(request: Request) -> JSONResponse:
    """Say whether the engine lives: 503 means that only a restart helps."""
    gateway: Gateway = request.app.state.gateway
    if gateway.alive:
        return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})
    return JSONResponse({"status": "the engine has stopped"}, status_code=503, headers=_NOT_YET)


@open_to_all.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Say whether new requests are taken: 503 while the server drains or its engine is dead."""
    gateway: Gateway = request.app.state.gateway
    if gateway.ready and gateway.alive:
        return JSONResponse({"status": "ready"}, headers={"cache-control": "no-store"})
    return JSONResponse({"status": "not ready"}, status_code=503, headers=_NOT_YET)
