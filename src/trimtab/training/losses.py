"""Preference losses as pure functions of log-probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.rewards.labelled import Ties
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
    r"""GenARM's loss (arXiv 2410.08193, the preference loss) for each pair.

    With the scaled margin :math:`m = \beta_r (\log\pi_r(y_w|x) - \log\pi_r(y_l|x)) - \gamma`, where log-probabilities
    are summed over the response tokens (EOS included), with no reference model and no length normalisation:

    - ``sigmoid``: :math:`-(1-\varepsilon)\log\sigma(m) - \varepsilon\log\sigma(-m)`, ε the labels taken to be wrong;
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


def mixed_preference_loss(
    logp_a: Tensor,
    logp_b: Tensor,
    strengths: Tensor,
    alpha: Tensor,
    *,
    beta: Tensor,
    global_weight: float = 0.0,
    ties: Ties = "drop",
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    loss_type: LossType = "sigmoid",
) -> Tensor:
    r"""PARM's and UniARM's loss for pairs judged on K objectives.

    .. math:: L = \sum_i \alpha_i L_i + \lambda L_{glob}

    L_i is :func:`preference_loss` with β_i, the answer that objective i prefers as chosen (arXiv 2505.06274: a sum of
    Bradley–Terry losses weighted by the preference under which both answers were read). The global term (arXiv
    2602.09538, as specified in our documentation) is

    .. math:: L_{glob} = -\log\sigma(\mathrm{sgn}(\sum_i \alpha_i\Delta_i)\, m), \quad
              m = (\sum_i \alpha_i\beta_i) (\log\pi_r(a|x) - \log\pi_r(b|x))

    With one β for all objectives, Σ_i α_i L_i is the cross-entropy of the soft label q = Σ_i α_i·[i prefers a]. An
    objective that did not judge a pair has no term in it. λ = 0 is PARM's loss.

    Args:
        logp_a: (B,) log π_r(a|x, α) of the first answer, nats.
        logp_b: (B,) of the second.
        strengths: (B, K) Δ_i: its sign says which answer objective i prefers, 0 is a tie, NaN is not judged.
        alpha: (B, K) each pair's preference vector, on the simplex.
        beta: (K,) β_i.
        global_weight: λ.
        ties: ``"drop"``: no term, as if not judged; ``"half"``: half a label for each answer, so q counts ½.
        margin: γ, as in :func:`preference_loss`.
        label_smoothing: ε, likewise.
        loss_type: of every term but the global one.

    Returns:
        (B,) float32, one loss a pair.
    """

    def term(sign: Tensor) -> Tensor:  # (B, K): the loss if objective i prefers a (sign 1) or b (sign −1)
        half = 0.5 * sign * (logp_a - logp_b).unsqueeze(1) * beta
        return preference_loss(
            half, -half, beta=1.0, margin=margin, label_smoothing=label_smoothing, loss_type=loss_type
        )

    known = strengths.nan_to_num(0.0)
    sign = torch.sign(known)
    single = torch.where(sign == 0, 0.0, term(sign))
    if ties == "half":
        one = torch.ones_like(sign)
        single = torch.where(strengths == 0, 0.5 * (term(one) + term(-one)), single)
    loss = (alpha * single).sum(1)
    if global_weight:
        scaled = (alpha * beta).sum(1) * (logp_a - logp_b)
        loss = loss - global_weight * F.logsigmoid(torch.sign((alpha * known).sum(1)) * scaled)
    return loss
