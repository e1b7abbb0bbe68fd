"""What guidance does to an answer, token by token: exact KL to the base, changed choices, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trimtab.engine.answers import Core
    from trimtab.engine.readings import Reading

LADDER = tuple(round(0.08 * (1 / 0.08) ** (i / 13), 4) for i in range(14))
"""Temperatures, as shares of the run's own, at which the base's KL to itself is known: 0.08 to 1, evenly in log T."""


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return KL(softmax(p) ‖ softmax(q)) of each row over the whole vocabulary: two (T, V) → (T,), nats, float64 sums.

    A token of probability 0 under p adds nothing.
    """
    p = p_logits.to(torch.float32).log_softmax(-1)
    q = q_logits.to(torch.float32).log_softmax(-1)
    terms = torch.where(p == float("-inf"), 0.0, p.exp() * (p - q))
    return terms.sum(-1, dtype=torch.float64).clamp_min(0)


@dataclass
class Meter:
    """Measures one answer while it is read; give it to the reading as its observer.

    The distributions compared are those that tokens are drawn from, before the cuts of top-k, top-p and min-p:
    softmax(z'/τ) of the setting and softmax(z_b/τ₀) of the run's base. At temperature 0 both are taken at 1.

    Attributes:
        temperature: τ.
        base_temperature: τ₀.
        ladder: whether the base's KL at the temperatures of :data:`LADDER` is measured too.
        kl: of each token, nats.
        changed: of each token, whether base and guided distribution have another likeliest token.
        ladder_kl: of each rung, summed over tokens.
    """

    temperature: float
    base_temperature: float
    ladder: bool = False
    kl: list[float] = field(default_factory=list[float])
    changed: list[bool] = field(default_factory=list[bool])
    ladder_kl: list[float] = field(default_factory=lambda: [0.0] * len(LADDER))

    def __call__(self, base: Tensor, z: Tensor) -> None:
        """Take the base's logits and z', both (T, V), of tokens that follow those seen before."""
        own, reference = self.temperature or 1.0, self.base_temperature or 1.0
        plain = base.to(torch.float32) / reference
        self.kl += kl_divergence(z.to(torch.float32) / own, plain).tolist()
        self.changed += (z.argmax(-1) != base.argmax(-1)).tolist()
        if self.ladder:
            for i, share in enumerate(LADDER[:-1]):  # the last is the base itself
                self.ladder_kl[i] += float(kl_divergence(plain / share, plain).sum())


def diagnostics(meter: Meter, reading: Reading) -> dict[str, Any]:
    """Return what a sample's record says of its answer; means over its tokens, nats.

    Returns:
        ``kl`` (exact, a token), ``top_changed`` (share), ``base_logprob`` and ``guided_logprob`` (of the whole answer,
        at temperature 1), ``fluency`` (``base_logprob`` a token), ``guides`` (guide → Σ log π_r) and, of plain answers of
        the base, ``ladder_kl``.
    """
    count = len(reading.answer)
    found: dict[str, Any] = {
        "kl": sum(meter.kl) / count,
        "kl_estimator": "exact",
        "top_changed": sum(meter.changed) / count,
        "base_logprob": sum(reading.base),
        "guided_logprob": sum(reading.combined),
        "fluency": sum(reading.base) / count,
    }
    if meter.ladder:
        found["ladder_kl"] = [value / count for value in meter.ladder_kl]
    return found


def token_notes(core: Core, reading: Reading, names: Sequence[str]) -> dict[str, Any]:
    """Return an answer's tokens and what base, guidance and every objective alone think of each, rounded for a page.

    Args:
        core: what is loaded.
        reading: a finished reading, made with ``by_objective``.
        names: the guides to tell of.
    """
    objectives: dict[str, list[float]] = {}
    several = [name for guide in core.guides if guide.name in names for name in guide.objectives]
    for j, guide in enumerate(core.guides):
        if guide.name not in names:
            continue
        alone = reading.alone[j] or [reading.guides[j]]
        labels = guide.objectives if len(alone) == len(guide.objectives) else [guide.name]
        for label, values in zip(labels, alone, strict=True):
            shown = label if several.count(label) < 2 else f"{guide.name}/{label}"
            objectives[shown] = _rounded(values)
    decode = core.base.tokenizer.decode
    return {
        "tokens": pieces([str(decode(reading.answer[: i + 1])) for i in range(len(reading.answer))]),
        "base": _rounded(reading.base),
        "guided": _rounded(reading.combined),
        "objectives": objectives,
    }


def pieces(texts: Sequence[str]) -> list[str]:
    """Return what each text adds to the one before it; a character that is not whole yet goes to the token that ends it."""
    shown, result = "", list[str]()
    for i, text in enumerate(texts):
        whole = text.rstrip("\ufffd") if i + 1 < len(texts) else text
        whole = whole if whole.startswith(shown) else shown
        result.append(whole[len(shown) :])
        shown = whole
    return result


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]
