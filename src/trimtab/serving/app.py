"""The web application: routes, who may use them, and what holds for all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from trimtab._version import __version__
from trimtab.models.token_text import TokenTexts
from trimtab.serving import operations, playground
from trimtab.serving.api import chat, completions, generations, models, tokens
from trimtab.serving.api.names import served_name
from trimtab.serving.auth import Keys, open_to_everyone, require_key
from trimtab.serving.errors import handle_errors
from trimtab.serving.frame import Frame
from trimtab.serving.gateway import Gateway
from trimtab.serving.limits import Limits
from trimtab.serving.openapi import describe
from trimtab.serving.origins import OwnPagesOnly, reaches_others
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
    )
    app.root_path = gateway.config.root_path  # the argument of that name is deprecated
    gateway.metrics.watch(gateway, served_name(gateway))
    app.state.gateway = gateway
    app.state.keys = keys or Keys([])
    app.state.presets = presets or Presets({})
    app.state.texts = TokenTexts(gateway.engine.base.tokenizer)
    handle_errors(app)
    for module in (models, chat, completions, generations, tokens):
        app.include_router(module.router)
    app.include_router(operations.guarded)
    app.include_router(operations.open_to_all)
    if gateway.config.playground:
        app.include_router(playground.router)
    open_to_everyone(app, operations.open_to_all, playground.router)
    describe(app)
    _frame(app, gateway)
    return app


def _frame(app: FastAPI, gateway: Gateway) -> None:
    """Put around the routes what every request passes, the innermost first."""
    config = gateway.config
    app.add_middleware(Limits, config=config)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # which a page may send; the key is one it has to know
            expose_headers=["x-request-id", "retry-after"],
        )
    if not app.state.keys:
        local = not reaches_others(config.host)
        app.add_middleware(OwnPagesOnly, local=local, host=config.host, allowed=config.allowed_origins)
    app.add_middleware(Frame, gateway=gateway)
