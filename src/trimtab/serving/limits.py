"""Bounds on what is read of a request, before anything looks at it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.serving.config import ServerConfig


class Limits:
    """ASGI middleware that refuses what is too large."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        await self._app(scope, receive, send)
