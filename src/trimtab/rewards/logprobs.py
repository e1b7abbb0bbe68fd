"""Log-probabilities of chosen tokens without ever holding all tokens' vocabulary rows.

For hidden state h_t (D) and output weight W (V, D), with z = W h_t, a token's log-probability and its gradient are

    log p(y|h) = z_y − logsumexp(z)             ∂ log p(y|h) / ∂h = w_y − Σ_v p_v w_v

so the gradient with respect to h is one D-vector a token, and it can be computed while the chunk's logits are still
at hand. What is kept for the backward pass is (N, D) instead of (N, V): for a vocabulary of 49 152 and D = 576,
85 times less, and the logits of a frozen head are computed exactly once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_ELEMENTS_CPU = 2**23
_ELEMENTS_GPU = 2**26


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the log-probability of one target token for each hidden state.

    Logits are ``softcap·tanh(scale·(h Wᵀ + b) / softcap)`` (without a softcap: ``scale·(h Wᵀ + b)``). The matrix
    product runs in ``dtype``; its result is widened to float32 (float64 stays) before the softmax.

    Args:
        hidden: (N, D) final hidden states, as the output layer reads them.
        weight: (V, D) the output layer's weight.
        targets: (N,) long, the token each state must predict.
        bias: (V,) or ``None``.
        scale: factor on the logits.
        softcap: bound on the logits, or ``None``.
        chunk: tokens whose V logits exist at once; default: as many as fit 32 MB (256 MB on a GPU) in float32.
        dtype: of the matrix product; default: the wider of hidden's and weight's.

    Returns:
        (N,) float32 (float64 for float64 input), nats.
    """
    compute = dtype or torch.promote_types(hidden.dtype, weight.dtype)
    chunk = chunk or chunk_size(hidden, weight.shape[0])
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    with torch.autocast(hidden.device.type, enabled=False):
        bias = bias if bias is None else bias.to(compute)
        result = _TokenLogprobs.apply(
            hidden.to(compute), weight.to(compute), bias, targets, scale, softcap, chunk, wants_hidden
        )
    return cast("Tensor", result)


def chunk_size(hidden: Tensor, elements: int) -> int:
    """Return how many tokens, with so many numbers each, are at hand at once: 32 MB in float32, 256 MB on a GPU."""
    return max(1, (_ELEMENTS_CPU if hidden.device.type == "cpu" else _ELEMENTS_GPU) // elements)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Return ``softcap·tanh(scale·(h Wᵀ + b) / softcap)`` as float32 (or float64): (N, D), (V, D) → (N, V)."""
    product = torch.nn.functional.linear(hidden, weight, bias)
    logits = product.to(torch.promote_types(product.dtype, torch.float32))
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
        wants_hidden: bool,
    ) -> Tensor:
        count = hidden.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.empty(count, dtype=wide, device=hidden.device)
        slopes = torch.empty_like(hidden) if wants_hidden else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits = logits_of(hidden[part], weight, bias, scale, softcap)
            normaliser = torch.logsumexp(logits, -1, keepdim=True)
            picked = logits.gather(1, targets[part, None])
            result[part] = (picked - normaliser).squeeze(1)
            if slopes is not None:
                slope = _own_slopes(logits, normaliser, targets[part], scale, softcap)
                slopes[part] = slope.to(weight.dtype) @ weight
        ctx.save_for_backward(slopes, hidden, weight, bias, targets)
        ctx.settings = (scale, softcap, chunk)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        slopes, hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0] and slopes is not None:
            grad_hidden = slopes * grad[:, None].to(slopes.dtype)
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        if ctx.needs_input_grad[1] or wants_bias:
            grad_weight, grad_bias = _head_gradients(ctx, grad, hidden, weight, bias, targets)
        return (
            grad_hidden,
            grad_weight if ctx.needs_input_grad[1] else None,
            grad_bias if wants_bias else None,
            *(None,) * 5,
        )


def logit_slopes(logits: Tensor, policy: Tensor, targets: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Return (e_target − p) ⊙ ∂logits/∂(h Wᵀ + b), (n, V): the slope of a chosen token's log-probability or reward.

    Args:
        logits: (n, V); read only where there is a softcap.
        policy: log p, (n, V); overwritten. It may be ``logits`` itself, normalised, where there is no softcap.
        targets: (n,) long.
        scale: factor on the logits.
        softcap: bound on the logits, or ``None``.
    """
    bend = None if softcap is None else 1.0 - (logits / softcap).square()
    slope = policy.exp_().neg_()
    slope.scatter_add_(1, targets[:, None], torch.ones_like(targets[:, None], dtype=slope.dtype))
    if bend is not None:
        slope.mul_(bend)
    return slope if scale == 1.0 else slope.mul_(scale)


def _own_slopes(
    logits: Tensor, normaliser: Tensor, targets: Tensor, scale: float, softcap: float | None
) -> Tensor:  # fmt: skip
    """Turn logits (n, V), in place where it can, into ∂ log p(target) / ∂(h Wᵀ + b)."""
    policy = logits.sub_(normaliser) if softcap is None else logits - normaliser
    return logit_slopes(logits, policy, targets, scale, softcap)


def _head_gradients(
    ctx: Any, grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Recompute each chunk's logits for a head that is trained itself: ∂/∂W = Σ_t g_t·slope_t h_tᵀ."""
    scale, softcap, chunk = ctx.settings
    wide = torch.promote_types(weight.dtype, torch.float32)
    grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
    grad_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device)
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = logits_of(hidden[part], weight, bias, scale, softcap)
        slope = _own_slopes(logits, torch.logsumexp(logits, -1, keepdim=True), targets[part], scale, softcap)
        slope.mul_(grad[part, None])
        grad_weight += slope.to(hidden.dtype).T @ hidden[part]
        grad_bias += slope.sum(0)
    return grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
