"""PBLoRA's equations (arXiv 2505.06274), as pure functions.

    ΔW(α) = s·( B1 W1 A1 + B2 M(α) A2 ),    M(α) = Σ_i α_i C_i,    A = [A1; A2],  B = [B1 B2]

ΔW is never built in a forward: the products are taken from the right, all of them thin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixture(alpha: Tensor, C: Tensor) -> Tensor:
    """Return M(α) = Σ_i α_i C_i, or Σ_i α_i C_i + log w·C_w where the input is [α, log w].

    Args:
        alpha: (..., K); a guide that is told its pull w has one column more.
        C: (K, R2, R2), likewise.

    Returns:
        (..., R2, R2), at least float32.
    """
    dtype = torch.promote_types(C.dtype, torch.float32)
    with torch.autocast(C.device.type, enabled=False):
        flat = alpha.to(C.device, dtype) @ C.to(dtype).flatten(1)
    return flat.unflatten(-1, C.shape[1:])


def bilinear_delta(x: Tensor, A: Tensor, B: Tensor, W1: Tensor | None, M: Tensor, scaling: float) -> Tensor:
    """Return s·( B1 W1 A1 x + B2 M A2 x ), with an M for each row.

    Args:
        x: (N, ..., D_IN), N rows; a slice of a batch will do.
        A: (R1 + R2, D_IN).
        B: (D_OUT, R1 + R2).
        W1: (R1, R1); ``None`` where it is already multiplied into A's first rows.
        M: (N, R2, R2), (R2, R2) for all rows, or (N, ..., R2, R2) for each token its own.
        scaling: s.

    Returns:
        (N, ..., D_OUT) in the dtype of ``B``.
    """
    hidden = F.linear(x, A)
    r2 = M.shape[-1]
    common, own = hidden.split([hidden.shape[-1] - r2, r2], dim=-1)
    if W1 is not None:
        common = F.linear(common, W1)
    # Each row's tokens meet the row's own M in one batched product.
    if M.ndim == own.ndim + 1:
        mixed = (M.to(own.dtype) * own.unsqueeze(-2)).sum(-1)
    elif M.ndim == 2 or own.ndim == 3:
        mixed = own @ M.to(own.dtype).mT
    else:
        mixed = (own.reshape(own.shape[0], -1, r2) @ M.to(own.dtype).mT).reshape(own.shape)
    return F.linear((scaling * torch.cat([common, mixed], dim=-1)).to(B), B)


def merged_delta(A: Tensor, B: Tensor, W1: Tensor | None, M: Tensor, scaling: float) -> Tensor:
    """Return s·( B1 W1 A1 + B2 M A2 ) for one α, (D_OUT, D_IN); arguments as for :func:`bilinear_delta`."""
    return scaling * (B.to(M) @ right_factor(A, W1, M))


def right_factor(A: Tensor, W1: Tensor | None, M: Tensor) -> Tensor:
    """Return [W1 A1; M A2], (R1 + R2, D_IN): what stands right of B for one α."""
    r2 = M.shape[-1]
    common, own = A.to(M).split([A.shape[0] - r2, r2])
    return torch.cat([common if W1 is None else W1.to(M) @ common, M @ own])
