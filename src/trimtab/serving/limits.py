"""Bounds on what is read of a request, before anything looks at it."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.serving.config import ServerConfig
from trimtab.serving.errors import ApiError
from trimtab.serving.nesting import Nesting

MOST_HEADERS = 100
_SMALL = 64 * 2**10  # bytes of a body that nobody reads, up to which its connection is kept
_LINGER = 2.0  # seconds in which a client that still sends may read that it is refused
_SILENCE = 0.25  # seconds without data after which it has stopped sending


class Limits:
    """ASGI middleware that refuses heads with too many fields and bodies that are too long, too slow or too deep.

    The body is looked at as it is read: whoever asks for a key first reads nothing of a client without one. What is
    refused half-way is refused in the application's place, whatever it makes of the error.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, send, self._config)
        try:
            body.look_at_head()
            await self._app(scope, body.receive, body.send)
        except Exception:
            if body.refused is None:
                raise
        if body.refused is not None and not body.started:
            await body.refuse()


class _Body:
    """The body of one request, and the answer, as far as one depends on the other."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServerConfig) -> None:
        self._scope, self._receive, self._send, self._config = scope, receive, send, config
        headers: dict[bytes, bytes] = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self._declared = int(length) if length.isdigit() else 0
        self._complete = not self._declared and b"transfer-encoding" not in headers
        self._size = 0
        self._nesting = Nesting()
        self._until: float | None = None
        self._linger = False
        self.refused: ApiError | None = None
        self.started = False

    def look_at_head(self) -> None:
        """Refuse what the head tells already.

        Raises:
            ApiError: 413 or 431.
        """
        headers: list[tuple[bytes, bytes]] = self._scope["headers"]
        if len(headers) > MOST_HEADERS:
            self._refuse(_head(f"The request has {len(headers)} header fields, and {MOST_HEADERS} may come."))
        # h11 bounds a head that comes in parts; one that comes at once is as long as a read of the socket.
        size = sum(len(name) + len(value) for name, value in headers) + len(self._scope.get("raw_path") or b"")
        if size + len(self._scope["query_string"]) > self._config.max_header_bytes:
            most = self._config.max_header_bytes
            self._refuse(_head(f"The head of the request is longer than {most} bytes."))
        if self._declared > self._config.max_request_bytes:
            self._refuse(self._too_long(f"{self._declared} bytes"))

    async def receive(self) -> Message:
        """Return the next part of the body.

        Raises:
            ApiError: 408, 413 or 400.
        """
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + self._config.client_timeout
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            seconds = f"{self._config.client_timeout:g} seconds"
            self._refuse(ApiError(408, f"The body did not arrive within {seconds}.", code="request_timeout"))
        if message["type"] == "http.request":
            self._look_at(message)
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, unless the request is refused; let a client that still sends read it."""
        if self.refused is not None and not self.started:
            return  # what the application says instead
        if message["type"] == "http.response.start":
            self.started = True
            if not self._complete:
                self._linger = not await self._discard(_SMALL, _SILENCE)
            if self._linger:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif self._linger and not message.get("more_body", False):
            # A connection that is closed while data arrives is reset, and the answer may be lost with it.
            await self._send({**message, "more_body": True})
            await self._discard(None, _LINGER)
            message = {"type": "http.response.body"}
        await self._send(message)

    async def refuse(self) -> None:
        """Answer that the request is refused."""
        error, self.refused = self.refused, None
        if error is not None:
            await error.response()(self._scope, self._receive, self.send)

    def _refuse(self, error: ApiError) -> NoReturn:
        self.refused = error
        raise error

    def _look_at(self, message: Message) -> None:
        data: bytes = message.get("body", b"")
        self._complete = not message.get("more_body", False)
        self._size += len(data)
        if self._size > self._config.max_request_bytes:
            self._refuse(self._too_long("more"))
        self._nesting.feed(data)
        most = self._config.max_json_depth
        if self._nesting.deepest > most:
            self._refuse(ApiError(400, f"The body is nested more than {most} levels deep.", code="json_too_deep"))

    def _too_long(self, got: str) -> ApiError:
        most = self._config.max_request_bytes
        return ApiError(413, f"The body may have {most} bytes, and {got} came: send less.", code="body_too_large")

    async def _discard(self, most: int | None, seconds: float) -> bool:
        """Read on without looking; return whether the body ended within the bounds."""
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while not self._complete and (most is None or size <= most):
                    async with asyncio.timeout(_SILENCE):
                        message = await self._receive()
                    size += len(message.get("body", b""))
                    self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            return False
        return self._complete


def _head(message: str) -> ApiError:
    return ApiError(431, message, code="head_too_large")
