"""The shape of a Llama-like decoder: what the fast forwards need to know of a model, whatever its family is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trimtab.models.quantized import QuantizedWeight


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b.

    Attributes:
        name: path of the module in the transformers model, by which adapters know it.
        weight: (D_out, D_in), the model's own tensor and not a copy, or quantised.
        bias: (D_out,) or ``None``.
    """

    name: str
    weight: Tensor | QuantizedWeight
    bias: Tensor | None
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Layer:
    """One decoder layer: x += o(attention(norm(x))); x += down(act(gate(norm(x))) ⊙ up(norm(x))).

    Norms are float32 vectors that already hold what multiplies the normalised input (Gemma's 1 + w, for instance).

    Attributes:
        q_norm: (D,) RMS norm of each query head before RoPE, or ``None``; likewise ``k_norm``.
        attention_out_norm: (H,) RMS norm of what attention adds, before it is added, or ``None``.
        mlp_out_norm: likewise of what the MLP adds.
        rope: which of the shape's RoPE tables; ``None`` for no positions.
        window: each token sees the last ``window`` tokens, itself included; ``None`` for all.
    """

    input_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    attention_out_norm: Tensor | None
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    mlp_out_norm: Tensor | None
    rope: int | None
    window: int | None


@dataclass(frozen=True)
class Shape:
    """A whole decoder.

    Attributes:
        embedding: (V_in, H).
        embedding_scale: multiplies embeddings (in the model's dtype, as Gemma rounds it).
        ropes: (cos, sin) tables, each (P, D_rot / 2) float32 for P positions; halves are rotated, not pairs.
        attention_scale: multiplies q·k.
        attention_softcap: c in c·tanh(score / c), or ``None``; likewise ``logit_softcap``.
        head: from hidden state to logits.
    """

    layers: Sequence[Layer]
    embedding: Tensor
    embedding_scale: float
    final_norm: Tensor
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    activation: Literal["silu", "gelu_tanh"]
    ropes: Sequence[tuple[Tensor, Tensor]]
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    dtype: torch.dtype
    context_length: int

    @property
    def hidden(self) -> int:
        """H, the width of the residual stream."""
        return int(self.embedding.shape[1])
