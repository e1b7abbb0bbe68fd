"""Errors as OpenAI's clients expect them: a status, and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import (
    BusyError,
    ClosingError,
    ConfigError,
    DataError,
    DeadlineError,
    GuidanceError,
    ModelError,
    PromptTooLongError,
    TrimtabError,
    did_you_mean,
)

_log = logging.getLogger(__name__)
_RETRY_AFTER = 5  # seconds
_GONE = 499  # what proxies write into their logs for it
_SHOWN = 60  # characters of a wrong value that a message repeats
INTERNAL = "The server failed while it worked on this request; the next one may succeed. Its log says more."


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status.
        message: what is wrong, why, and what to do.
        kind: OpenAI's ``type``.
        param: the field it is about.
        code: a word for programs.
        headers: headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON object that clients read."""
        param = None if self.param is None else encodable(self.param)
        return {"error": {"message": encodable(self.message), "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


@dataclass(frozen=True)
class _Kind:
    """What is said of a class of errors; ``param`` "" stands for the field that the prompt came in."""

    status: int
    kind: str
    code: str | None = None
    param: str | None = None
    classes: tuple[type[Exception], ...] = ()


_INVALID = "invalid_request_error"
_KINDS = (
    _Kind(400, _INVALID, None, "guidance", (GuidanceError,)),
    _Kind(400, _INVALID, "context_length_exceeded", "", (PromptTooLongError,)),
    _Kind(400, _INVALID, None, "", (DataError,)),
    _Kind(400, _INVALID, None, None, (ConfigError, ModelError)),
    _Kind(429, "rate_limit_error", "queue_full", None, (BusyError,)),
    _Kind(503, "service_unavailable", "service_unavailable", None, (ClosingError,)),
    _Kind(504, "timeout_error", "deadline_exceeded", None, (DeadlineError,)),
)


class ClientGone(Exception):  # noqa: N818 - nobody is told of it as of an error
    """The client has closed its connection, and nobody waits for the answer."""


def encodable(text: str) -> str:
    """Return a text that UTF-8 can carry: half characters, which a client can send, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(value: Any) -> str:
    """Return a value as a message repeats it: short, and as it was written in JSON."""
    if isinstance(value, str):
        cut = value[:_SHOWN] + ("…" if len(value) > _SHOWN else "")
        return encodable(json.dumps(cut, ensure_ascii=False))
    if isinstance(value, (list, tuple)):
        return f"a list of {len(cast('Sequence[Any]', value))}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return "a very large number"
    try:
        return json.dumps(value)
    except TypeError:
        return type(value).__name__


def from_exception(error: Exception, *, source: str = "messages") -> ApiError:
    """Return what a client is told of an error that ended its request.

    Args:
        error: what was raised.
        source: the field that the prompt came in, for errors that are about it.
    """
    if isinstance(error, ApiError):
        return error
    internal = _Kind(500, "internal_error", "internal_error")
    kind = next((known for known in _KINDS if isinstance(error, known.classes)), internal)
    message = str(error) if isinstance(error, TrimtabError) else INTERNAL
    wait = getattr(error, "retry_after", _RETRY_AFTER) if kind.status in (429, 503) else None
    return ApiError(
        kind.status,
        message,
        kind=kind.kind,
        param=source if kind.param == "" else kind.param,
        code=kind.code,
        headers={} if wait is None else {"retry-after": str(wait)},
    )


def from_findings(findings: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return what a client is told of the first thing that is wrong with its body, as pydantic found it."""
    finding = findings[0]
    context: Mapping[str, Any] = finding.get("ctx") or {}
    place = [str(part) for part in finding["loc"]]
    if "at" in context:  # a validator of ours that looked deeper than pydantic knows
        place += [str(context["at"])]
    param = ".".join(place)
    code = "unsupported_parameter" if finding["type"] == "unsupported_parameter" else None
    return ApiError(400, _sentence(param, finding, context), param=param or None, code=code)


def _sentence(param: str, finding: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    kind, name, value = finding["type"], f"'{param}'", finding.get("input")
    if kind in _SENTENCES:
        return f"{name} {_SENTENCES[kind]}"
    if kind in ("unsupported_parameter", "refused"):
        return f"{name} {finding['msg']}"
    if kind == "extra_forbidden":
        *parents, last = param.split(".")
        where = f" in '{'.'.join(parents)}'" if parents else ""
        known = context.get("known", ())
        return f"There is no field '{last}'{where}.{did_you_mean(last, known) if known else ''}"
    if kind in ("too_long", "string_too_long"):
        what = "entries" if kind == "too_long" else "characters"
        return f"{name} may have at most {context.get('max_length')} {what}, and {len(cast('Any', value))} came."
    return f"{name} is {shown(value)}, but it must be {_must(kind, context)}."


_SENTENCES = {
    "missing": "is missing and has to be there.",
    "string_unicode": "holds half of a character (a lone surrogate), which is no text: send whole characters.",
    "string_pattern_mismatch": "holds a NUL character, which no text needs: leave it out.",
    "too_short": "is empty and must not be.",
    "string_too_short": "is empty and must not be.",
}


def _must(kind: str, context: Mapping[str, Any]) -> str:
    bounds = {"less_than_equal": ("le", "at most"), "greater_than_equal": ("ge", "at least")}
    bounds |= {"less_than": ("lt", "less than"), "greater_than": ("gt", "more than")}
    if kind in bounds:
        key, words = bounds[kind]
        return f"{words} {context[key]:.20g}"
    if kind == "literal_error":
        return str(context.get("expected"))
    if kind.startswith("int"):
        return "a whole number"
    if kind in ("finite_number",) or kind.startswith("float"):
        return "a finite number"
    words = {
        "bool": "true or false",
        "string": "a text",
        "list": "a list",
        "dict": "an object",
        "model": "an object",
        "mapping": "an object",
    }
    return words.get(kind.split("_")[0], "something else")


def handle_errors(app: FastAPI) -> None:
    """Let every error of an application reach clients in this form."""

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(ClientGone)
    async def _gone(_: Request, __: ClientGone) -> Response:
        return Response(status_code=_GONE)

    @app.exception_handler(TrimtabError)
    async def _ours(_: Request, error: TrimtabError) -> JSONResponse:
        return from_exception(error).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        findings = [{**found, "loc": found["loc"][1:]} for found in error.errors()]  # without "query", "path"
        return from_findings(findings).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return _of_http(request, error).response()

    app.add_middleware(Unforeseen)


class Unforeseen:
    """ASGI middleware that answers for what nobody foresaw: 500 without internals, which the log has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer if it fails before its answer has begun."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:  # in the middle of its body: nobody waits for an answer
            return
        except Exception as error:
            _log.error("A request failed.", exc_info=error)  # which one, every line of the log says
            if begun or scope["type"] != "http":
                raise
            await from_exception(error).response()(scope, receive, send)


def _of_http(request: Request, error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, f"There is nothing at {shown(request.url.path)}.", code="not_found", headers=headers)
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow")
        hint = f": use {allowed}." if allowed else "."
        message = f"{request.method} is not for {shown(request.url.path)}{hint}"
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    kind = "invalid_request_error" if error.status_code < 500 else "internal_error"
    return ApiError(error.status_code, str(error.detail), kind=kind, headers=headers)
