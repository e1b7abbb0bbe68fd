"""Preference-conditioned adapters on slices of a batch: each row has its own α, and a step costs the same for any K.

All that a forward needs of a preference are its *conditions*: a few numbers of the adapter's rank for each layer
(MoSLoRA: γ and δ; PBLoRA: M). They are computed once a request by a :class:`Conditioner`, lie in one tensor for all
layers, and are stacked over the rows of a slice by :class:`RowConditions`, again only when rows come, go or change.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.engine.adapters import Delta, linear_layer
from trimtab.rewards.conditioned.live import Conditions
from trimtab.rewards.conditioned.tensors import ConditionedTensors, MoSLoRATensors
from trimtab.rewards.pblora.functional import right_factor


class RowConditions:
    """What the layers of one adapter make of the preferences of N rows.

    Attributes:
        rows: N tensors, (L, C, ...) each, one a row; rows of equal preference share one.
        stacked: (L·C, N, ...), the rows' conditions side by side.
        parts: L·C views of it, (N, ...) each: part c of layer l is number l·C + c.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = list(rows)
        # Layer first, so that what one layer reads is one block, and a forward makes no view of its own.
        self.stacked = torch.stack(self.rows, dim=2).flatten(0, 1)
        self.parts = self.stacked.unbind(0)

    @classmethod
    def of(cls, rows: Sequence[Tensor | None]) -> RowConditions | None:
        """Return those of rows that have some, which all rows of an adapter do or none."""
        found = [row for row in rows if row is not None]
        return cls(found) if found else None

    def select(self, rows: Sequence[int]) -> RowConditions:
        """Return those of the given rows, in their order."""
        return RowConditions([self.rows[row] for row in rows])


@dataclass(frozen=True)
class ModulatedDelta(Delta):
    """One layer of a MoSLoRA: y += ( γ ⊙ (x Aᵀ) + δ ) Bᵀ, with a γ and a δ for each row and s in Bᵀ.

    Attributes:
        gamma: number of the layer's γ among the parts, each (N, 1, R); ``None`` for γ = 1.
        delta: likewise δ; ``None`` for δ = 0.
    """

    gamma: int | None
    delta: int | None

    def hidden(self, x: Tensor, conditions: Any) -> Tensor:
        """Return γ ⊙ (x Aᵀ) + δ, (N, T, R) in the dtype of A; γ and δ are float32, for 1 + G p needs its digits."""
        h, parts = x @ self.a_t, conditions.parts
        if self.gamma is None:
            return h.add_(parts[self.delta])
        if self.delta is None:
            return h.mul_(parts[self.gamma])
        return torch.addcmul(parts[self.delta], parts[self.gamma], h, out=h)


@dataclass(frozen=True)
class BilinearDelta(Delta):
    """One layer of a PBLoRA: y += [x (W1 A1)ᵀ, x (M A2)ᵀ] Bᵀ, with an M for each row; W1 is in A, s in Bᵀ.

    Attributes:
        part: number of the layer's diag(1, Mᵀ) among the parts, each (N, R, R).
    """

    part: int

    def hidden(self, x: Tensor, conditions: Any) -> Tensor:
        """Return (x Aᵀ) diag(1, Mᵀ), (N, T, R)."""
        return torch.bmm(x @ self.a_t, conditions.parts[self.part])


class Conditioner:
    """Turns preferences into conditions, for one guide.

    Attributes:
        objectives: names of the objectives, in the order in which α counts them.
    """

    def __init__(self, tensors: ConditionedTensors, *, dtype: torch.dtype, device: torch.device) -> None:
        """Keep what depends on α, on the CPU; ``dtype`` and ``device`` are those of the layers' inputs."""
        thin = {
            name: {k: t for k, t in layer.items() if k not in tensors.computes}
            for name, layer in tensors.layers.items()
        }
        self.objectives = tensors.objectives
        self._tensors = type(tensors)(tensors.config, thin, tensors.shared)
        self._dtype, self._device = dtype, device
        self._made = functools.lru_cache(maxsize=256)(self._make)

    def key(self, alpha: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return what the conditions depend on, and nothing else.

        Args:
            alpha: K weights on the simplex.
            weight: the guide's w, which only a guide that is conditioned on it looks at.
        """
        # Where w is 0 the guide's scores are not added, so that any condition will do; log 0 would be none.
        inputs = self._tensors.inputs(torch.tensor(alpha), torch.tensor(weight or 1.0))
        return tuple(inputs.tolist())

    def __call__(self, alpha: Sequence[float], weight: float) -> Tensor:
        """Return the conditions of one row, (L, C, ...); the same object for a preference seen lately."""
        return self._made(self.key(alpha, weight))

    def _make(self, inputs: tuple[float, ...]) -> Tensor:
        with torch.inference_mode():
            found = self._tensors.conditioning(torch.tensor(inputs))
            return torch.stack([self._stacked(conditions) for conditions in found.values()]).to(self._device)

    def _stacked(self, conditions: Conditions) -> Tensor:
        if isinstance(self._tensors, MoSLoRATensors):
            return torch.stack([part for part in conditions if part is not None]).unsqueeze(1)  # (C, 1, R)
        (M,) = (part for part in conditions if part is not None)
        one = torch.eye(self._tensors.config.r1, dtype=M.dtype)
        return torch.block_diag(one, M.T).to(self._dtype).unsqueeze(0)  # (1, R, R)


def read_conditioned(tensors: ConditionedTensors, model: nn.Module) -> tuple[dict[str, Delta], Conditioner]:
    """Return layer name → delta, in the dtype of the layer's inputs, and what makes conditions.

    Args:
        tensors: the guide's.
        model: the backbone the layers are looked up in.

    Raises:
        NotSliceableError: an adapted layer is missing, no plain linear layer, or of another size.
    """
    deltas: dict[str, Delta] = {}
    place: dict[str, Any] = {}
    for number, (name, factors) in enumerate(tensors.layers.items()):
        layer = linear_layer(name, model)
        layer.check(factors["A"], factors["B"])
        place = {"dtype": layer.dtype, "device": layer.device}
        a, b = factors["A"].float(), tensors.config.scaling * factors["B"].float()
        if "W1" in factors:
            a = right_factor(a, factors["W1"], torch.eye(tensors.config.r2))
        kind, parts = _parts(number, factors)
        deltas[name] = kind(a.t().contiguous().to(**place), b.t().contiguous().to(**place), None, **parts)
    return deltas, Conditioner(tensors, **place)


def _parts(number: int, factors: Mapping[str, Tensor]) -> tuple[type[Delta], dict[str, int | None]]:
    """Return a layer's kind of delta, and which parts of the conditions are its own."""
    if "W1" in factors:
        return BilinearDelta, {"part": number}
    has_gamma, has_delta = "G" in factors, "D" in factors
    first = number * (has_gamma + has_delta)
    return ModulatedDelta, {
        "gamma": first if has_gamma else None,
        "delta": first + has_gamma if has_delta else None,
    }
