"""Linear layers of one input as one product, adapters included: fewer and larger operations on the same numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.engine.adapters import Delta, RowAdapters
from trimtab.engine.conditioned import BilinearDelta, ModulatedDelta, RowConditions
from trimtab.engine.shape import Linear
from trimtab.models.quantized import QuantizedWeight

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def lay_side_by_side(model: nn.Module) -> None:
    """Move the weights of layers that read the same input next to each other, so that one product can read them all.

    The model stays what it was: its weights are views of the memory they share.
    """
    for parent in model.modules():
        for names in _SAME_INPUT:
            layers: list[Any] = [getattr(parent, name, None) for name in names]
            if not all(type(layer) is nn.Linear and type(layer.weight) is nn.Parameter for layer in layers):
                continue
            if _together([layer.weight.data for layer in layers]) is not None:
                continue  # another engine on this model reads them where they are
            if len({(layer.weight.dtype, layer.weight.device) for layer in layers}) == 1:
                together = torch.cat([layer.weight.detach() for layer in layers])
                parts = together.split([layer.weight.shape[0] for layer in layers])
                for layer, part in zip(layers, parts, strict=True):
                    layer.weight.data = part


@dataclass(frozen=True)
class Product:
    """One or more linear layers of one input as one: y = x Wᵀ + b with their outputs side by side.

    Attributes:
        linears: the layers, in order.
        weight: (Σ D_out, D_in), no copy.
        bias: (Σ D_out,) or ``None``.
    """

    linears: tuple[Linear, ...]
    weight: Tensor | QuantizedWeight
    bias: Tensor | None

    @property
    def sizes(self) -> list[int]:
        """D_out of each layer."""
        return [linear.d_out for linear in self.linears]

    def __call__(self, x: Tensor) -> Tensor:
        """Return y (N, Σ D_out) of inputs (N, D_in)."""
        weight = self.weight
        if isinstance(weight, QuantizedWeight):
            weight = weight.dequantize(x.dtype)
        return F.linear(x, weight, self.bias)


def products(linears: Sequence[Linear]) -> list[Product]:
    """Return the layers as one product where their weights lie side by side, else as one each."""
    together = _together([linear.weight for linear in linears])
    if together is None:
        return [Product((linear,), linear.weight, linear.bias) for linear in linears]
    biases = [linear.bias for linear in linears]
    bias = None
    if any(b is not None for b in biases):
        like = together[:, 0]
        parts = [like.new_zeros(n.d_out) if b is None else b for n, b in zip(linears, biases, strict=True)]
        bias = torch.cat(parts)
    return [Product(tuple(linears), together, bias)]


def _together(weights: Sequence[Tensor | QuantizedWeight]) -> Tensor | None:
    """Return matrices that follow each other in one piece of memory as one matrix, or ``None``."""
    tensors = [weight for weight in weights if type(weight) is Tensor]
    if len(tensors) < len(weights) or len(tensors) < 2 or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    for one, after in itertools.pairwise(tensors):
        same = one.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
        if not same or one.storage_offset() + one.numel() != after.storage_offset():
            return None
    first = tensors[0]
    return first.as_strided((sum(len(tensor) for tensor in tensors), first.shape[1]), (first.shape[1], 1))


@dataclass(frozen=True)
class Conditions:
    """Conditions of rows as the fused deltas number them; see :class:`trimtab.engine.conditioned.RowConditions`."""

    parts: Sequence[Tensor]


class SlotDeltas:
    """What one adapter adds to products.

    Attributes:
        deltas: name of a product's first layer → its delta.
    """

    def __init__(self, adapters: RowAdapters, slot: int, every: Sequence[Product]) -> None:
        self.deltas: dict[str, Delta] = {}
        self._recipes: list[tuple[Callable[[Sequence[Tensor]], Tensor], list[int]]] = []
        for product in every:
            found = [adapters.delta(linear.name, slot) for linear in product.linears]
            if any(delta is not None for delta in found):
                self.deltas[product.linears[0].name] = self._fused(product, found)

    def conditions(self, rows: RowConditions) -> Conditions:
        """Return rows' conditions in the order of these deltas."""
        return Conditions([make([rows.parts[i] for i in numbers]) for make, numbers in self._recipes])

    def _fused(self, product: Product, deltas: Sequence[Delta | None]) -> Delta:
        own = [delta for delta in deltas if delta is not None]
        one = own[0]
        a_t, b_t, bias = one.a_t, one.b_t, one.bias
        if len(deltas) > 1:
            a_t = torch.cat([delta.a_t for delta in own], dim=1)
            rows = [d.b_t if d else one.b_t.new_zeros((0, n)) for d, n in zip(deltas, product.sizes, strict=True)]
            b_t = torch.block_diag(*rows)
            if any(delta.bias is not None for delta in own):
                parts = [
                    one.b_t.new_zeros(n) if d is None or d.bias is None else d.bias
                    for d, n in zip(deltas, product.sizes, strict=True)
                ]
                bias = torch.cat(parts)
        numbers: dict[str, int | None] = {}
        if isinstance(one, ModulatedDelta):
            numbers = {"gamma": self._number(_cat, own, "gamma"), "delta": self._number(_cat, own, "delta")}
        elif isinstance(one, BilinearDelta):
            numbers = {"part": self._number(_block_diagonal, own, "part")}
        return dataclasses.replace(one, a_t=a_t, b_t=b_t, bias=bias, **numbers)

    def _number(self, make: Callable[[Sequence[Tensor]], Tensor], deltas: Sequence[Delta], part: str) -> int | None:
        old: list[int | None] = [getattr(delta, part) for delta in deltas]
        known = [number for number in old if number is not None]
        if not known:
            return None
        self._recipes.append((make, known))
        return len(self._recipes) - 1


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def _block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    """Return (N, Σ R, Σ R) from (N, R, R) blocks."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.shape[-1] for part in parts]
    made = parts[0].new_zeros((len(parts[0]), sum(sizes), sum(sizes)))
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        made[:, start : start + size, start : start + size] = part
        start += size
    return made
