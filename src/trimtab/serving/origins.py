"""Who reaches the server: other machines, and web pages other than its own."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.errors import ConfigError
from trimtab.serving.errors import ApiError


class OwnPagesOnly:
    """ASGI middleware for servers without keys, which any page in the operator's browser could call otherwise.

    A request that a browser sends says in ``Origin`` which page it is from: one of another site is refused. A site can
    also let its own name stand for 127.0.0.1; its pages then have the server's origin as far as the browser knows, but
    ``Host`` gives them away: a server that only this machine can reach refuses every name that is not this machine's.

    With a key none of this is needed: a page would have to know the key.
    """

    def __init__(self, app: ASGIApp, *, local: bool, host: str = "", allowed: Iterable[str] = ()) -> None:
        """Prepare.

        Args:
            app: what the requests are for.
            local: whether only this machine can reach the server.
            host: what the server was told to listen on.
            allowed: origins of other pages that may call it.
        """
        self._app, self._local = app, local
        self._allowed = frozenset(allowed)
        hosts = {urlsplit(origin).hostname or "" for origin in self._allowed}
        self._hosts = {"localhost", host.lower().strip("[]"), *hosts} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            refused = self._refusal(_all(scope, b"host"), _all(scope, b"origin"))
            if refused is not None:
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, hosts: list[str], origins: list[str]) -> ApiError | None:
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if self._local and hosts and not self._is_here(host):
            return _refused(
                "This server is for this machine only and asks for no key, so that it answers to no other name: use "
                "localhost, set an API key, or allow the pages of that name with --allowed-origins.",
                "host_not_allowed",
            )
        for origin in origins:
            if origin not in self._allowed and origin.lower() not in (f"http://{host}", f"https://{host}"):
                return _refused(
                    "This server asks for no key and answers only its own pages: set an API key, or allow the page "
                    "with --allowed-origins.",
                    "origin_not_allowed",
                )
        return None

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def check_origins(origins: Iterable[str]) -> list[str]:
    """Return origins as browsers send them.

    Raises:
        ConfigError: one is no origin, or stands for every page there is.
    """
    found: list[str] = []
    for origin in origins:
        try:
            parts = urlsplit(origin)
            plain = f"{parts.scheme}://{parts.netloc}".lower()
            good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        except ValueError:
            plain, good = "", False
        if not good or origin.lower().rstrip("/") != plain or "*" in origin:
            raise ConfigError(
                f"--allowed-origins {origin!r} is not the origin of a web page: give scheme, name and port alone, such "
                "as https://chat.example.org; there is no pattern that allows every page."
            )
        found.append(plain)
    return found


def addresses(host: str, port: int = 0) -> list[tuple[socket.AddressFamily, str]]:
    """Return the (family, address) pairs that a host's name stands for.

    Raises:
        OSError: none.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((item[0], str(item[4][0])) for item in found))


def reaches_others(host: str) -> bool:
    """Return whether other machines can reach a server that listens on a host.

    Raises:
        ConfigError: the name stands for no address.
    """
    try:
        return not all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for _, a in addresses(host))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"The host {host!r} stands for no address of this machine: {error}.") from None


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, kind="permission_error", code=code)
