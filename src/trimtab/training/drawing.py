"""The preferences and weights that pairs are read under: drawn in training, fixed in evaluation.

A draw depends on the seed, the epoch and the pair's place in the data only. So it does not depend on the batch, on the
number of processes, or on whether the run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from trimtab.preferences.vectors import dirichlet
from trimtab.rewards.labelled import LabelledPair
from trimtab.training.config import TrainConfig

_ALPHA, _WEIGHT = 1, 2


def draw_preferences(config: TrainConfig, k: int, numbers: Sequence[int], epoch: int) -> Tensor:
    """Return one α a pair, (P, K): the same for all where ``config.drawn_per`` is ``"batch"``.

    Args:
        config: the run's options.
        k: number of objectives.
        numbers: each pair's place in the data.
        epoch: passes over the data that are complete.
    """
    per_batch = config.drawn_per == "batch"
    rows = [
        dirichlet(config.alpha_concentration, 1, k=k, generator=_generator(config, _ALPHA, epoch, number))
        for number in (numbers[:1] if per_batch else numbers)
    ]
    return torch.cat(rows).expand(len(numbers), k) if per_batch else torch.cat(rows)


def draw_weights(config: TrainConfig, numbers: Sequence[int], epoch: int) -> Tensor:
    """Return one guidance weight a pair, (P,): log-uniform in ``config.decode_weight_range``, or ``config.weight``."""
    if config.decode_weights == "fixed":
        return torch.full((len(numbers),), config.weight)
    low, high = (math.log(limit) for limit in config.decode_weight_range)
    drawn = [_generator(config, _WEIGHT, epoch, number).uniform(low, high) for number in numbers]
    return torch.tensor(drawn, dtype=torch.float32).exp()


def fixed_preferences(k: int) -> list[tuple[float, ...]]:
    """Return the α's that evaluation uses: each objective alone, in order, then all alike."""
    alone = [tuple(float(i == j) for j in range(k)) for i in range(k)]
    return alone if k == 1 else [*alone, (1.0 / k,) * k]


def at_fixed_preferences(pairs: Sequence[LabelledPair], k: int) -> list[LabelledPair]:
    """Return every pair once at each fixed α; a pair that an objective did not decide is left out at it alone."""
    made: list[LabelledPair] = []
    for alpha in fixed_preferences(k):
        for item in pairs:
            counted = [a > 0 and not math.isnan(s) and s != 0 for a, s in zip(alpha, item.strengths, strict=True)]
            if any(counted):
                made.append(item._replace(alpha=alpha))
    return made


def _generator(config: TrainConfig, what: int, epoch: int, number: int) -> Generator:
    return np.random.default_rng([config.seed, what, epoch, number])
