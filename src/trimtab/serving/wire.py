"""HTTP/1.1 as this server speaks it: uvicorn's protocol over h11, with bounds on how slow and how many clients are."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from trimtab.serving.config import ServerConfig
from trimtab.serving.errors import ApiError


def make_protocol(config: ServerConfig) -> type[asyncio.Protocol]:
    """Return the protocol with a config's bounds."""

    class Protocol(BoundedProtocol):
        limits = config

    return Protocol


class BoundedProtocol(H11Protocol):
    """A connection that is given up when its client takes too long to say what it wants, or to take the answer.

    Attributes:
        limits: the bounds.
    """

    limits: ServerConfig
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are as many as may be."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.refuse(
                ApiError(
                    503,
                    f"All {self.limits.max_connections} connections are taken: come again later.",
                    kind="service_unavailable",
                    code="too_many_connections",
                    headers={"retry-after": "1"},
                )
            )
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; a head that has begun must be complete in time, however slowly it drips."""
        super().data_received(data)
        self._look_at_head()

    def on_response_complete(self) -> None:
        """Go on with the next request, which may have begun to arrive."""
        super().on_response_complete()
        self._look_at_head()

    def pause_writing(self) -> None:
        """Wait for a client that does not take what is written, for a while."""
        super().pause_writing()
        self._stop_waiting()
        self._late = self.loop.call_later(self.limits.client_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or has too long a head; called while h11's error is handled."""
        del msg
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            most = self.limits.max_header_bytes
            self.refuse(ApiError(431, f"The head of the request is longer than {most} bytes.", code="head_too_large"))
        else:
            self.refuse(ApiError(400, "This is not a valid HTTP/1.1 request.", code="invalid_http"))

    def refuse(self, error: ApiError) -> None:
        """Answer without asking the application, and close."""
        self._stop_waiting()
        cycle: RequestResponseCycle | None = getattr(self, "cycle", None)  # there is none before the first request
        if cycle is not None and not cycle.response_complete:
            # The application still works on the request that this one spoiled: for it, the client is gone.
            started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if started:
                self.transport.close()
                return
        body = json.dumps(error.body()).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-content-type-options": "nosniff",
            "x-request-id": f"req-{secrets.token_hex(16)}",  # that of a head which was not read is not known
        }
        try:
            output = self.conn.send(
                h11.Response(status_code=error.status, headers=[*(headers | error.headers).items()])
            )
            output += self.conn.send(h11.Data(data=body)) or b""
            output += self.conn.send(h11.EndOfMessage()) or b""
            self.transport.write(output)
        except h11.LocalProtocolError:  # there is nothing left that could be said on this connection
            pass
        self.transport.close()

    def _look_at_head(self) -> None:
        waiting = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        if not waiting:
            if not self.flow.write_paused:
                self._stop_waiting()
        elif self._late is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._late = self.loop.call_later(self.limits.client_timeout, self._too_late)

    def _too_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.refuse(
                ApiError(
                    408,
                    f"The head of the request did not arrive within {self.limits.client_timeout:g} seconds.",
                    code="request_timeout",
                )
            )

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
