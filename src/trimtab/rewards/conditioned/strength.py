"""What a conditioned guide is told: the preference α, and where it is made for that, the pull w of its decoding.

One guide that is trained for the way it is decoded is exact for one w. Told w, it can be exact for each: its input is
[α, log w]. At w = 1 that is [α, 0], so that it starts as a guide that is told nothing but α.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.errors import GuidanceError

STRENGTH = "How strongly the answer is steered away from what would be said anyway."
"""The default sentence that stands for log w where objectives are told by their descriptions."""


def condition_input(config: Any, alpha: Tensor, weight: Tensor | float | None = None) -> Tensor:
    """Return what a guide's layers are conditioned on: α, or [α, log w] for a guide that is told its pull.

    Gradients flow to both.

    Args:
        config: MoSLoRA's or PBLoRA's.
        alpha: (..., K).
        weight: w, the guide's whole pull after every strength, above 0: a number, or (...) for one a row of α; both
            are broadcast. Guides that are not told it do not read it.

    Returns:
        (..., K), or (..., K + 1), in the dtype of ``alpha``.

    Raises:
        GuidanceError: α has another length than the guide has objectives, or w is missing, not above 0, or of another
            shape.
    """
    size = len(config.objectives)
    if alpha.ndim == 0 or alpha.shape[-1] != size:
        raise GuidanceError(
            f"A preference of shape {list(alpha.shape)} does not fit a guide with {size} objectives: its last axis "
            f"counts them in their stored order, {', '.join(config.objectives)}."
        )
    if not config.conditions_on_strength:
        return alpha
    if weight is None:
        raise GuidanceError("This guide is told how strongly it pulls (conditions_on_strength): give its weight w.")
    pull = torch.as_tensor(weight, dtype=alpha.dtype, device=alpha.device)
    if not bool(((pull > 0) & torch.isfinite(pull)).all()):
        raise GuidanceError(
            f"The weight {_shown(pull)} of a guide that is told its pull must be above 0, for log w is its "
            "input: leave the guide out instead of giving it 0."
        )
    try:
        rows = torch.broadcast_shapes(alpha.shape[:-1], pull.shape)
    except RuntimeError as error:
        raise GuidanceError(
            f"Weights of shape {list(pull.shape)} do not fit preferences of shape {list(alpha.shape)}: give one "
            "number, or one for each preference."
        ) from error
    return torch.cat([alpha.expand(*rows, size), pull.log().expand(rows).unsqueeze(-1)], -1)


def _shown(pull: Tensor) -> str:
    """Return a pull that cannot be used, the first of them, in few digits."""
    wrong = pull.flatten()[~((pull > 0) & torch.isfinite(pull)).flatten()]
    return f"{float(wrong[0]):g}"
