"""Reading bodies: JSON as its standard has it, checked by a model, with one clear message about what is wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from trimtab.serving.errors import ApiError, from_findings

M = TypeVar("M", bound=BaseModel)


def body_of(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """Return a dependency that reads the body of a request as a model.

    FastAPI would read a body before it looks at the key; as a dependency it is read after.
    """

    async def read(request: Request) -> M:
        return parse(model, await request.body(), request.headers.get("content-type"))

    return read


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return what an operation's OpenAPI says of such a body; :mod:`trimtab.serving.openapi` adds the model."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parse(model: type[M], body: bytes, content_type: str | None) -> M:
    """Return the model that a body describes.

    Raises:
        ApiError: 415 or 400.
    """
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, "The body has to be JSON: send it with 'Content-Type: application/json'.")
    value = _json(body)
    if not isinstance(value, dict):
        raise ApiError(400, 'The body has to be a JSON object, such as {"model": …}.')
    try:
        return model.model_validate(value)
    except ValidationError as error:
        findings = error.errors(include_url=False)
        for finding in findings:
            if finding["type"] == "extra_forbidden":
                finding["ctx"] = {"known": _siblings(model, finding["loc"])}
        raise from_findings(findings) from None


def _siblings(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the fields that are known where an unknown one was found."""
    known: Any = model.model_json_schema()
    definitions = known.get("$defs", {})
    for part in place[:-1]:
        known = known.get("properties", {}).get(str(part), {})
        reference = next((each["$ref"] for each in [known, *known.get("anyOf", [])] if "$ref" in each), None)
        known = definitions.get(reference.rpartition("/")[2], {}) if reference else known
    return list(known.get("properties", {}))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8, and JSON has to be.") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply: send plainer JSON.") from None
    except ValueError:
        raise ApiError(400, "The body holds a number with too many digits: send a smaller one.") from None


def _refuse(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON number", name, 0)
