"""Runs the server in this process: takes the port, watches the engine, and ends without cutting anybody off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from trimtab.errors import ConfigError
from trimtab.serving.config import ServerConfig
from trimtab.serving.gateway import Gateway
from trimtab.serving.logs import log
from trimtab.serving.origins import addresses
from trimtab.serving.wire import make_protocol

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH = 5.0  # seconds that clients get to take the last of their answers


def bind(config: ServerConfig) -> list[socket.socket]:
    """Take the port on every address that the host's name stands for, without listening yet.

    That a port is taken is found out before a model is loaded, and clients are turned away until it is.

    Raises:
        ConfigError: the name stands for no address, or the port cannot be taken.
    """
    sockets: list[socket.socket] = []
    port = config.port
    try:
        for family, address in addresses(config.host, port):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            port = sock.getsockname()[1]
    except (OSError, OverflowError) as error:
        for sock in sockets:
            sock.close()
        raise _cannot_listen(config, error) from None
    return sockets


def _cannot_listen(config: ServerConfig, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(
        f"Port {config.port} of {config.host} cannot be listened on ({reason}): choose another with --port, or 0 for "
        "a free one."
    )


def check_tls(config: ServerConfig) -> None:
    """Refuse key and certificate that no connection could be made with.

    Raises:
        ConfigError: one is given without the other, cannot be read, or does not fit the other.
    """
    if config.ssl_certfile is None and config.ssl_keyfile is None:
        return
    if config.ssl_certfile is None or config.ssl_keyfile is None:
        missing = "--ssl-certfile" if config.ssl_certfile is None else "--ssl-keyfile"
        raise ConfigError(f"TLS needs a certificate and its private key: give {missing} too.")
    for path in (config.ssl_certfile, config.ssl_keyfile):
        if not path.is_file():
            raise ConfigError(f"There is no file {path}, which TLS is to be served with.")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"TLS cannot be served with {config.ssl_certfile} and {config.ssl_keyfile}: {error}."
        ) from None


def _no_password() -> str:
    raise ValueError("the private key has a password, and nobody is asked for one")


def serve(
    app: FastAPI, gateway: Gateway, sockets: list[socket.socket], announce: Callable[[str], None] | None = None
) -> int:
    """Serve until the process is told to end; return its exit code.

    SIGTERM or SIGINT: new requests are refused at once, those that run get ``shutdown_timeout`` seconds, then the rest
    ends with an error. A second signal ends the process on the spot. When the engine's thread dies, running requests
    get an error and the code is 1, so that whoever watches the process starts it again.

    Args:
        app: what answers.
        gateway: its engine.
        sockets: where to listen, from :func:`bind`.
        announce: called with the server's URL when it takes requests.

    Raises:
        ConfigError: the port was taken by somebody else meanwhile.
    """
    server = _Server(app, gateway, announce)
    server.run(sockets=sockets)
    return server.code


def uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        # Pure Python and strict: it bounds the head of a request, and has no memory of its own to corrupt.
        http=make_protocol(config),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(config.trusted_proxy),
        forwarded_allow_ips=config.trusted_proxy,
        h11_max_incomplete_event_size=config.max_header_bytes,
        timeout_keep_alive=config.keep_alive_timeout,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, with an end of its own."""

    def __init__(self, app: FastAPI, gateway: Gateway, announce: Callable[[str], None] | None) -> None:
        super().__init__(uvicorn_config(app, gateway.config))
        self.code = 0
        self._gateway, self._announce = gateway, announce
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Let signals end the server while it runs."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        try:
            await super().startup(sockets=sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise _cannot_listen(self._gateway.config, error) from None
        _notify("READY=1")
        if self._announce is not None and sockets:
            self._announce(url_of(self._gateway.config, sockets[0]))

    async def on_tick(self, counter: int) -> bool:
        """Look after the engine ten times a second."""
        if self._ending is None and not self._gateway.alive:
            log.critical("The engine's thread has ended: every request fails, and so does this process.")
            self.code = 1
            self._end(0.0)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and close connections as soon as clients have taken what was written for them."""
        late = asyncio.get_running_loop().call_later(_FLUSH, self._abort)
        await super().shutdown(sockets)
        late.cancel()

    def _signalled(self, number: int) -> None:
        if self._ending is not None:
            log.warning("A second signal: ending at once.")
            os._exit(128 + number)
        name = signal.Signals(number).name
        seconds = self._gateway.config.shutdown_timeout
        log.info(f"{name}: no new requests; those that run have {seconds:g} seconds. Again to end at once.")
        _notify("STOPPING=1")
        self._end(seconds)

    def _end(self, seconds: float) -> None:
        self._gateway.ready = False
        self._ending = asyncio.get_running_loop().create_task(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        try:
            if not await self._gateway.drain(seconds):
                log.warning(f"Giving up {len(self._gateway.tickets)} requests that were not finished in time.")
            await self._gateway.stop()
        finally:
            self.should_exit = True

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def url_of(config: ServerConfig, sock: socket.socket) -> str:
    """Return the URL that a server has on a socket, as a browser on this machine opens it."""
    address, port = sock.getsockname()[:2]
    if address in ("0.0.0.0", "::"):  # noqa: S104 - it is not bound here
        address = "127.0.0.1" if address == "0.0.0.0" else "::1"  # noqa: S104
    host = f"[{address}]" if ":" in address else address
    return f"{'https' if config.ssl_certfile else 'http'}://{host}:{port}{config.root_path}"


def _notify(state: str) -> None:
    """Tell the service manager, where there is one that asked."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
