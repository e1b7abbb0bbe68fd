"""From α to the conditioning vector: the objectives' embeddings and the trunk that all layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.rewards.moslora.config import MoSLoRAConfig
from trimtab.rewards.moslora.functional import conditioning_vector


def embed_descriptions(token_ids: Sequence[Sequence[int]], embedding: Tensor) -> Tensor:
    """Return o_i: the layer-normed mean of the input embeddings of each description's tokens.

    Args:
        token_ids: K lists.
        embedding: the frozen input embedding, (V, D).

    Returns:
        (K, D) in float32; each row has mean 0 and variance 1.
    """
    rows = [embedding[torch.tensor(list(ids), device=embedding.device)].float().mean(0) for ids in token_ids]
    return F.layer_norm(torch.stack(rows), (embedding.shape[1],))


class ObjectiveEncoder(nn.Module):
    """p = c·Σ_i α_i o_i, or tanh(T p) with a shared trunk T; the o_i are stored in the checkpoint.

    Attributes:
        objectives: the o_i, (K, D_O): a buffer (text), a parameter (learned) or ``None`` (p = α). A guide that is told
            its pull has one row more, the last, which log w multiplies.
        trunk: T, (D_H, D_O), or ``None``.
        width: D_C, the length of what it returns.
    """

    def __init__(self, config: MoSLoRAConfig, embedding: Tensor | None) -> None:
        super().__init__()
        self.scale = config.condition_scale
        self.objectives: Tensor | None = None
        self.trunk: Tensor | None = None
        width = config.input_width
        if config.condition == "text" and embedding is not None:
            del self.objectives
            self.register_buffer("objectives", embed_descriptions(config.embedded_token_ids, embedding.detach()))
            width = embedding.shape[1]
        elif config.condition == "learned":
            width = config.objective_dim
            self.objectives = nn.Parameter(torch.randn(config.input_width, width))
        if config.generator == "shared":
            self.trunk = nn.Parameter(torch.empty(config.trunk_dim, width))
            nn.init.kaiming_uniform_(self.trunk, a=math.sqrt(5))
            width = config.trunk_dim
        self.width = width

    def forward(self, alpha: Tensor) -> Tensor:
        """Return the conditioning vector, (..., D_C), for α, (..., K), or [α, log w]; at least float32."""
        return conditioning_vector(alpha, self.objectives, self.trunk, self.scale)
