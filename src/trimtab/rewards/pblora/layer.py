"""A linear layer with a PBLoRA."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.rewards.conditioned.live import Conditions, LivePreference
from trimtab.rewards.conditioned.tuner import ConditionedLayer
from trimtab.rewards.pblora.functional import bilinear_delta, merged_delta, mixture


class PBLoRALayer(ConditionedLayer):
    """h = W0 x + s·( B1 W1 A1 x + B2 (Σ_i α_i C_i) A2 x ), with each row's own α.

    Attributes:
        pblora_A: [A1; A2], (R1 + R2, D_IN), Kaiming.
        pblora_B: [B1 B2], (D_OUT, R1 + R2), zero.
        pblora_W1: (R1, R1), Kaiming.
        pblora_C: (K, R2, R2), Kaiming; for a guide told its pull one more, zero, which log w multiplies.
    """

    adapter_layer_names = ("pblora_A", "pblora_B", "pblora_W1", "pblora_C")
    other_param_names = ("scaling", "pblora_dropout")
    condition_axes: ClassVar[int] = 2

    def __init__(self, base_layer: Any, live: LivePreference, name: str) -> None:
        super().__init__(base_layer, live, name)
        self.pblora_A = nn.ParameterDict()
        self.pblora_B = nn.ParameterDict()
        self.pblora_W1 = nn.ParameterDict()
        self.pblora_C = nn.ParameterDict()
        self.pblora_dropout = nn.ModuleDict()

    def update_layer(self, adapter: str, config: Any, width: int) -> None:
        """Add an adapter; ``width`` is K, or K + 1 for a guide that is told its pull."""
        self.scaling[adapter] = config.scaling
        self.pblora_dropout[adapter] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.pblora_A[adapter] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.pblora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.pblora_W1[adapter] = nn.Parameter(torch.empty(config.r1, config.r1))
        self.pblora_C[adapter] = nn.Parameter(torch.empty(width, config.r2, config.r2))
        for matrix in (self.pblora_A[adapter], self.pblora_W1[adapter], *self.pblora_C[adapter]):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        if config.conditions_on_strength and config.init_weights:
            nn.init.zeros_(self.pblora_C[adapter][-1])  # it starts without a say, as MoSLoRA's generators do
        if not config.init_weights:
            nn.init.normal_(self.pblora_B[adapter], std=0.1)
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def conditions(self, adapter: str, vector: Tensor) -> Conditions:
        """Return (M,), (..., R2, R2); the conditioning vector is the input itself, α or [α, log w]."""
        return (mixture(vector, self.pblora_C[adapter]),)

    def row_delta(self, adapter: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return s·( B1 W1 A1 x + B2 M A2 x ), (B, ..., D_OUT)."""
        A, B, W1 = self._factors(adapter)
        return bilinear_delta(self.pblora_dropout[adapter](x), A, B, W1, _only(conditions), self.scaling[adapter])

    def merged_delta(self, adapter: str, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Return s·( B1 W1 A1 + B2 M A2 ); there is no bias."""
        A, B, W1 = self._factors(adapter)
        return merged_delta(A, B, W1, _only(conditions), self.scaling[adapter]), None

    def _factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        return self.pblora_A[adapter], self.pblora_B[adapter], self.pblora_W1[adapter]


def _only(conditions: Conditions) -> Tensor:
    M = conditions[0]
    if M is None:
        raise TypeError("PBLoRA's conditions are one mixture, never None.")
    return M
