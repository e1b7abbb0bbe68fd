"""Sampling: from combined logits z' to a token. Pure functions, each a line of the method, and their one config.

Order, the same as in transformers' ``generate``: repetition penalty, temperature, top-k, top-p, min-p. Each is
applied once, to z' (the "rule of one"), never to a model's own logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from trimtab.errors import ConfigError, did_you_mean
from trimtab.validation import validation_line

_NEGATIVE_INFINITY = float("-inf")


class Sampling(BaseModel):
    """How answers are drawn from the combined logits; the names are those of vLLM's ``SamplingParams``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(default=128, ge=1, description="Most tokens in an answer.")
    temperature: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="Divides the combined logits; 0 takes the likeliest token."
    )
    top_k: int = Field(default=0, ge=0, description="Keep the K likeliest tokens; 0 keeps all.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Keep the fewest likeliest tokens whose probabilities reach P."
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Keep tokens at least this fraction as likely as the likeliest."
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Divide positive and multiply negative combined logits of tokens already in prompt or answer.",
    )
    stop: tuple[str, ...] = Field(default=(), description="End the answer before this text (repeatable).")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Seed; request i is drawn with SEED + i. Default: a fresh one."
    )
    n: int = Field(default=1, ge=1, description="Answers for each prompt, from one reading of it.")
    ignore_eos: bool = Field(default=False, description="Go on past the base's end-of-answer tokens.")

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
    known = Sampling.model_fields
    given = {name: getattr(value, name) for name in known} if isinstance(value, Sampling) else dict(value or {})
    given.update(changes)
    for name in given:
        if name not in known:
            raise ConfigError(f"Unknown sampling option {name!r}.{did_you_mean(name, known)}")
    try:
        return Sampling(**given)
    except ValidationError as error:
        raise ConfigError(validation_line(error)) from error


def penalise_repetition(z: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely (Keskar et al., arXiv 1909.05858, as transformers applies it).

    The penalty acts on z' as combined from raw logits, so at strength 0 it is what ``generate`` does to the base;
    under guidance z' is about 1 + Σw times as large and the penalty grows with it.

    Args:
        z: (B, V) combined logits.
        seen: (B, V) bool, the tokens of the base's prompt and of the answer so far.
        penalty: > 1 discourages, < 1 encourages, 1 does nothing.
    """
    return torch.where(seen, torch.where(z < 0, z * penalty, z / penalty), z)


def keep_top_k(z: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to -inf (ties with the k-th stay): (B, V) → (B, V)."""
    if k <= 0 or k >= z.shape[-1]:
        return z
    kth = z.topk(k, dim=-1).values[..., -1:]
    return z.masked_fill(z < kth, _NEGATIVE_INFINITY)


def keep_top_p(z: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p: (B, V) → (B, V)."""
    if p >= 1:
        return z
    ordered, index = z.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= p
    dropped[..., 0] = False
    return z.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), _NEGATIVE_INFINITY)


def keep_min_p(z: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (arXiv 2407.01082): (B, V) → (B, V)."""
    if p <= 0:
        return z
    probabilities = z.softmax(dim=-1)
    return z.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), _NEGATIVE_INFINITY)


def distribution(z: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that tokens are drawn with: softmax(z'/τ) on the kept set, (B, V) → (B, V).

    The repetition penalty is not in here: it needs the history (:func:`penalise_repetition`).
    """
    z = (z - z.amax(dim=-1, keepdim=True)) / sampling.temperature
    z = keep_top_k(z, sampling.top_k)
    z = keep_top_p(z, sampling.top_p)
    return keep_min_p(z, sampling.min_p).softmax(dim=-1)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    One uniform number decides a token, so a row's draws depend on its own generator only, wherever it runs.

    Args:
        probabilities: (B, V), rows need not sum to 1 exactly.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) long; never a token of probability 0.
    """
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    total = cumulative[..., -1:]
    target = uniforms.to(cumulative).unsqueeze(-1) * total
    # Rounding may lift u·total to total itself, which would select past the last possible token.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def choose(z: Tensor, sampling: Sampling, *, seen: Tensor | None = None, uniforms: Tensor | None = None) -> Tensor:
    """Choose the next token of each row.

    Args:
        z: (B, V) float32 combined logits.
        sampling: one config for all B rows.
        seen: (B, V) bool, needed where ``repetition_penalty`` is not 1.
        uniforms: (B,) float64 in [0, 1), needed unless greedy.

    Returns:
        (B,) long.
    """
    if sampling.repetition_penalty != 1 and seen is not None:
        z = penalise_repetition(z, seen, sampling.repetition_penalty)
    if sampling.is_greedy or uniforms is None:
        return z.argmax(dim=-1)
    return draw(distribution(z, sampling), uniforms)
