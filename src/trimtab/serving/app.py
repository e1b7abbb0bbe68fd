"""The web application: routes, who may use them, and what holds for all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from trimtab._version import __version__
from trimtab.serving import operations, playground
from trimtab.serving.api import chat, completions, generations, models, tokens
from trimtab.serving.auth import Keys, open_to_everyone, require_key
from trimtab.serving.errors import handle_errors
from trimtab.serving.gateway import Gateway
from trimtab.serving.limits import Limits
from trimtab.serving.presets import Presets


def create_app(gateway: Gateway, *, keys: Keys | None = None, presets: Presets | None = None) -> FastAPI:
    """Return the application that serves an engine.

    Args:
        gateway: the engine's; started and stopped with the application.
        keys: who may use it; default: everyone.
        presets: named guidance; default: none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(
        title="trimtab",
        version=__version__,
        description="Guided decoding behind the OpenAI API: each request says what it wants to be steered towards.",
        lifespan=lifespan,
        dependencies=[Depends(require_key)],  # of every route, those that are named open excepted
        openapi_url=None,  # a route of its own, which needs the key
        docs_url=None,  # these pages would load scripts from another host
        redoc_url=None,
        root_path=gateway.config.root_path,
    )
    app.state.gateway = gateway
    app.state.keys = keys or Keys([])
    app.state.presets = presets or Presets({})
    handle_errors(app)
    for module in (models, chat, completions, generations, tokens):
        app.include_router(module.router)
    app.include_router(operations.guarded)
    app.include_router(operations.open_to_all)
    if gateway.config.playground:
        app.include_router(playground.router)
    open_to_everyone(app, operations.open_to_all, playground.router)
    app.add_middleware(Limits, config=gateway.config)
    return app
