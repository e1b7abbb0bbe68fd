"""MoSLoRA's equations (arXiv 2602.09538, as specified in our documentation), as pure functions.

p = Σ_i α_i o_i,    γ(p) = 1 + G p,    δ(p) = D p,    h = W0 x + s·B( γ(p) ⊙ (A x) + δ(p) )
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_vector(alpha: Tensor, objectives: Tensor | None) -> Tensor:
    """Return p = Σ_i α_i o_i, or Σ_i α_i o_i + log w·o_w where the input is [α, log w].

    Args:
        alpha: (..., K); a guide that is told its pull w has one column more.
        objectives: the o_i, (K, D_O), likewise; ``None`` stands for the identity, so that p = α.

    Returns:
        p, (..., D_O), at least float32.
    """
    if objectives is None:
        return alpha.to(torch.promote_types(alpha.dtype, torch.float32))
    dtype = torch.promote_types(objectives.dtype, torch.float32)
    return alpha.to(dtype) @ objectives.to(dtype)


def conditioning_vector(
    alpha: Tensor, objectives: Tensor | None, trunk: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Return c·p, or tanh(T·c·p) with a trunk T that all layers share.

    Args:
        alpha: (..., K).
        objectives: the o_i, (K, D_O), or ``None`` for p = α.
        trunk: T, (D_H, D_O), or ``None``.
        scale: c.

    Returns:
        (..., D_C), at least float32.
    """
    with torch.autocast(alpha.device.type, enabled=False):
        vector = scale * mixed_vector(alpha, objectives)
        return vector if trunk is None else torch.tanh(vector @ trunk.to(vector).T)


def modulation(vector: Tensor, G: Tensor | None, D: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return γ = 1 + G p and δ = D p; ``None`` where the generator is ``None``.

    Computed in at least float32: in bfloat16, 1 + G p would round away what training changes.

    Args:
        vector: p, (..., D_C).
        G: (R, D_C).
        D: (R, D_C).

    Returns:
        γ and δ, (..., R).
    """
    return None if G is None else 1 + _matvec(G, vector), None if D is None else _matvec(D, vector)


def modulated_delta(
    x: Tensor, A: Tensor, B: Tensor, gamma: Tensor | None, delta: Tensor | None, scaling: float
) -> Tensor:
    """Return s·B( γ ⊙ (A x) + δ ), with a γ and a δ for each row.

    Args:
        x: (N, ..., D_IN), N rows; a slice of a batch will do.
        A: (R, D_IN).
        B: (D_OUT, R).
        gamma: (N, R), (R,) for all rows, or (N, ..., R) for each token its own; ``None`` is 1.
        delta: as ``gamma``; ``None`` is 0.
        scaling: s.

    Returns:
        (N, ..., D_OUT) in the dtype of ``B``.
    """
    hidden = F.linear(x, A)
    gamma, delta = _rows_like(gamma, hidden), _rows_like(delta, hidden)
    if gamma is not None and delta is not None:
        hidden = torch.addcmul(delta, gamma, hidden.to(gamma))
    elif gamma is not None:
        hidden = gamma * hidden
    elif delta is not None:
        hidden = delta + hidden
    return F.linear((scaling * hidden).to(B), B)


def merged_delta(
    A: Tensor, B: Tensor, gamma: Tensor | None, delta: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor | None]:
    """Return what :func:`modulated_delta` adds for one α, as a weight and a bias.

    Args:
        A: (R, D_IN).
        B: (D_OUT, R).
        gamma: (R,) or ``None``.
        delta: (R,) or ``None``.
        scaling: s.

    Returns:
        s·B diag(γ) A, (D_OUT, D_IN), and s·B δ, (D_OUT,) or ``None``.
    """
    left = scaling * (B.to(gamma) * gamma if gamma is not None else B)
    bias = None if delta is None else scaling * (B.to(delta) @ delta)
    return left @ A.to(left), bias


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    with torch.autocast(matrix.device.type, enabled=False):
        return vector.to(matrix.device, dtype) @ matrix.to(dtype).T


def _rows_like(rows: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Return (N, R) as (N, 1, ..., R), so that it meets each token of its own row."""
    if rows is None or rows.ndim == 1 or rows.ndim == hidden.ndim:
        return rows
    return rows.reshape(rows.shape[0], *[1] * (hidden.ndim - 2), rows.shape[1])
