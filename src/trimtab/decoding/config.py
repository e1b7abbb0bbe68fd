"""How answers are drawn, as one config. No torch in here, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trimtab.validation import validated


def _option(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": "Sampling"}, **limits)


class Sampling(BaseModel):
    """How answers are drawn from the combined logits; the names are those of vLLM's ``SamplingParams``."""

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
    stop: tuple[str, ...] = _option((), "End the answer before this text (repeatable).")
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
