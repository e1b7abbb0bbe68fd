"""How far off is a fitted preference, and how often does its interval hold the truth? Simulated users of known α.

python studies/fitted_preferences.py      (about a minute on one core; needs no model)
"""

from __future__ import annotations

import numpy as np
import torch

from trimtab.preferences.fitting import MarginSurface, fit_margins

USERS = 100


def simulate(k: int, shared: float, n: int, decisive: float) -> tuple[float, float, float]:
    """Mean error of α, share of intervals that hold it, mean width; margins correlate by ``shared``."""
    rng = np.random.default_rng([k, int(10 * shared), n, int(decisive)])
    error, held, width = [], [], []
    for alpha in rng.dirichlet([1.0] * k, size=USERS):
        margins = np.sqrt(1 - shared) * rng.standard_normal((n, k)) + np.sqrt(shared) * rng.standard_normal((n, 1))
        chooses_first = rng.random(n) < 1 / (1 + np.exp(-decisive * margins @ alpha))
        margins = torch.from_numpy(margins * np.where(chooses_first, 1, -1)[:, None])
        found = fit_margins(MarginSurface.linear(margins), range(n), resamples=200, folds=0)
        low, high = found.low.numpy(), found.high.numpy()
        error.append(np.abs(found.alpha.numpy() - alpha).mean())
        held.append(((low <= alpha) & (alpha <= high)).mean())
        width.append((high - low).mean())
    return float(np.mean(error)), float(np.mean(held)), float(np.mean(width))


if __name__ == "__main__":
    print(
        "| objectives | margins correlate | decisiveness s | pairs | mean error of α | intervals that hold it | width |"
    )
    print("|---|---|---|---|---|---|---|")
    everything = []
    for k in (2, 3):
        for shared in (0.0, 0.8):
            for decisive in (1, 3, 10):
                for n in (5, 20, 80):
                    row = simulate(k, shared, n, decisive)
                    everything.append(row)
                    error, held, width = row
                    print(
                        f"| {k} | {shared:g} | {decisive} | {n} | {error:.2f} | {held:.2f} | {width:.2f} |", flush=True
                    )
    error, held, width = np.mean(everything, axis=0)
    print(f"| all | | | | {error:.2f} | {held:.2f} | {width:.2f} |")
