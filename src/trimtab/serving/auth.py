"""Who may use the server: API keys, compared in constant time, asked for by every route unless it is named open."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute

from trimtab.errors import ConfigError
from trimtab.serving.config import ServerConfig
from trimtab.serving.errors import ApiError

ENVIRONMENT = "TRIMTAB_API_KEY"
_MOST = 10_000  # keys; each request is compared with all of them


class Keys:
    """The keys that are accepted; none: everyone may use the server. Only their digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, key: str) -> str | None:
        """Return the digest of a key that is accepted, else ``None``.

        The time this takes depends on how many keys there are and how long the given one is, and on nothing else.
        """
        given, found = digest(key), None
        for known in self._digests:  # all of them, so that the time does not tell which one was near
            if hmac.compare_digest(known, given):
                found = known
        return found


def digest(key: str) -> str:
    """Return the SHA-256 of a key in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(config: ServerConfig, environment: Mapping[str, str]) -> tuple[Keys, list[str]]:
    """Return the keys from the options, the key file and the environment, and warnings about how they are kept.

    Raises:
        ConfigError: a key that no client could send, or a key file that cannot be read or holds none.
    """
    warnings: list[str] = []
    found = [(key, "--api-key") for key in config.api_key]
    if config.api_key:
        warnings.append("--api-key shows the key to everyone who can list processes: better --api-key-file.")
    if config.api_key_file is not None:
        found += [(key, str(config.api_key_file)) for key in _read_file(config.api_key_file, warnings)]
    if environment.get(ENVIRONMENT):
        found += [(key.strip(), ENVIRONMENT) for key in environment[ENVIRONMENT].split(",")]
    for key, source in found:
        if not key or not all("!" <= sign <= "~" for sign in key):
            raise ConfigError(
                f"A key from {source} is empty or has characters that no client can send in a header: use visible "
                "ASCII without spaces, such as what 'openssl rand -hex 32' prints."
            )
    if len(found) > _MOST:
        raise ConfigError(f"There are {len(found)} keys, and at most {_MOST} are compared for each request.")
    return Keys(dict.fromkeys(key for key, _ in found)), warnings


def _read_file(path: Path, warnings: list[str]) -> list[str]:
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"The key file {path} cannot be read ({reason}): name a text file, one key a line.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"The key file {path} holds no key: write one key a line, or leave --api-key-file out.")
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        warnings.append(f"The key file {path} can be read by other users: chmod 600 {path}")
    return keys


def open_to_everyone(app: FastAPI, *routers: APIRouter) -> None:
    """Name the routes that need no key. Every other route of the application does: see :func:`require_key`."""
    endpoints = {route.endpoint for router in routers for route in router.routes if isinstance(route, APIRoute)}
    app.state.open_endpoints = frozenset(endpoints)


async def require_key(request: Request) -> str:
    """Return the digest of the key that a request came with; ``""`` where none is needed.

    It is a dependency of the whole application, so that a route which nobody thought of needs a key too. Which route a
    request reached is known from the function that answers it, never from a path or a header.

    Raises:
        ApiError: 401.
    """
    state = request.app.state
    keys: Keys = state.keys
    if not keys or request.scope.get("endpoint") in state.open_endpoints:
        return ""
    sent = request.headers.getlist("authorization")
    scheme, _, key = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    owner = keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise ApiError(
            401,
            "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return owner
