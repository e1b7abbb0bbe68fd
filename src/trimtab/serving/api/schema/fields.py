"""Types of fields that every request uses: strict, bounded, and with messages that name the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from trimtab.decoding.config import MAX_BIASES, MAX_STOP_LENGTH, MAX_STOPS
from trimtab.serving.errors import encodable

MAX_TEXT = 2**22  # characters; a body may be shorter still
MAX_IDS = 2**20
MAX_PROMPTS = 64
MAX_MESSAGES = 2048
MAX_PARTS = 64
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 2**31 - 1

_NO_NUL = r"^[^\x00]*$"
Content = Annotated[str, Field(max_length=MAX_TEXT, pattern=_NO_NUL)]
Name = Annotated[str, Field(max_length=256, pattern=_NO_NUL)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Strict(BaseModel):
    """A body, or a part of one: ``true`` is no number and ``"1"`` neither; keys that nobody knows are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, regex_engine="rust-regex")


def refused(message: str, *, at: str = "", unsupported: bool = False) -> PydanticCustomError:
    """Return an error of a validator.

    Args:
        message: what follows the field's name in the message.
        at: where in the field, for one that pydantic does not look into.
        unsupported: whether the value is a right one that this server cannot honour.
    """
    kind = "unsupported_parameter" if unsupported else "refused"
    context = {"at": encodable(at)} if at else {}
    # Braces would be read as places for values.
    return PydanticCustomError(kind, cast("Any", message.replace("{", "(").replace("}", ")")), context)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _texts_given(value: list[str] | None) -> list[str] | None:
    for index, text in enumerate(value or []):
        if not text:
            raise refused("is empty and would end every answer at once: leave it out.", at=str(index))
    return value


Stops = Annotated[
    list[Annotated[str, Field(max_length=MAX_STOP_LENGTH, pattern=_NO_NUL)]] | None,
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed),
    AfterValidator(_texts_given),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH, "pattern": "^[^\\u0000]*$"},
                {
                    "type": "array",
                    "maxItems": MAX_STOPS,
                    "items": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": MAX_STOP_LENGTH,
                        "pattern": "^[^\\u0000]*$",
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


def _biases(value: Any) -> Any:
    """Check logit biases: JSON has text keys only, and they are token ids."""
    if not isinstance(value, Mapping):
        return value
    given = cast("Mapping[Any, Any]", value)
    for key in given:
        if not (
            isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID
        ):
            raise refused("is not a token id: keys are whole numbers from 0.", at=str(key)[:40])
    return given


Biases = Annotated[
    dict[str, Bias] | None,
    Field(max_length=MAX_BIASES),
    BeforeValidator(_biases),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "maxProperties": MAX_BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                },
                {"type": "null"},
            ]
        }
    ),
]


def is_token_ids(value: Any) -> bool:
    """Return whether a value is a list of token ids."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in cast("list[Any]", value)
    )


def check_text(value: str, *, at: str = "", most: int = MAX_TEXT) -> str:
    """Return a text that is whole and not too long.

    Raises:
        PydanticCustomError: it is neither.
    """
    if len(value) > most:
        raise refused(f"may have at most {most} characters, and {len(value)} came.", at=at)
    if "\0" in value:
        raise refused("holds a NUL character, which no text needs: leave it out.", at=at)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise refused("holds half of a character (a lone surrogate): send whole characters.", at=at) from None
    return value


def unsupported_fields(fields: Mapping[str, Sequence[Any]], schema: dict[str, Any]) -> None:
    """Describe fields that are known and not supported in a model's JSON schema."""
    for name, allowed in fields.items():
        listed = [None, *allowed]
        schema["properties"][name] = {"enum": listed, "description": "Not supported: any other value is refused."}


def refuse_unsupported(fields: Mapping[str, Sequence[Any]], prefixes: Sequence[str], value: Any) -> Any:
    """Refuse fields that would change the answer and cannot be honoured.

    Args:
        fields: name → values that change nothing; ``null`` never does.
        prefixes: beginnings of names for which only ``null`` changes nothing.
        value: the body.

    Raises:
        PydanticCustomError: names the first of them.
    """
    if not isinstance(value, Mapping):
        return value
    given = cast("Mapping[Any, Any]", value)
    for name in given:
        if not isinstance(name, str) or given[name] is None:
            continue
        known = name in fields or any(name.startswith(prefix) for prefix in prefixes)
        if known and not any(_same(given[name], allowed) for allowed in fields.get(name, ())):
            raise refused("is not supported by this server: leave it out.", at=name, unsupported=True)
    return given


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and value == allowed
