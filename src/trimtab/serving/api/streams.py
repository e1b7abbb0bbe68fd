"""Server-sent events, and what holds for every answer that takes its time: it is given up when its client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab.serving.errors import ApiError, ClientGone, from_exception

_log = logging.getLogger(__name__)

T = TypeVar("T")
PING_SECONDS = 15.0  # proxies close connections on which nothing happens
_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


def answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of an answer that comes whole or, for ``stream``, as events."""
    data = {"type": "string", "description": "A chunk of the answer as JSON, or an error; at the end [DONE]."}
    events = {"schema": {"type": "object", "required": ["data"], "properties": {"data": data}}}
    return {200: {"model": model, "description": "The answer.", "content": {"text/event-stream": events}}}


def event(value: Any) -> bytes:
    """Return a value as one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events that ends with ``[DONE]``.

    When the client goes away, the events are not asked for any more and whatever makes them is closed, at once and
    not at the next event. An error in between is an event of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, seconds: float, end: Callable[[], None]) -> None:
        """Prepare.

        Args:
            events: the events.
            seconds: how long it may take in all; a client that does not read is left then.
            end: called when nothing more is sent, however that came; also if nothing ever was.
        """
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events, self._seconds, self._end = events, seconds, end
        self._last = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        del scope
        try:
            async with asyncio.timeout(self._seconds):
                await unless_gone(receive, self._send(send))
        except (ClientGone, TimeoutError, OSError):
            pass  # nobody is there to be told
        finally:
            self._end()
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pings = asyncio.create_task(self._ping(send))
        try:
            async for piece in self._pieces():
                self._last = time.monotonic()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            pings.cancel()
            await asyncio.wait([pings])
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """Yield the events, and what ends them before their time as one more."""
        try:
            async for piece in self._events:
                yield piece
        except Exception as error:
            if not isinstance(error, (ApiError, TrimtabError)):
                _log.error("A stream failed.", exc_info=error)
            yield event(from_exception(error).body())

    async def _ping(self, send: Send) -> None:
        """Send a comment in every silence. Whole events are sent at once, so one may come between two of them."""
        while True:
            silent = time.monotonic() - self._last
            if silent >= PING_SECONDS:
                self._last = time.monotonic()
                await send({"type": "http.response.body", "body": _PING, "more_body": True})
            else:
                await asyncio.sleep(PING_SECONDS - silent)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Wait for work, and cancel it when the client goes away.

    Raises:
        ClientGone: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait({task, gone})


async def attended(request: Request, work: Awaitable[T]) -> T:
    """Wait for the work of a request whose answer is not a stream; cancel it when the client goes away."""
    return await unless_gone(request.receive, work)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
