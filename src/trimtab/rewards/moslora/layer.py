"""A linear layer with a MoSLoRA."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.rewards.conditioned.live import Conditions, LivePreference
from trimtab.rewards.conditioned.tuner import ConditionedLayer
from trimtab.rewards.moslora.functional import merged_delta, modulated_delta, modulation


class MoSLoRALayer(ConditionedLayer):
    """h = W0 x + s·B( γ ⊙ (A x) + δ ), γ and δ of each row's own α.

    Attributes:
        moslora_A: (R, D_IN), Kaiming.
        moslora_B: (D_OUT, R), zero.
        moslora_G: (R, D_C), zero, where there is a γ.
        moslora_D: (R, D_C), zero, where there is a δ.
    """

    adapter_layer_names = ("moslora_A", "moslora_B", "moslora_G", "moslora_D")
    other_param_names = ("scaling", "moslora_dropout")

    def __init__(self, base_layer: Any, live: LivePreference, name: str) -> None:
        super().__init__(base_layer, live, name)
        self.moslora_A = nn.ParameterDict()
        self.moslora_B = nn.ParameterDict()
        self.moslora_G = nn.ParameterDict()
        self.moslora_D = nn.ParameterDict()
        self.moslora_dropout = nn.ModuleDict()

    def update_layer(self, adapter: str, config: Any, width: int) -> None:
        """Add an adapter; ``width`` is D_C."""
        self.scaling[adapter] = config.scaling
        self.moslora_dropout[adapter] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.moslora_A[adapter] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.moslora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, config.r))
        if config.scales:
            self.moslora_G[adapter] = nn.Parameter(torch.zeros(config.r, width))
        if config.shifts:
            self.moslora_D[adapter] = nn.Parameter(torch.zeros(config.r, width))
        nn.init.kaiming_uniform_(self.moslora_A[adapter], a=math.sqrt(5))
        if not config.init_weights:
            for table in (self.moslora_B, self.moslora_G, self.moslora_D):
                if adapter in table:
                    nn.init.normal_(table[adapter], std=0.1)
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def conditions(self, adapter: str, vector: Tensor) -> Conditions:
        """Return γ and δ, each (..., R) or ``None``."""
        return modulation(vector, *self._generators(adapter))

    def row_delta(self, adapter: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return s·B( γ ⊙ (A x) + δ ), (B, ..., D_OUT)."""
        gamma, delta = conditions
        A, B = self.moslora_A[adapter], self.moslora_B[adapter]
        return modulated_delta(self.moslora_dropout[adapter](x), A, B, gamma, delta, self.scaling[adapter])

    def merged_delta(self, adapter: str, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Return s·B diag(γ) A and s·B δ."""
        gamma, delta = conditions
        return merged_delta(self.moslora_A[adapter], self.moslora_B[adapter], gamma, delta, self.scaling[adapter])

    def _generators(self, adapter: str) -> tuple[Tensor | None, Tensor | None]:
        return self.moslora_G.get(adapter), self.moslora_D.get(adapter)
