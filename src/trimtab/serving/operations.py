"""What operators ask: is it alive, is it ready, how busy is it."""

from __future__ import annotations

from fastapi import APIRouter

from trimtab._version import __version__

guarded = APIRouter(tags=["operations"])
open_to_all = APIRouter(tags=["operations"])


@guarded.get("/version")
async def version() -> dict[str, str]:
    """Return the version of the program."""
    return {"version": __version__}


@open_to_all.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}
