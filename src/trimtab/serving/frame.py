"""What holds for every request: an id that follows it everywhere, a line in the log, headers that browsers obey."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.serving import logs
from trimtab.serving.errors import ApiError
from trimtab.serving.gateway import Gateway

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_PROBES = frozenset({"/health", "/ready", "/metrics"})


class Frame:
    """The outermost ASGI middleware: what it adds is on every answer, errors included."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = logs.begin(request_id)
        answer = _Answer(send, request_id, closing=lambda: not self._gateway.ready)
        began = time.monotonic()
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or answer.status:
                raise
            # Not this request was cancelled, but something that it waited for: the server ends.
            await _closing().response()(scope, receive, answer.send)
        finally:
            self._tell(scope, exchange, answer, time.monotonic() - began)

    def _tell(self, scope: Scope, exchange: logs.Exchange, answer: _Answer, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "(none)"
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        self._gateway.metrics.answered(method, route, answer.status)
        if route in _PROBES and answer.status < 400:
            return
        fields: dict[str, Any] = {"seconds": round(seconds, 4), "bytes": answer.size}
        if answer.status and not answer.complete:
            fields["cut_off"] = True
        fields |= logs.wrote(exchange, content=self._gateway.config.enable_log_requests)
        logs.log.info(f"{method} {route} {answer.status or '(no answer)'}", extra={"fields": fields})


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Answer:
    """What is sent for one request, with the headers that every answer has."""

    def __init__(self, send: Send, request_id: str, closing: Callable[[], bool]) -> None:
        self._send, self._id, self._closing = send, request_id.encode(), closing
        self.status = 0
        self.size = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = list(message.get("headers", []))
            known = {name.lower() for name, _ in headers}
            added = [(b"x-request-id", self._id), *_SAFE]
            if self._closing():  # so that a client asks elsewhere next time
                added.append((b"connection", b"close"))
            headers += [(name, value) for name, value in added if name not in known]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """Return the id that the client gave the request, if it is one that can be logged and sent back; else a new one."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return "req-" + secrets.token_hex(16)


def _closing() -> ApiError:
    return ApiError(
        503,
        "The server is shutting down: ask again elsewhere or later.",
        kind="service_unavailable",
        code="service_unavailable",
        headers={"retry-after": "5"},
    )
