"""Bootstrap samples of prompts, and the intervals they give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import NumericalError
from trimtab.evaluation.fronts import Interval

Array = NDArray[np.float64]


def finite(values: Array) -> Array:
    """Return the values, unless one is NaN or infinite.

    Raises:
        NumericalError: one is.
    """
    if not np.isfinite(values).all():
        raise NumericalError("A score is NaN or infinite: a scorer failed on an answer.")
    return values


def prompt_weights(n: int, resamples: int, seed: int) -> Array:
    """Return (R, P): the share of each prompt in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def interval(value: float, drawn: Array) -> Interval:
    """Return a value with the 2.5th and 97.5th percentile of what was drawn (itself if nothing was)."""
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
    return Interval(value, float(low), float(high))
