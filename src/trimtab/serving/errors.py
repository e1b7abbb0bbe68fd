"""Errors as OpenAI's clients expect them: a status, and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse


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
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def handle_errors(app: FastAPI) -> None:
    """Let every error of an application reach clients in this form."""

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()
