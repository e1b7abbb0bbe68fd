"""A conditioned guide as tensors, without a model around it: for decoding on slices of a batch, and for export.

An engine asks :meth:`ConditionedTensors.conditioning` once a request, and in each forward adds :meth:`row_delta` to the
output rows of the guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.errors import GuideError
from trimtab.rewards.conditioned.folder import split_tensors
from trimtab.rewards.conditioned.live import Conditions
from trimtab.rewards.conditioned.strength import condition_input
from trimtab.rewards.moslora.functional import conditioning_vector, modulated_delta, modulation
from trimtab.rewards.pblora.functional import bilinear_delta, mixture, right_factor


class LoraFactors(NamedTuple):
    """One layer of a plain LoRA with scaling 1: y += B (A x) + bias.

    Attributes:
        A: (R, D_IN).
        B: (D_OUT, R).
        bias: (D_OUT,) or ``None``.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ConditionedTensors:
    """The tensors of a conditioned guide.

    Attributes:
        config: MoSLoRA's or PBLoRA's config.
        layers: module name → factor name (``"A"``, ``"B"``, ``"G"`` …) → tensor.
        shared: what all layers share, by name (``"objectives"``, ``"trunk"``).
    """

    config: Any
    layers: Mapping[str, Mapping[str, Tensor]]
    shared: Mapping[str, Tensor]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives' names, in the order in which α counts them."""
        return tuple(self.config.objectives)

    def inputs(self, alpha: Tensor, weight: Tensor | float | None = None) -> Tensor:
        """Return what :meth:`conditioning` and :meth:`at` take: α, or [α, log w] for a guide that is told its pull.

        Args:
            alpha: (..., K).
            weight: w, the guide's whole pull after every strength (see :func:`condition_input`).

        Raises:
            GuidanceError: α has another length than the guide has objectives, or w is needed and is missing, not
                above 0, or of another shape.
        """
        return condition_input(self.config, alpha, weight)

    def conditioning(self, alpha: Tensor) -> dict[str, Conditions]:
        """Return module → what the layer makes of α; computed once a request, for it depends on :meth:`inputs` only.

        Args:
            alpha: (K,) or (B, K), or with one column more: from :meth:`inputs`.

        Returns:
            MoSLoRA: (γ, δ), each (..., R) or ``None``. PBLoRA: (M,), (..., R2, R2). The dots are () or (B,); nothing
            in it grows with the number of objectives.
        """
        raise NotImplementedError

    def row_delta(self, module: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return what the guide adds to a layer's output for its own rows of a batch.

        Args:
            module: the layer's name.
            x: the layer's input, (N, ..., D_IN); N rows.
            conditions: of this layer, with N rows, or without that axis for all rows.

        Returns:
            (N, ..., D_OUT) in the factors' dtype.
        """
        raise NotImplementedError

    def at(self, alpha: Tensor) -> dict[str, LoraFactors]:
        """Return module → the plain LoRA that equals this guide at one α, (K,), or at one [α, log w]."""
        raise NotImplementedError

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> ConditionedTensors:
        """Return a copy on a device; ``dtype`` is for the thin factors only, α's part stays as it is.

        In bfloat16, γ = 1 + G p would round away what training changes.
        """
        layers = {
            module: {
                name: tensor.to(device, dtype if name in self.computes else None)  # type: ignore[call-overload]
                for name, tensor in factors.items()
            }
            for module, factors in self.layers.items()
        }
        shared = {name: tensor.to(device) for name, tensor in self.shared.items()}
        return type(self)(self.config, layers, shared)

    @property
    def computes(self) -> tuple[str, ...]:
        """The factors that meet the layer's input."""
        return ("A", "B", "W1")


class MoSLoRATensors(ConditionedTensors):
    """A MoSLoRA guide's tensors."""

    def conditioning(self, alpha: Tensor) -> dict[str, Conditions]:
        """Return module → (γ, δ), each (..., R) or ``None``."""
        vector = conditioning_vector(
            alpha, self.shared.get("objectives"), self.shared.get("trunk"), self.config.condition_scale
        )
        return {name: modulation(vector, layer.get("G"), layer.get("D")) for name, layer in self.layers.items()}

    def row_delta(self, module: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return s·B( γ ⊙ (A x) + δ ), (N, ..., D_OUT)."""
        layer = self.layers[module]
        gamma, delta = conditions
        return modulated_delta(x, layer["A"], layer["B"], gamma, delta, self.config.scaling)

    def at(self, alpha: Tensor) -> dict[str, LoraFactors]:
        """Return module → (s·diag(γ) A, B, s·B δ)."""
        made: dict[str, LoraFactors] = {}
        for module, (gamma, delta) in self.conditioning(alpha).items():
            A, B, scaling = self.layers[module]["A"], self.layers[module]["B"], self.config.scaling
            left = A if gamma is None else gamma[:, None] * A
            made[module] = LoraFactors(scaling * left, B, None if delta is None else scaling * (B.to(delta) @ delta))
        return made


class PBLoRATensors(ConditionedTensors):
    """A PBLoRA guide's tensors."""

    def conditioning(self, alpha: Tensor) -> dict[str, Conditions]:
        """Return module → (M,), (..., R2, R2)."""
        return {name: (mixture(alpha, layer["C"]),) for name, layer in self.layers.items()}

    def row_delta(self, module: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return s·( B1 W1 A1 x + B2 M A2 x ), (N, ..., D_OUT)."""
        layer = self.layers[module]
        return bilinear_delta(x, layer["A"], layer["B"], layer["W1"], _only(conditions), self.config.scaling)

    def at(self, alpha: Tensor) -> dict[str, LoraFactors]:
        """Return module → (s·[W1 A1; M A2], B, None)."""
        made: dict[str, LoraFactors] = {}
        for module, conditions in self.conditioning(alpha).items():
            layer = self.layers[module]
            right = right_factor(layer["A"], layer["W1"], _only(conditions))
            made[module] = LoraFactors(self.config.scaling * right, layer["B"], None)
        return made


def make_tensors(config: Any, tensors: dict[str, Tensor]) -> ConditionedTensors:
    """Return the guide that a conditioned adapter's config and tensors (by PEFT's names) describe."""
    layers, shared = split_tensors(config, tensors)
    kinds: dict[str, type[ConditionedTensors]] = {"MOSLORA": MoSLoRATensors, "PBLORA": PBLoRATensors}
    return kinds[str(getattr(config.peft_type, "value", config.peft_type))](config, layers, shared)


def load_tensors(folder: str | Path) -> ConditionedTensors:
    """Return a conditioned guide's tensors, on the CPU, in their stored dtype, after every check of the two files.

    Raises:
        GuideError: the files are damaged or unsafe, or the guide takes no preference.
    """
    from trimtab.rewards.adapter import load_adapter_config, load_adapter_tensors
    from trimtab.rewards.conditioned.folder import config_class

    config = load_adapter_config(folder)
    if config_class(config.peft_type) is None:
        raise GuideError(
            f"The guide {str(folder)!r} is a plain LoRA, which takes no preference vector: give it a weight instead."
        )
    return make_tensors(config, load_adapter_tensors(folder))


def _only(conditions: Conditions) -> Tensor:
    M = conditions[0]
    if M is None:
        raise TypeError("PBLoRA's conditions are one mixture, never None.")
    return M
