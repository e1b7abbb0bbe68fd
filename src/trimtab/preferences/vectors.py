"""Preference vectors: points on the simplex over a guide's objectives, in the order in which the guide stores them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import cast

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import GuidanceError, did_you_mean

__all__ = ["Preference", "dirichlet", "lattice", "parse_preference", "preference_matrix", "preference_vector"]

Preference = str | Mapping[str, float] | Sequence[float] | Tensor
"""``"helpful=0.7,harmless=0.3"``, the same as a mapping, or the weights alone in the guide's order."""

TOLERANCE = 1e-6
"""How far the sum may be from one: what rounding to six digits or to float32 can do."""


def parse_preference(text: str) -> dict[str, float]:
    """Return ``{"helpful": 0.7, "harmless": 0.3}`` for ``"helpful=0.7,harmless=0.3"``.

    Raises:
        GuidanceError: a part is not ``name=number``, or a name comes twice.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = None
        if not name or not equals or value is None:
            raise GuidanceError(
                f"The preference {text!r} cannot be read at {part.strip()!r}: write it as helpful=0.7,harmless=0.3."
            )
        if name in weights:
            raise GuidanceError(f"The preference {text!r} gives {name!r} twice.")
        weights[name] = value
    return weights


def preference_vector(preference: Preference, objectives: Sequence[str], *, normalise: bool = False) -> Tensor:
    """Return α for a guide with these objectives; a name that is left out has weight 0.

    Args:
        preference: weights by name, or in the order of ``objectives``.
        objectives: the guide's objectives, in the order it stores them (``GuideManifest.objective_names``).
        normalise: divide by the sum instead of refusing weights that do not sum to one.

    Returns:
        α, (K,), float32, on the simplex.

    Raises:
        GuidanceError: an unknown objective (the nearest known one is named), too few or too many weights, a negative
            weight, NaN or infinity, or a sum other than one.
    """
    named = _by_name(parse_preference(preference) if isinstance(preference, str) else preference, objectives)
    for name, value in named.items():
        if not math.isfinite(value) or value < 0:
            raise GuidanceError(f"The preference gives {name!r} the weight {value}: weights are numbers from 0 to 1.")
    total = math.fsum(named.values())
    if normalise and total > 0:
        named = {name: value / total for name, value in named.items()}
    elif abs(total - 1) > TOLERANCE:
        raise GuidanceError(
            f"The preference {_shown(named)} sums to {total:g}, not to 1: correct it, or have it divided by its sum "
            "with normalise=True."
            if total > 0
            else f"The preference {_shown(named)} is zero everywhere: give at least one objective a weight."
        )
    return torch.tensor([named[name] for name in objectives], dtype=torch.float32)


def preference_matrix(
    preferences: Sequence[Preference], objectives: Sequence[str], *, normalise: bool = False
) -> Tensor:  # fmt: skip
    """Return one α a row, (B, K); see :func:`preference_vector`.

    Raises:
        GuidanceError: as for one vector; the row is named.
    """
    rows: list[Tensor] = []
    for i, preference in enumerate(preferences):
        try:
            rows.append(preference_vector(preference, objectives, normalise=normalise))
        except GuidanceError as error:
            raise GuidanceError(f"Preference {i}: {error}") from error
    return torch.stack(rows) if rows else torch.zeros(0, len(objectives))


def lattice(k: int, m: int) -> Tensor:
    """Return every α of k objectives whose weights are multiples of 1/m.

    Args:
        k: number of objectives, at least 1.
        m: number of steps from 0 to 1, at least 1.

    Returns:
        (N, K) with N = C(m + k - 1, k - 1), float32, ascending by the first weight, then the second, and so on: for
        k = 2 and m = 10 the eleven rows (0, 1), (0.1, 0.9), …, (1, 0).

    Raises:
        GuidanceError: k or m is below 1.
    """
    if k < 1 or m < 1:
        raise GuidanceError(f"A lattice needs at least one objective and one step, got k={k} and m={m}.")
    # Stars and bars: k - 1 bars among m + k - 1 places; the stars between two bars are one objective's steps.
    rows = [
        [right - left - 1 for left, right in zip((-1, *bars), (*bars, m + k - 1), strict=True)]
        for bars in combinations(range(m + k - 1), k - 1)
    ]
    return torch.tensor(rows, dtype=torch.float32) / m


def dirichlet(
    concentration: float | Sequence[float],
    n: int,
    *,
    k: int | None = None,
    generator: torch.Generator | np.random.Generator,
) -> Tensor:
    """Draw n preference vectors from a Dirichlet distribution, with a generator of the caller's (never a global one).

    Args:
        concentration: one number for all objectives (0.5 in PARM and UniARM; 1 is uniform), or one an objective.
        n: number of draws.
        k: number of objectives; needed where ``concentration`` is one number.
        generator: of torch or of NumPy; the draws are made on the CPU, so they are the same on every device.

    Returns:
        (N, K), float32.

    Raises:
        GuidanceError: a concentration that is not positive, or an unknown number of objectives.
    """
    if isinstance(concentration, int | float):
        if k is None:
            raise GuidanceError("dirichlet(0.5, n) does not say how many objectives there are: pass k=…")
        values = [float(concentration)] * k
    else:
        values = [float(value) for value in concentration]
    if not values or (k is not None and k != len(values)) or not all(0 < v < math.inf for v in values):
        raise GuidanceError(f"A Dirichlet over {k or len(values)} objectives needs as many positive numbers: {values}.")
    if isinstance(generator, torch.Generator):
        seed = torch.randint(2**31, (4,), generator=generator, device=generator.device).tolist()
        generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.dirichlet(values, size=n)).float()


def _by_name(
    preference: Mapping[str, float] | Sequence[float] | Tensor, objectives: Sequence[str]
) -> dict[str, float]:  # fmt: skip
    if isinstance(preference, Mapping):
        for name in preference:
            if name not in objectives:
                raise GuidanceError(f"The guide has no objective {name!r}.{did_you_mean(name, objectives)}")
        return {name: float(preference.get(name, 0.0)) for name in objectives}
    values = cast("list[float]", preference.tolist() if isinstance(preference, Tensor) else list(preference))
    if len(values) != len(objectives):
        raise GuidanceError(
            f"The preference has {len(values)} weights, the guide {len(objectives)} objectives: "
            f"{', '.join(objectives)}."
        )
    return dict(zip(objectives, (float(value) for value in values), strict=True))


def _shown(named: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value:g}" for name, value in named.items())
