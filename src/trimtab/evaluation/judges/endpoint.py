"""Asking an OpenAI-compatible endpoint: patiently, a few requests at a time, and without showing the key."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from trimtab.errors import ConfigError, JudgeError

if TYPE_CHECKING:
    import httpx

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_HOPELESS = {401, 403, 404, 405}
_LONGEST_PAUSE = 60.0


class RefusedError(JudgeError):
    """The endpoint does not take one request (too long, for instance); others may succeed."""


def chat_url(url: str) -> str:
    """Return the address of chat completions, from that or from the API's base URL.

    Raises:
        ConfigError: it is no address of the web.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--judge-url is {url!r}: give an address such as https://host/v1.")
    url = url.rstrip("/")
    return url if url.endswith("/chat/completions") else f"{url}/chat/completions"


class Endpoint:
    """One chat-completions address. An asynchronous context manager."""

    def __init__(self, url: str, *, key: str | None, timeout: float, retries: int, pause: float = 0.5) -> None:
        """Prepare.

        Args:
            url: of chat completions.
            key: bearer token, if one is needed. It is in no message and no file.
            timeout: seconds for one request.
            retries: how often a request that failed in passing is repeated.
            pause: seconds before the first repetition; doubled each time, with some chance in it.
        """
        self._url, self._key, self._retries, self._pause = url, key, retries, pause
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None
        self.requests = 0

    async def __aenter__(self) -> Endpoint:
        client = _http()
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        limits = client.Limits(max_connections=None)  # who asks says how many requests there are at a time
        timeout = client.Timeout(self._timeout, connect=min(20.0, self._timeout))
        self._client = client.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the endpoint's answer to a request.

        Raises:
            RefusedError: it refuses this request.
            JudgeError: it refuses all of them, or does not answer.
        """
        client = self._client
        if client is None:
            raise JudgeError("The endpoint is not open: use it in 'async with'.")
        problem = ""
        for attempt in range(self._retries + 1):
            self.requests += 1
            try:
                answer = await client.post(self._url, json=body)
            except _http().HTTPError as error:
                problem, pause = self._shown(f"{type(error).__name__}: {error}"), None
            else:
                if answer.status_code < 300:
                    return self._read(answer)
                problem = f"HTTP {answer.status_code}: {self._shown(answer.text)}"
                if answer.status_code in _HOPELESS:
                    raise JudgeError(f"The judge at {self._place} refuses ({problem}): check address, model and key.")
                if answer.status_code not in _AGAIN:
                    raise RefusedError(problem)
                pause = retry_after(answer.headers.get("retry-after"))
            if attempt < self._retries:
                backoff = self._pause * 2**attempt * (0.75 + 0.5 * random.random())
                await asyncio.sleep(min(_LONGEST_PAUSE, backoff if pause is None else pause))
        raise JudgeError(
            f"The judge at {self._place} does not answer, asked {self._retries + 1} times ({problem}). What it said so "
            "far is in the cache: run the same command again to go on."
        )

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            content = answer.json()
            message = content["choices"][0]["message"]
            if not isinstance(message.get("content") or "", str):
                raise TypeError("content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            text = self._shown(answer.text)
            raise JudgeError(f"The judge at {self._place} answers with something else than a chat ({text}).") from error
        return cast("dict[str, Any]", content)

    @property
    def _place(self) -> str:
        return str(_http().URL(self._url).copy_with(userinfo=b"", query=None))

    def _shown(self, text: str) -> str:
        text = " ".join(text.split())[:300]
        return text.replace(self._key, "***") if self._key else text


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait, given as a number or as a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _http() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ConfigError("A judge is asked with httpx: pip install 'trimtab[eval]'.") from error
    return httpx
