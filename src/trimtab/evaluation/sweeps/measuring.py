"""What guidance does to an answer, token by token: exact KL to the base, changed choices, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.results import TokenScores

UNTRAINED = "untrained:"
"""Before the name of a guide: its model without its training."""

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


def tempered_kl(z: Tensor, share: float) -> Tensor:
    """Return KL(softmax(z/s) ‖ softmax(z)) of each row, (T, V) → (T,), nats: a distribution beside a sharper self.

    With λ = 1/s and A(λ) = log Σ exp(λz) it is (λ − 1)·E_λ[z] − A(λ) + A(1): half the passes over the vocabulary.

    Args:
        z: logits, float32.
        share: s.
    """
    x = z - z.amax(-1, keepdim=True)
    sharp = (x / share).exp_()
    total = sharp.sum(-1)
    # A token that is impossible has weight 0, and 0·(−inf) would be NaN.
    mean = torch.linalg.vecdot(sharp, x.clamp_min(-1e30)) / total
    return ((1 / share - 1) * mean - total.log() + x.exp_().sum(-1).log()).double().clamp_min(0)


@dataclass
class Meter:
    """Measures one answer while it is read; give it to the reading as its observer.

    The distributions compared are those that tokens are drawn from, before the cuts of top-k, top-p and min-p:
    softmax(z'/τ) of the setting and softmax(z_b/τ₀) of the run's base. At temperature 0 both are taken at 1.

    Attributes:
        temperature: τ.
        base_temperature: τ₀.
        guided: whether any guide pulls; if not, z' are the base's own logits.
        ladder: whether the base's KL at the temperatures of :data:`LADDER` is measured too.
        kl: of each token, nats.
        changed: of each token, whether base and guided distribution have another likeliest token.
        ladder_kl: of each rung, summed over tokens.
    """

    temperature: float
    base_temperature: float
    guided: bool = True
    ladder: bool = False
    kl: list[float] = field(default_factory=list[float])
    changed: list[bool] = field(default_factory=list[bool])
    ladder_kl: list[float] = field(default_factory=lambda: [0.0] * len(LADDER))

    def __call__(self, base: Tensor, z: Tensor) -> None:
        """Take the base's logits and z', both (T, V), of tokens that follow those seen before."""
        own, reference = self.temperature or 1.0, self.base_temperature or 1.0
        plain = base.to(torch.float32) / reference
        if self.guided:
            self.kl += kl_divergence(z.to(torch.float32) / own, plain).tolist()
            self.changed += (z.argmax(-1) != base.argmax(-1)).tolist()
        else:
            same = own == reference
            self.kl += [0.0] * len(base) if same else tempered_kl(plain, own / reference).tolist()
            self.changed += [False] * len(base)
        if self.ladder:
            for i, share in enumerate(LADDER[:-1]):  # the last is the base itself
                self.ladder_kl[i] += float(tempered_kl(plain, share).sum())


def noted_diagnostics(noted: Sequence[TokenScores]) -> dict[str, Any]:
    """Return what a sample's record says of an answer of which the engine noted each token, with the base."""
    return _diagnostics(
        [note.kl or 0.0 for note in noted],
        [note.top[0][0] != note.base_top[0][0] for note in noted],
        [note.base_log_prob or 0.0 for note in noted],
        [note.log_prob for note in noted],
    )


def read_diagnostics(meter: Meter, base: Sequence[float], guided: Sequence[float]) -> dict[str, Any]:
    """Return the same of an answer that was read again.

    Args:
        meter: what watched.
        base: log π_b of each token, nats.
        guided: log-probability under the combination, nats.
    """
    found = _diagnostics(meter.kl, meter.changed, base, guided)
    if meter.ladder:
        found["ladder_kl"] = [value / len(base) for value in meter.ladder_kl]
    return found


def _diagnostics(
    kl: Sequence[float], changed: Sequence[bool], base: Sequence[float], guided: Sequence[float]
) -> dict[str, Any]:
    """Return KL a token, the share of positions with another likeliest token, and log-probabilities of the answer."""
    return {
        "kl": sum(kl) / len(kl),
        "kl_estimator": "exact",
        "top_changed": sum(changed) / len(changed),
        "base_logprob": sum(base),
        "guided_logprob": sum(guided),
    }


def token_notes(tokenizer: Any, noted: Sequence[TokenScores]) -> dict[str, Any]:
    """Return an answer's tokens and what base, guidance and guides think of each, rounded for a page.

    Each objective alone; a guide that has no objective of its own alone stands for itself.
    """
    ids = [note.token_id for note in noted]
    first = noted[0]
    alone = {name: [note.objectives.get(name) for note in noted] for name in first.objectives}
    told = {value for name in first.objectives for value in [first.objectives[name]]}
    guides = {
        name: [note.guides.get(name) for note in noted] for name, value in first.guides.items() if value not in told
    }
    return {
        "tokens": pieces([str(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]),
        "base": [round(note.base_log_prob or 0.0, 3) for note in noted],
        "guided": [round(note.log_prob, 3) for note in noted],
        "voices": {
            name: [None if value is None else round(value, 3) for value in values]
            for name, values in {**alone, **guides}.items()
            if not name.startswith(UNTRAINED)
        },
    }


def pieces(texts: Sequence[str]) -> list[str]:
    """Return what each text adds to the one before it; a character goes to the token that makes it whole."""
    shown, result = "", list[str]()
    for i, text in enumerate(texts):
        whole = text.rstrip("\ufffd") if i + 1 < len(texts) else text
        whole = whole if whole.startswith(shown) else shown
        result.append(whole[len(shown) :])
        shown = whole
    return result
