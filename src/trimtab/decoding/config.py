"""How answers are drawn, as one config. No torch in here, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab.validation import validated


def _option(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": "Sampling"}, **limits)


MAX_STOPS = 64  # strings, and ids
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
"""An id of the base's vocabulary; whether the base has it is known only where the base is."""


class Sampling(BaseModel):
    """How answers are drawn from the combined logits; the names are those of vLLM's ``SamplingParams``.

    The options act in this order: repetition penalty, presence and frequency penalty, logit bias, ``min_tokens``;
    then temperature, top-k, top-p and min-p.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = _option(128, "Most tokens in an answer.", ge=1)
    temperature: float = _option(
        1.0, "Divides the combined logits; 0 takes the likeliest token.", ge=0, allow_inf_nan=False
    )
    top_k: int = _option(0, "Keep the K likeliest tokens; 0 keeps all.", ge=0)
    top_p: float = _option(1.0, "Keep the fewest likeliest tokens whose probabilities reach P.", gt=0, le=1)
    min_p: float = _option(0.0, "Keep tokens at least this fraction as likely as the likeliest.", ge=0, le=1)
    repetition_penalty: float = _option(
        1.0,
        "Divides positive and multiplies negative combined logits of tokens already in prompt or answer.",
        gt=0,
        allow_inf_nan=False,
    )
    presence_penalty: float = _option(
        0.0, "Subtracted from the combined logits of tokens already in the answer.", ge=-2, le=2, allow_inf_nan=False
    )
    frequency_penalty: float = _option(
        0.0, "The same, as many times as the token is in the answer.", ge=-2, le=2, allow_inf_nan=False
    )
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = _option(
        {}, "TOKEN_ID=BIAS, added to the token's combined logit (repeatable).", max_length=MAX_BIASES
    )
    min_tokens: int = _option(
        0, "Fewest tokens in an answer: until then nothing ends it but max_tokens and the context.", ge=0
    )
    stop: tuple[Annotated[str, Field(max_length=MAX_STOP_LENGTH)], ...] = _option(
        (), "End the answer before this text (repeatable).", max_length=MAX_STOPS
    )
    stop_token_ids: tuple[TokenId, ...] = _option(
        (), "End the answer with this token, which is not shown (repeatable).", max_length=MAX_STOPS
    )
    seed: int | None = _option(None, "Seed; answer i is drawn with SEED + i. Default: a fresh one.", ge=0, lt=2**63)
    n: int = _option(1, "Answers for each prompt, from one reading of it.", ge=1)
    ignore_eos: bool = _option(False, "Go on past the base's end-of-answer tokens.")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in value):
            raise ValueError("a stop string is empty; it would end every answer at once")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, but max_tokens ends the answer at {self.max_tokens}")
        return self

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken (temperature 0)."""
        return self.temperature == 0


def make_sampling(value: Sampling | Mapping[str, Any] | None = None, **changes: Any) -> Sampling:
    """Return a validated :class:`Sampling` from one, from a mapping or from nothing, with some options changed.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or a value that cannot work.
    """
    given = {name: getattr(value, name) for name in Sampling.model_fields} if isinstance(value, Sampling) else value
    return validated(Sampling, {**(given or {}), **changes})
