"""What a win rate would be if both answers were of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 20
_RIDGE = 0.1  # on the slope alone: with few pairs it keeps a chance pattern from explaining everything
_STEPS = 50


def win_rate_at_equal_length(points: Sequence[float], lengths: Sequence[tuple[int, int]]) -> float | None:
    """Return the win rate that a logistic fit foretells for two answers of the same length.

    P(win) = σ(a + b·tanh(d / s)), with d the difference of lengths and s its standard deviation; σ(a) is returned. It
    corrects for a preference for length itself (or for brevity), not for what else comes with it.

    Args:
        points: for each pair 1 (win), 0.5 (tie) or 0 (loss).
        lengths: for each pair the lengths of both answers.

    Returns:
        The rate; ``None`` for fewer than 20 pairs.
    """
    if len(points) < FEWEST:
        return None
    y = np.asarray(points, dtype=np.float64)
    differences = np.asarray([a - b for a, b in lengths], dtype=np.float64)
    spread = float(differences.std())
    x = np.tanh(differences / spread) if spread else np.zeros_like(differences)
    design = np.stack([np.ones_like(x), x], axis=1)
    # A tiny ridge on the intercept too keeps it finite where every pair is won.
    penalty = np.diag([1e-3, _RIDGE])
    beta = np.zeros(2)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-design @ beta))
        slope = design.T @ (y - p) - penalty @ beta
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(curvature, slope)
        beta += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-beta[0])))
