"""Preference losses as pure functions of log-probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.training.config import LossType


def preference_loss(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    *,
    beta: float,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    loss_type: LossType = "sigmoid",
) -> Tensor:
    r"""GenARM's loss (arXiv 2410.08193, eq. 5) for each pair.

    With the scaled margin :math:`m = \beta_r (\log\pi_r(y_w|x) - \log\pi_r(y_l|x)) - \gamma`, where the log-probabilities
    are summed over the response tokens (EOS included), with no reference model and no length normalisation:

    - ``sigmoid``: :math:`-(1-\varepsilon)\log\sigma(m) - \varepsilon\log\sigma(-m)`, ε the share of labels taken to be wrong;
    - ``hinge``: :math:`\max(0, 1 - m)`.

    Args:
        logp_chosen: (B,) log π_r(y_w|x), nats.
        logp_rejected: (B,) log π_r(y_l|x), nats.
        beta: β_r, what one nat of log-probability is worth as reward.
        margin: γ, subtracted inside σ.
        label_smoothing: ε in [0, 0.5); only for ``sigmoid``.
        loss_type: ``"sigmoid"`` (the paper's) or ``"hinge"``.

    Returns:
        (B,) float32, one loss a pair.
    """
    scaled = beta * (logp_chosen - logp_rejected) - margin
    if loss_type == "hinge":
        return torch.relu(1.0 - scaled)
    return -(1.0 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)
