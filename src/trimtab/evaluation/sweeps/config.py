"""What a comparison of settings is, as one config. No torch in here, so that the command line starts fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab.decoding.config import Sampling
from trimtab.errors import did_you_mean

RESERVED = ("base",)
"""Names that settings have by themselves."""


def _option(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": "Comparison"}, **limits)


def split(value: Any, by: str = ",") -> Any:
    """Return the parts of a text, or of every text in a list; anything else as it is."""
    parts = [value] if isinstance(value, str | int | float) else value
    if not isinstance(parts, list | tuple):
        return value
    return [p.strip() for part in cast("Any", parts) for p in str(part).split(by) if p.strip()]


class Method(BaseModel):
    """One way of answering that is compared; only in the config file, under ``methods``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=60, description="What tables and plots call it.")
    guides: tuple[str, ...] | None = Field(None, description="The guides that pull; default: all. []: none.")
    weights: dict[str, float] | None = Field(None, description="Weights by guide or objective, instead of guides.")
    strengths: tuple[float, ...] = Field((1.0,), min_length=1, description="Each multiplies the weights.")
    alphas: str | None = Field(None, description="A grid of preferences, as the option alphas.")
    system: str | None = Field(None, description="System message put before the prompt.")
    temperature: float | None = Field(None, ge=0, description="Instead of the run's temperature.")
    best_of: int = Field(1, ge=1, le=256, description="Answers written, of which a scorer picks one.")
    scorer: str | None = Field(None, description="The scorer that picks; needed with best_of.")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("a method is a mapping with a name, such as {name: polite prompt, system: Be polite.}")
        values = {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
        for key in values:
            if key not in (*cls.model_fields, "strength"):
                raise ValueError(f"unknown key {key!r} in a method.{did_you_mean(key, cls.model_fields)}")
        if "strength" in values:
            values["strengths"] = [values.pop("strength")]
        return values

    @model_validator(mode="after")
    def _fit_together(self) -> Method:
        if (self.best_of > 1) != (self.scorer is not None):
            raise ValueError(f"method {self.name!r}: best_of and scorer belong together")
        if self.weights is not None and (self.guides is not None or self.alphas is not None):
            raise ValueError(f"method {self.name!r}: give weights, or guides and alphas")
        return self


class SweepConfig(Sampling):
    """Settings to compare on the same prompts, with the controls and scorers that say whether they are better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int | None = Field(
        default=0, ge=0, lt=2**62, description="Seed; each prompt and sample has its own, the same in every setting."
    )
    strengths: tuple[float, ...] = _option(
        (), "Strengths to compare, as S,S,…; 0 is the base, which is always there. Default: --strength."
    )
    alphas: str | None = _option(
        None, "Preferences to compare: grid:11 (two objectives), lattice:M, or helpful=0.7,harmless=0.3;…"
    )
    methods: tuple[Method, ...] = Field(
        (), description="Further settings, in the config file only.", json_schema_extra={"flag": False}
    )
    scorers: tuple[str, ...] = _option(
        ("length", "distinct-2", "repetition", "sentiment", "refusal"), "Scorers, as A,B:ARGUMENT,… (--list-scorers)."
    )
    front: dict[str, str] = _option(
        {}, "OBJECTIVE=SCORER: what measures an objective of a grid. Default: the scorer of that name (repeatable)."
    )
    reference: dict[str, float] = _option(
        {}, "OBJECTIVE=VALUE: reference point of the hypervolume. Default: least value found, minus 1 (repeatable)."
    )
    controls: bool = _option(
        True, "Add the untrained guide and the base at matching temperatures; without them the report says so."
    )
    force: bool = _option(
        False, "Score with scorers that are not independent of the guides; the report marks their columns."
    )
    token_notes: int = _option(8, "Prompts whose answers the report colours token by token.", ge=0, le=64)
    shown_prompts: int = _option(64, "Prompts whose answers the report shows side by side.", ge=0, le=1000)
    batch_size: int = _option(16, "Most answers written at a time.", ge=1)

    @field_validator("strengths", "scorers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

    @field_validator("strengths")
    @classmethod
    def _finite(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(number) for number in value):
            raise ValueError("strengths are finite numbers")
        return tuple(dict.fromkeys(number + 0.0 for number in value))

    @field_validator("scorers")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one scorer (--list-scorers shows them)")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _names_differ(self) -> SweepConfig:
        names = [method.name for method in self.methods]
        for i, name in enumerate(names):
            if name in names[:i] or name.casefold() in RESERVED:
                raise ValueError(f"methods: the name {name!r} is taken; give each method its own")
        return self

    @property
    def number(self) -> int:
        """The seed as a number; ``null`` is 0, because a run that cannot be repeated is no evidence."""
        return self.seed or 0

    def sampling(self) -> Sampling:
        """Return how answers are drawn, without n and seed, which each answer has for itself."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields if name not in ("n", "seed")})
