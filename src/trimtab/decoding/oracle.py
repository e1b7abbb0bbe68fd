"""The oracle: guided decoding as the formula says it, and nothing else. Tests and doubters compare with it.

No cache, no batch, no shared weights, no padding: for every token each model reads its whole prompt and the whole
answer so far, alone, in float64. It is slow on purpose, and it shares no code with the rules, the sampling or the
engine that it checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.errors import NumericalError


@dataclass(frozen=True)
class OracleGuide:
    """One guide as the oracle sees it.

    Attributes:
        model: a causal LM in float64 (a ``PeftModel`` or any other).
        prompt: the prompt's ids as this guide reads it.
        weight: w, strength included.
        ids: the guide's id for each id of the base (``None``: the same; -1: a token the guide does not know).
        is_policy: whether it is an aligned model, whose score is log π_j − log π_ref.
        reference: π_ref of a policy, a causal LM with the guide's ids and prompt; ``None`` for the base itself, as the
            base reads it.
    """

    model: Any
    prompt: Sequence[int]
    weight: float
    ids: Sequence[int] | None = None
    is_policy: bool = False
    reference: Any = None


@dataclass(frozen=True)
class OracleSampling:
    """What is done to z' before a token is drawn; the defaults do nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def next_logits(model: Any, ids: Sequence[int]) -> list[float]:
    """Return V float64 logits for the token after ``ids``, by one forward over all of them.

    Raises:
        NumericalError: a logit is NaN.
    """
    with torch.no_grad():
        out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    values: list[float] = out[0, -1].to(torch.float64).tolist()
    if any(math.isnan(value) for value in values):
        raise NumericalError("A model gives NaN logits, so there is no next token.")
    return values


def combined_logits(
    base: Any, base_prompt: Sequence[int], guides: Sequence[OracleGuide], answer: Sequence[int]
) -> list[float]:
    """Return z'(v) = z_b(v) + Σ_j w_j s_j(v), V numbers, with s_j = z_j, or z_j − z_ref for a policy.

    A token that a guide does not know is impossible unless w_j = 0. What the policies whose reference is the base take
    away is first taken off its factor, so that nothing of the base is left where their weights sum to 1.
    """
    own = 1 - math.fsum(guide.weight for guide in guides if guide.is_policy and guide.reference is None)
    z = _times(own, next_logits(base, [*base_prompt, *answer]))
    for guide in guides:
        if guide.weight == 0:
            continue
        ids = guide.ids if guide.ids is not None else range(len(z))
        text = [*guide.prompt, *(ids[token] for token in answer)]
        scores = next_logits(guide.model, text)
        subtracted = next_logits(guide.reference, text) if guide.reference is not None else [0.0] * len(scores)
        for v in range(len(z)):
            score = scores[ids[v]] - subtracted[ids[v]] if ids[v] >= 0 else -math.inf
            z[v] = z[v] + guide.weight * score if score > -math.inf else -math.inf
    return z


def next_distribution(
    base: Any,
    base_prompt: Sequence[int],
    guides: Sequence[OracleGuide] = (),
    answer: Sequence[int] = (),
    sampling: OracleSampling | None = None,
) -> list[float]:
    """Return the V probabilities of the next token under guided sampling, sorted out one token at a time."""
    s = sampling or OracleSampling()
    z = combined_logits(base, base_prompt, guides, answer)
    for v in {*base_prompt, *answer}:
        z[v] = z[v] * s.repetition_penalty if z[v] < 0 else z[v] / s.repetition_penalty
    kept = [v for v in range(len(z)) if z[v] > -math.inf]
    kept.sort(key=lambda v: -z[v])
    if s.top_k:
        kept = [v for v in kept if z[v] >= z[kept[min(s.top_k, len(kept)) - 1]]]
    probability = _softmax(z, kept, s.temperature)
    nucleus: list[int] = []
    for v in kept:
        if nucleus and sum(probability[u] for u in nucleus) >= s.top_p:
            break
        nucleus.append(v)
    probability = _softmax(z, nucleus, s.temperature)
    likely = [v for v in nucleus if probability[v] >= s.min_p * probability[nucleus[0]]]
    probability = _softmax(z, likely, s.temperature)
    return [probability.get(v, 0.0) for v in range(len(z))]


def greedy(
    base: Any,
    base_prompt: Sequence[int],
    guides: Sequence[OracleGuide] = (),
    *,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    repetition_penalty: float = 1.0,
) -> list[int]:
    """Return the answer that takes the likeliest token at every step, its end-of-answer token included."""
    answer: list[int] = []
    while len(answer) < max_tokens:
        z = combined_logits(base, base_prompt, guides, answer)
        for v in {*base_prompt, *answer}:
            z[v] = z[v] * repetition_penalty if z[v] < 0 else z[v] / repetition_penalty
        answer.append(max(range(len(z)), key=lambda v: z[v]))
        if answer[-1] in stop_ids:
            break
    return answer


def sequence_log_prob(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return log π(y_t | x, y_<t) of each token of ``answer``, nats, each by a forward of its own."""
    found: list[float] = []
    for t, token in enumerate(answer):
        z = next_logits(model, [*prompt, *answer[:t]])
        top = max(z)
        found.append(z[token] - top - math.log(sum(math.exp(value - top) for value in z)))
    return found


def _times(factor: float, z: Sequence[float]) -> list[float]:
    if abs(factor) < 1e-9:
        return [0.0] * len(z)
    return [factor * value if value > -math.inf else value for value in z]


def _softmax(z: Sequence[float], kept: Sequence[int], temperature: float) -> dict[int, float]:
    top = max(z[v] for v in kept)
    weights = {v: math.exp((z[v] - top) / temperature) for v in kept}
    total = sum(weights.values())
    return {v: w / total for v, w in weights.items()}
