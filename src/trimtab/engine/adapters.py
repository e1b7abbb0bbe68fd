"""LoRA adapters on slices of a batch: base rows and guide rows go through one forward, weights read once.

Inside a linear layer all rows get ``y = W x``; the rows of a guide get ``y += (α/r) · B (A x)`` on top, on their
slice of the batch only. Nothing is merged and no weight changes: the layers get a forward hook, and
:meth:`RowAdapters.remove` takes the hooks off again. The adapters whose rows have a preference each are in
:mod:`trimtab.engine.conditioned`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.quantized import QuantizedLinear

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"^(?P<module>.+)\.lora_(?P<which>A|B)\.(?P<part>weight|bias)$")

# Settings of a LoRA that say how it was trained or that the tensors themselves tell; every other setting must have
# its default, or the adapter is not one that a row delta reproduces (DoRA, aLoRA, layer replication, …).
_HARMLESS = {
    "peft_type",
    "task_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "use_rslora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "loftq_config",
    "eva_config",
    "runtime_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
}
# Other initialisations change the base's weights when the adapter is loaded, so the rows would need another base.
_INITS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Delta:
    """One adapted layer: y += (x Aᵀ) Bᵀ + c, with the scaling α/r already in Bᵀ and c.

    Attributes:
        a_t: (D_in, R).
        b_t: (R, D_out).
        bias: (D_out,) or ``None``.
    """

    a_t: Tensor
    b_t: Tensor
    bias: Tensor | None

    def hidden(self, x: Tensor, conditions: Any) -> Tensor:
        """Return x Aᵀ, (N, T, R), of N rows; ``conditions`` are for adapters that have some."""
        return x @ self.a_t


class NotSliceableError(Exception):
    """The adapter cannot run as a row delta; its message says why. Loading then takes the generic path."""


@dataclass(frozen=True)
class RowSlice:
    """Rows ``start`` to ``stop`` of a batch use the adapter in ``slot``.

    ``conditions`` are those of these rows (:class:`trimtab.engine.conditioned.RowConditions`), for an adapter that is
    conditioned on a preference.
    """

    slot: int
    start: int
    stop: int
    conditions: Any = None


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer that an adapter adds to: its sizes, and what its inputs are, however the weight is stored."""

    name: str
    d_in: int
    d_out: int
    dtype: torch.dtype
    device: torch.device

    def check(self, a: Tensor, b: Tensor) -> None:
        """Refuse factors of another size; ``a`` is (R, D_in), ``b`` (D_out, R).

        Raises:
            NotSliceableError: names the layer.
        """
        rank = a.shape[0]
        if a.shape != (rank, self.d_in) or b.shape != (self.d_out, rank):
            shapes = f"{tuple(b.shape)}·{tuple(a.shape)} for {self.d_out}×{self.d_in}"
            raise NotSliceableError(f"layer {self.name!r} has factors {shapes}")


def linear_layer(name: str, model: nn.Module) -> LinearLayer:
    """Return a layer of the backbone.

    Raises:
        NotSliceableError: there is none of that name, or it is no plain linear layer.
    """
    from transformers.pytorch_utils import Conv1D

    try:
        layer: Any = model.get_submodule(name)
    except AttributeError as error:
        raise NotSliceableError(f"the backbone has no layer {name!r}") from error
    if isinstance(layer, QuantizedLinear):
        return LinearLayer(name, layer.in_features, layer.out_features, layer.dtype, layer.codes.device)
    if isinstance(layer, Conv1D):
        d_in, d_out = layer.weight.shape
    elif type(layer) is nn.Linear:
        d_out, d_in = layer.weight.shape
    else:
        raise NotSliceableError(f"layer {name!r} is a {type(layer).__name__}")
    return LinearLayer(name, d_in, d_out, layer.weight.dtype, layer.weight.device)


def read_deltas(config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Delta]:
    """Return layer name → delta for a PEFT LoRA, in the dtype of the layer's inputs and on its device.

    Args:
        config: a ``peft.LoraConfig``.
        tensors: what ``adapter_model.safetensors`` holds.
        model: the backbone the layers are looked up in.

    Raises:
        NotSliceableError: the adapter does more than add a low-rank product to linear layers.
    """
    _check_config(config)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.match(name)
        if match is None:
            raise NotSliceableError(f"it holds {name!r}")
        module = match["module"].removeprefix(_PREFIX)
        parts.setdefault(module, {})[f"{match['which']}.{match['part']}"] = tensor
    return {module: _delta(module, found, config, model) for module, found in parts.items()}


def _check_config(config: Any) -> None:
    from peft import LoraConfig, PeftType

    if config.peft_type != PeftType.LORA:
        raise NotSliceableError(f"it is of type {config.peft_type}")
    if config.init_lora_weights not in _INITS_THAT_KEEP_THE_BASE:
        raise NotSliceableError(f"its initialisation {config.init_lora_weights!r} changes the base")
    default = LoraConfig().to_dict()
    for key, value in config.to_dict().items():
        if key not in _HARMLESS and value != default.get(key) and value:
            raise NotSliceableError(f"it sets {key}")


def _delta(name: str, parts: Mapping[str, Tensor], config: Any, model: nn.Module) -> Delta:
    if not {"A.weight", "B.weight"} <= set(parts) or "A.bias" in parts:
        raise NotSliceableError(f"layer {name!r} has {', '.join(sorted(parts))}")
    layer = linear_layer(name, model)
    a, b = parts["A.weight"].float(), parts["B.weight"].float()
    layer.check(a, b)
    rank = a.shape[0]
    alpha = config.lora_alpha
    for key, value in config.alpha_pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):  # PEFT's own rule: the first pattern that matches
            alpha = value
            break
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    bias = parts.get("B.bias")
    place: Any = {"dtype": layer.dtype, "device": layer.device}
    return Delta(
        a.t().contiguous().to(**place),
        (scaling * b).t().contiguous().to(**place),
        None if bias is None else (scaling * bias.float()).to(**place),
    )


class RowAdapters:
    """All adapters of one backbone. A *slot* is one adapter's number; rows name their slot in each forward."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: dict[str, dict[int, Delta]] = {}
        self._handles: list[Any] = []
        self._hooked: set[str] = set()
        self._slots = 0
        self._slices: tuple[RowSlice, ...] = ()

    def __len__(self) -> int:
        return self._slots

    def add(self, deltas: Mapping[str, Delta]) -> int:
        """Add an adapter; return its slot.

        Raises:
            NotSliceableError: an adapted layer does not see one row of its input for each row of the batch
                (experts that get gathered tokens, layers that flatten the batch).
        """
        self._check_rows_stay_apart(deltas)
        slot = self._slots
        self._slots += 1
        for name, delta in deltas.items():
            self._layers.setdefault(name, {})[slot] = delta
        return slot

    def delta(self, name: str, slot: int) -> Delta | None:
        """Return what the adapter of a slot adds to a layer, or ``None``."""
        return self._layers.get(name, {}).get(slot)

    def use(self, slices: Sequence[RowSlice]) -> None:
        """Set which rows of the coming forwards of the model itself use which slot."""
        self._slices = tuple(slices)
        if slices and len(self._hooked) < len(self._layers):
            # Only now: the fast forwards read the deltas themselves, and then the model stays as it was loaded.
            for name in [name for name in self._layers if name not in self._hooked]:
                hook = self._hook(self._layers[name])
                self._handles.append(self._model.get_submodule(name).register_forward_hook(hook))
                self._hooked.add(name)

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._layers.clear()

    def _hook(self, deltas: dict[int, Delta]) -> Any:
        def add_deltas(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for piece in self._slices:
                delta = deltas.get(piece.slot)
                if delta is None:
                    continue
                hidden = delta.hidden(inputs[0][piece.start : piece.stop], piece.conditions)
                y = output[piece.start : piece.stop].view(-1, output.shape[-1])  # a view: y is changed in place
                y.addmm_(hidden.flatten(0, 1), delta.b_t)
                if delta.bias is not None:
                    y.add_(delta.bias)

        return add_deltas

    def _check_rows_stay_apart(self, deltas: Mapping[str, Delta]) -> None:
        rows, tokens = 2, 3
        bad: list[str] = []

        def look(name: str) -> Any:
            def check(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if inputs[0].dim() != 3 or inputs[0].shape[:2] != (rows, tokens):
                    bad.append(name)

            return check

        handles = [self._model.get_submodule(n).register_forward_pre_hook(look(n)) for n in deltas]
        try:
            device = next(self._model.parameters()).device
            with torch.inference_mode():
                self._model(input_ids=torch.zeros((rows, tokens), dtype=torch.long, device=device))
        finally:
            for handle in handles:
                handle.remove()
        if bad:
            raise NotSliceableError(f"layer {bad[0]!r} does not see its input row by row")
