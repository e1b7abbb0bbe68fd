"""Rules: pure functions from the logits of base and guides to the logits that tokens are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trimtab.errors import NumericalError

_NEGATIVE_INFINITY = float("-inf")
_ROUNDING = 1e-9


def combine(
    base: Tensor,
    guides: Sequence[Tensor] = (),
    weights: Sequence[Tensor] = (),
    rows: Sequence[Tensor | None] | None = None,
    base_weight: Tensor | None = None,
) -> Tensor:
    r"""Return z', the combined next-token logits, in float32.

    GenARM's rule (arXiv 2410.08193), for any number of guides and any real weights, which need not sum to 1::

        z'(v) = c · log π_b(v | x, y_<t) + Σ_j w_j · log π_j(v | x, y_<t)

    c is 1, unless some guides are aligned models (policies P) of which the base itself is the reference. Such a guide
    adds w_j·(log π_j − log π_b), which is the same as c = 1 − Σ_{j ∈ P} w_j (:func:`base_coefficient`).

    Logits and log-probabilities both serve as input, because they differ by one number per row and softmax does not
    see it; decoding passes raw logits and saves the log-softmax, reports pass log-probabilities. Temperature, top-k,
    top-p and min-p come afterwards, once, on z' (:mod:`trimtab.decoding.sampling`).

    A weight of 0 contributes exactly nothing, so a row whose weights are all 0 is the base row bit for bit. Where a
    guide's score is ``-inf`` (it does not know the token) z' is ``-inf`` for any weight but 0, also a negative one. The
    same holds for the base and c: where c is 0 nothing of the base is left, so that z' is finite also where the base
    is not.

    Args:
        base: (B, V) logits or log-probabilities of the base, any floating dtype.
        guides: K tensors; the j-th is (B_j, V), the scores of guide j by the base's token ids.
        weights: K tensors; the j-th is (B_j,), the weight of guide j in each of its rows.
        rows: K entries; the j-th is (B_j,) long, which row of ``base`` each row of guide j belongs to (each at
            most once), or ``None`` where B_j = B and they correspond one to one.
        base_weight: (B,), c of each row; ``None`` is 1. A row whose c is 1 keeps its bits.

    Returns:
        (B, V) float32, not normalised.
    """
    z = base.to(torch.float32)
    if base_weight is not None:
        z = _weighed(z, base_weight.to(torch.float32).unsqueeze(-1))
    for j, (scores, weight) in enumerate(zip(guides, weights, strict=True)):
        s = scores.to(torch.float32)
        w = weight.to(torch.float32).unsqueeze(-1)
        index = rows[j] if rows is not None else None
        if index is None and w.device.type == "cpu" and bool((w > 0).all()):
            # w·(-inf) is -inf as it should be; a GPU would have to be waited for to know. The product is rounded before
            # it is added, as below, so that a row gets the same bits with any neighbours.
            z = torch.mul(s, w).add_(z)
            continue
        term = _weighed(s, w)
        z = z + term if index is None else z.index_add(0, index, term)
    return z if z is not base else z.clone()


def base_coefficient(weights: Iterable[float], whole: float = 1.0) -> float:
    """Return c = 1 − Σ w_j, exactly 0 where the weights sum to 1 up to rounding.

    Args:
        weights: of the policies that have the base as their reference.
        whole: what they are subtracted from.
    """
    left = whole - math.fsum(weights)
    # A remainder that only rounding left would still make -inf of a base's -inf.
    return 0.0 if abs(left) < _ROUNDING else left


def _weighed(scores: Tensor, weight: Tensor) -> Tensor:
    """Return w·s, (B, V): 0 where w is 0, and -inf where s is but w is not."""
    return torch.where(scores == _NEGATIVE_INFINITY, scores, weight * scores).masked_fill(weight == 0, 0.0)


def ensure_usable(z: Tensor) -> None:
    """Check that every row of logits can be sampled from.

    Args:
        z: (B, V) logits.

    Raises:
        NumericalError: a row holds NaN or +inf, or nothing but -inf.
    """
    best = z.amax(dim=-1)  # amax passes NaN on, so one number a row tells
    if not bool(torch.isfinite(best).all()):
        row = int((~torch.isfinite(best)).nonzero()[0, 0])
        kind = "NaN" if bool(torch.isnan(best[row])) else "infinite values"
        raise NumericalError(f"The logits hold {kind} (row {row}), so no token can be chosen from them.")
