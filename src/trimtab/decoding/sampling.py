"""Sampling: from combined logits z' to a token. Pure functions, each a line of the method.

Order, the same as in transformers' ``generate``: penalties and biases (:mod:`trimtab.decoding.adjusting`), temperature,
top-k, top-p, min-p. Each is applied once, to z' (the "rule of one"), never to a model's own logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.decoding.config import Sampling

_NEGATIVE_INFINITY = float("-inf")
_BLOCK = 128
_COLDEST = 1e-30  # a smaller temperature is 0 in float32, and 0 / 0 no number; the likeliest token is certain by then


def keep_top_k(z: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to -inf (ties with the k-th stay): (B, V) → (B, V)."""
    if k <= 0 or k >= z.shape[-1]:
        return z
    kth = z.topk(k, dim=-1).values[..., -1:]
    return z.masked_fill(z < kth, _NEGATIVE_INFINITY)


def keep_top_p(z: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p: (B, V) → (B, V).

    Of tokens that are equally likely those with lower ids go first. On a CPU sorting a whole vocabulary costs more
    than a small model's step, so tokens that cannot matter are left out of it.
    """
    if p >= 1:
        return z
    if z.device.type == "cpu" and z.numel():
        return torch.stack([_nucleus(row, p) for row in z.reshape(-1, z.shape[-1])]).reshape(z.shape)
    ordered, index = z.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= p
    dropped[..., 0] = False
    return z.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), _NEGATIVE_INFINITY)


def _nucleus(z: Tensor, p: float) -> Tensor:
    """Do the same for one row (V,), sorting only tokens that can be among the fewest."""
    probabilities = z.softmax(dim=-1)
    # All tokens below (1 - p)/V have less than 1 - p together, so the others reach p without them; half of it leaves
    # room for rounding.
    candidates = (probabilities >= 0.5 * (1 - p) / z.shape[-1]).nonzero().squeeze(-1)
    ordered, index = probabilities[candidates].sort(descending=True, stable=True)
    ordered = ordered.to(torch.float64)
    kept = candidates[index[ordered.cumsum(dim=-1) - ordered < p]]
    return torch.full_like(z, _NEGATIVE_INFINITY).index_copy(0, kept, z[kept])


def keep_min_p(z: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (arXiv 2407.01082): (B, V) → (B, V)."""
    if p <= 0:
        return z
    probabilities = z.softmax(dim=-1)
    return z.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), _NEGATIVE_INFINITY)


def distribution(z: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that tokens are drawn with: softmax(z'/τ) on the kept set, (B, V) → (B, V).

    Penalties and biases are not in here: they need the history (:mod:`trimtab.decoding.adjusting`).
    """
    z = (z - z.amax(dim=-1, keepdim=True)).div_(max(sampling.temperature, _COLDEST))
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
    missing = -probabilities.shape[-1] % _BLOCK
    p = F.pad(probabilities, (0, missing)) if missing else probabilities
    # Two levels, so that only the sums of blocks and one block a row are added up in float64.
    blocks = p.unflatten(-1, (-1, _BLOCK))
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniforms.to(sums).unsqueeze(-1) * sums[..., -1:]
    block = _first_above(sums, target)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp_min(0)), 0.0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1).to(torch.float64).cumsum(dim=-1)
    return (block * _BLOCK + _first_above(inside, target - before)).squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Return where sums first exceed a target, (B, 1); what adds nothing to them is never chosen."""
    total = cumulative[..., -1:]
    # Rounding may lift the target to the total itself, which would select past the last possible place.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target.clamp_min(0), right=True)
    # Nothing exceeds NaN: such a row gets any token, and whoever looks at its logits refuses it.
    return found.clamp_max(cumulative.shape[-1] - 1)


def choose(z: Tensor, sampling: Sampling, *, uniforms: Tensor | None = None) -> Tensor:
    """Choose the next token of each row.

    Args:
        z: (B, V) float32 combined logits, adjusted.
        sampling: one config for all B rows.
        uniforms: (B,) float64 in [0, 1), needed unless greedy.

    Returns:
        (B,) long.
    """
    if sampling.is_greedy or uniforms is None:
        return z.argmax(dim=-1)
    return draw(distribution(z, sampling), uniforms)
