"""Who may use the server: API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from fastapi import Request

from trimtab.serving.errors import ApiError


class Keys:
    """The keys that are accepted; none: everyone may use the server."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """Return the digest of a key that is accepted, else ``None``."""
        given, found = digest(key), None
        for known in self._digests:  # all of them, so that the time does not tell which one was near
            if hmac.compare_digest(known, given):
                found = known
        return found


def digest(key: str) -> str:
    """Return the SHA-256 of a key in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


async def require_key(request: Request) -> str:
    """Return the digest of the key that a request came with; ``""`` where none is needed.

    Raises:
        ApiError: 401.
    """
    keys: Keys = request.app.state.keys
    if not keys:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    owner = keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise ApiError(
            401,
            "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
            kind="authentication_error",
            code="invalid_api_key",
        )
    return owner
