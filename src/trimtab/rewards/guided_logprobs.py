"""The reward that decoding acts on: a guide's log-probabilities with decoding's own normaliser put back.

Guided decoding samples from π_dec = π_b·π_r^w / Z, normalised at EVERY token. GenARM's loss (arXiv 2410.08193) trains
π_r as if that were normalised once over whole answers. Decode-aware training, our own, takes the loss of the policy
that is sampled: log π_r(y|s) is replaced by h, from which log Z is taken off. :func:`decoded_reward` has the formula.

As in :mod:`trimtab.rewards.logprobs`, the gradient with respect to a hidden state is one D-vector a token, made while
the chunk's logits are at hand, so (N, D) is kept for the backward pass and never (N, V).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from trimtab.rewards.logprobs import chunk_size, logit_slopes, logits_of


class DecodedReward(NamedTuple):
    """What a guide's logits mean once they are decoded with a base.

    Attributes:
        reward: h, (...), nats of π_r.
        policy: log π_dec, (..., V), nats.
    """

    reward: Tensor
    policy: Tensor


def decoded_reward(base_logits: Tensor, logits: Tensor, targets: Tensor, w: Tensor) -> DecodedReward:
    r"""Decode-aware training's h of one token, and the policy that decoding samples (our own; no paper has it).

    With the base π_b, the guide π_r and the pull w, at one prefix s and for the token y that follows:

    .. math::
        \pi_{dec}(v|s) = \pi_b(v|s)\,\pi_r(v|s)^w / Z, \qquad Z = \sum_v \pi_b(v|s)\,\pi_r(v|s)^w

        h = \log\pi_r(y|s) - \tfrac1w \log Z
          = \tfrac1w \log\frac{\pi_{dec}(y|s)}{\pi_b(y|s)}
          = -\tfrac1w \log \mathbb{E}_{v\sim\pi_b}\, e^{\,w\,(z_r(v) - z_r(y))}

    The last form is the one computed: π_r's own normaliser cancels in it, so raw logits z_r do, and it loses no digits
    where w is small. Summed over an answer, w·h is log π_dec − log π_b, which is DPO's reward (arXiv 2305.18290) of the
    decoded policy. Where Z is the same at every prefix, h is log π_r but for a constant: GenARM's loss.

    Its derivative is ∂h/∂z_r = e_y − π_dec.

    Args:
        base_logits: z_b, (..., V), or log π_b; a constant added to all V changes nothing.
        logits: z_r, (..., V), likewise.
        targets: y, (...) long.
        w: (...) or one that broadcasts to it, above 0.

    Returns:
        h, (...), and log π_dec, (..., V).
    """
    base = torch.log_softmax(base_logits, -1)
    gain = logits - logits.gather(-1, targets.unsqueeze(-1))
    product = base + w.unsqueeze(-1) * gain
    log_z = torch.logsumexp(product, -1, keepdim=True)  # of π_b·(π_r/π_r(y))^w
    return DecodedReward(-log_z.squeeze(-1) / w, product - log_z)


def guided_token_logprobs(
    hidden: Tensor,
    base_hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    w: Tensor,
    *,
    base_weight: Tensor | None = None,
    bias: Tensor | None = None,
    base_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return :func:`decoded_reward`'s h of one target token for each hidden state.

    Logits are made of hidden states as :func:`trimtab.rewards.logprobs.token_logprobs` makes them. No gradient flows
    to the base: not to its states, nor to its head, nor through the head where base and guide share one.

    Args:
        hidden: (N, D) the guide's final hidden states, as the output layer reads them.
        base_hidden: (N, D_B) the base's at the same places.
        weight: (V, D) the output layer's weight.
        targets: (N,) long, the token each state must predict.
        w: (N,) the pull with which each token is decoded, above 0.
        base_weight: (V, D_B) the base's output layer, where it is another one.
        bias: (V,) or ``None``.
        base_bias: (V,) or ``None``; read only with ``base_weight``.
        scale: factor on the logits, the base's too.
        softcap: bound on the logits, the base's too, or ``None``.
        chunk: tokens whose two rows of V logits exist at once; default: as many as fit 32 MB (256 MB on a GPU) in
            float32.
        dtype: of the matrix products; default: the wider of hidden's and weight's.

    Returns:
        (N,) float32 (float64 for float64 input), nats of π_r.
    """
    compute = dtype or torch.promote_types(hidden.dtype, weight.dtype)
    chunk = chunk or chunk_size(hidden, 2 * weight.shape[0])
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    base_weight, base_bias = (weight, bias) if base_weight is None else (base_weight, base_bias)
    heads = [None if part is None else part.to(compute) for part in (weight, bias, base_weight, base_bias)]
    with torch.autocast(hidden.device.type, enabled=False):
        result = _GuidedLogprobs.apply(
            hidden.to(compute),
            *heads[:2],
            *(None if part is None else part.detach() for part in (base_hidden.to(compute), *heads[2:])),
            targets,
            w.detach(),
            _Settings(scale, softcap, chunk, wants_hidden),
        )
    return cast("Tensor", result)


class _Settings(NamedTuple):
    scale: float
    softcap: float | None
    chunk: int
    wants_hidden: bool


class _Tensors(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    base_hidden: Tensor
    base_weight: Tensor
    base_bias: Tensor | None
    targets: Tensor
    w: Tensor

    def at(self, part: slice, settings: _Settings) -> tuple[Tensor, DecodedReward]:
        """Return the guide's logits of some tokens, (n, V), and what they mean decoded with the base."""
        scale, softcap = settings[:2]
        logits = logits_of(self.hidden[part], self.weight, self.bias, scale, softcap)
        base = logits_of(self.base_hidden[part], self.base_weight, self.base_bias, scale, softcap)
        return logits, decoded_reward(base, logits, self.targets[part], self.w[part].to(logits))


class _GuidedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        tensors, settings = _Tensors(*arguments[:-1]), arguments[-1]
        hidden, weight = tensors.hidden, tensors.weight
        result = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32))
        slopes = torch.empty_like(hidden) if settings.wants_hidden else None
        for start in range(0, hidden.shape[0], settings.chunk):
            part = slice(start, start + settings.chunk)
            logits, decoded = tensors.at(part, settings)
            result[part] = decoded.reward
            if slopes is not None:
                slopes[part] = _slope(logits, decoded, tensors.targets[part], settings).to(weight.dtype) @ weight
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(slopes, *(tensors if trains_head else ()))
        ctx.settings = settings
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        slopes, *saved = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0] and slopes is not None:
            grad_hidden = slopes * grad[:, None].to(slopes.dtype)
        if saved:
            grad_weight, grad_bias = _head_gradients(_Tensors(*saved), grad, ctx.settings)
        return (
            grad_hidden,
            grad_weight if ctx.needs_input_grad[1] else None,
            grad_bias if ctx.needs_input_grad[2] else None,
            *(None,) * 6,
        )


def _slope(logits: Tensor, decoded: DecodedReward, targets: Tensor, settings: _Settings) -> Tensor:
    """Return ∂h/∂(h Wᵀ + b), (n, V): e_y − π_dec, bent as the logits are."""
    return logit_slopes(logits, decoded.policy, targets, settings.scale, settings.softcap)


def _head_gradients(tensors: _Tensors, grad: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Recompute each chunk's logits for a head that is trained itself: ∂/∂W = Σ_t g_t·slope_t h_tᵀ."""
    hidden, weight = tensors.hidden, tensors.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    grad_weight = weight.new_zeros(weight.shape, dtype=wide)
    grad_bias = weight.new_zeros(weight.shape[0], dtype=wide)
    for start in range(0, hidden.shape[0], settings.chunk):
        part = slice(start, start + settings.chunk)
        logits, decoded = tensors.at(part, settings)
        slope = _slope(logits, decoded, tensors.targets[part], settings).mul_(grad[part, None])
        grad_weight += slope.to(hidden.dtype).T @ hidden[part]
        grad_bias += slope.sum(0)
    return grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
