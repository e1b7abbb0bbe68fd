"""The description of the API: what FastAPI finds, the bodies, every error, and the limits of this server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from trimtab.serving.api.schema.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GuidanceChange,
    TokenizeRequest,
)
from trimtab.serving.api.schema.responses import ErrorBody
from trimtab.serving.auth import Keys
from trimtab.serving.gateway import Gateway

_BODIES = (ChatRequest, CompletionRequest, GuidanceChange, TokenizeRequest, DetokenizeRequest)
_ERRORS = {
    "400": "The request cannot be served as it is; param names the field.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model, answer or route.",
    "405": "The route is for another method.",
    "411": "The length of the body is missing.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "As much waits as may wait; Retry-After says when to come again.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "The server is about to end, or its engine has; Retry-After says when to come again.",
    "504": "The answer was not finished in its time.",
}


def describe(app: FastAPI) -> None:
    """Let an application's OpenAPI say all that holds for it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi


def _schema(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {})
    models = components.setdefault("schemas", {})
    template = "#/components/schemas/{model}"
    _, made = models_json_schema([(model, "validation") for model in (*_BODIES, ErrorBody)], ref_template=template)
    models.update(made["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
    _bound(models, app.state.gateway)
    open_paths = _open_paths(app)
    keys: Keys = app.state.keys
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            responses = operation.setdefault("responses", {})
            responses.pop("422", None)  # this server says 400
            for status, why in _ERRORS.items():
                responses.setdefault(status, _error(why))
            operation["security"] = [] if path in open_paths or not keys else [{"key": []}]
    return schema


def _error(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}


def _open_paths(app: FastAPI) -> set[str]:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return {route.path for route in routes if route.endpoint in app.state.open_endpoints}


def _bound(models: dict[str, Any], gateway: Gateway) -> None:
    """Write the limits of this server into the bodies that it takes."""
    config = gateway.config
    vocabulary = gateway.engine.base.vocabulary_size
    most = {"n": config.max_n, "best_of": config.max_n, "top": config.max_logprobs, "top_logprobs": config.max_logprobs}
    most |= {"tokens": vocabulary - 1, "stop_token_ids": vocabulary - 1, "prompt": vocabulary - 1}
    for name, model in models.items():
        limits = most | ({"logprobs": config.max_logprobs} if name == "CompletionRequest" else {})
        for field, limit in limits.items():
            _lower(model.get("properties", {}).get(field), limit)


def _lower(schema: Any, limit: int) -> None:
    """Lower the maximum of every integer in a schema."""
    if isinstance(schema, list):
        for each in schema:  # pyright: ignore[reportUnknownVariableType]
            _lower(each, limit)
    elif isinstance(schema, dict):
        if schema.get("type") == "integer" and "maximum" in schema:
            schema["maximum"] = min(schema["maximum"], limit)
        for key in ("anyOf", "items"):
            _lower(schema.get(key), limit)
