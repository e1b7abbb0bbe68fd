"""What MoSLoRA and PBLoRA have in common as PEFT methods: a layer on a linear layer, and the model around it."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trimtab.errors import ConfigError, GuidanceError, NumericalError
from trimtab.rewards.conditioned.live import Conditions, LivePreference


class _Merged(NamedTuple):
    alpha: Tensor
    made_bias: bool


class ConditionedLayer(nn.Module, BaseTunerLayer):
    """A linear layer with a low-rank addition that depends on α; ``x`` is (B, ..., D_IN), α (K,) or (B, K)."""

    condition_axes: ClassVar[int] = 1
    """How many axes the conditions of one row have."""

    def __init__(self, base_layer: Any, live: LivePreference, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.live = live
        self.name = name
        linear: Any = self.get_base_layer()
        self.transposed = isinstance(linear, Conv1D)
        shape: tuple[int, ...] = tuple(linear.weight.shape)
        self.in_features, self.out_features = shape if self.transposed else shape[::-1]
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True  # what peft.helpers.disable_input_dtype_casting switches
        self._disable_adapters = False
        self._merged: dict[str, _Merged] = {}

    def update_layer(self, adapter: str, config: Any, width: int) -> None:
        """Add an adapter; ``width`` is D_C, the length of the conditioning vector."""
        raise NotImplementedError

    def conditions(self, adapter: str, vector: Tensor) -> Conditions:
        """Return what this layer makes of the conditioning vector p, (..., D_C); at least float32."""
        raise NotImplementedError

    def row_delta(self, adapter: str, x: Tensor, conditions: Conditions) -> Tensor:
        """Return the addition to the base layer's output, (B, ..., D_OUT)."""
        raise NotImplementedError

    def merged_delta(self, adapter: str, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Return the same addition for one α as a weight, (D_OUT, D_IN), and a bias, (D_OUT,)."""
        raise NotImplementedError

    def has(self, adapter: str) -> bool:
        """Return whether this layer has the adapter."""
        return adapter in self.scaling

    def factor_dtype(self, adapter: str) -> torch.dtype:
        """Return the dtype in which the adapter computes."""
        return getattr(self, self.adapter_layer_names[0])[adapter].dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``base_layer(x)`` plus what each active adapter adds.

        Raises:
            GuidanceError: no preference is set, or one of another number of rows.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for adapter in self.active_adapters:
            if self.has(adapter):
                conditions = self.live.conditions(self, adapter)
                self._check_rows(x, conditions)
                inputs = self._cast_input_dtype(x, self.factor_dtype(adapter))
                result = result + self.row_delta(adapter, inputs, conditions)
        return result.to(dtype)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return ΔW for the α that is set, in the layout of the base's weight.

        Raises:
            GuidanceError: no single α is set.
        """
        weight, _ = self._delta_at(adapter, self.live.single(adapter))
        return weight.T if self.transposed else weight

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters, at the α that is set, to the base's weight and bias.

        A base layer without a bias gets one until :meth:`unmerge`.

        Raises:
            GuidanceError: no single α is set.
            NumericalError: ``safe_merge`` and the result is not finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if not self.has(adapter):
                continue
            alpha = self.live.single(adapter).detach().clone()
            made_bias = self._add(*self._delta_at(adapter, alpha), safe_merge)
            self._merged[adapter] = _Merged(alpha, made_bias)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take out what :meth:`merge` added, whatever α is set now."""
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            merged = self._merged.pop(adapter)
            weight, bias = self._delta_at(adapter, merged.alpha)
            self._add(-weight, None if bias is None else -bias, False)
            if merged.made_bias:
                self.get_base_layer().register_parameter("bias", None)

    def needs_bias(self, adapter: str) -> bool:
        """Return whether merging at the α that is set adds a bias to a base layer that has none."""
        linear: Any = self.get_base_layer()
        if not self.has(adapter) or linear.bias is not None:
            return False
        _, bias = self._delta_at(adapter, self.live.single(adapter))
        return bias is not None and bool(bias.any())

    def _delta_at(self, adapter: str, alpha: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.merged_delta(adapter, self.conditions(adapter, self.live.encode(adapter, alpha)))

    def _add(self, weight: Tensor, bias: Tensor | None, safe: bool) -> bool:
        base: Any = self.get_base_layer()
        own: Tensor = base.weight.data
        if not own.is_floating_point():
            raise ConfigError(
                f"The layer {self.name!r} holds quantised weights, to which nothing can be added: load the base "
                "unquantised to merge."
            )
        new = own + (weight.T if self.transposed else weight).to(own)
        if safe and not bool(torch.isfinite(new).all()):
            raise NumericalError(f"Merging {self.name!r} gives NaN or infinity: the adapter's training diverged.")
        base.weight.data = new
        if bias is None:
            return False
        if base.bias is not None:
            base.bias.data = base.bias.data + bias.to(base.bias)
            return False
        base.bias = nn.Parameter(bias.to(own), requires_grad=False)
        return True

    def _check_rows(self, x: Tensor, conditions: Conditions) -> None:
        known = next(c for c in conditions if c is not None)
        axes = known.ndim - self.condition_axes
        rows = known.shape[0] if axes else 1
        if axes == 2 and known.shape[:2] != x.shape[:2]:
            raise GuidanceError(
                f"The preference's index is for {list(known.shape[:2])} tokens, but {self.name!r} gets "
                f"{list(x.shape[:2])}: a per-token preference holds for one forward without a cache."
            )
        if rows not in (1, x.shape[0]):
            raise GuidanceError(
                f"The preference has {rows} rows, but the batch has {x.shape[0]} (in {self.name!r}): pass one row for "
                "each, e.g. alpha.repeat_interleave(n, 0) where n answers are sampled for each prompt."
            )


class ConditionedModel(BaseTuner):
    """The base model with conditioned layers in it; makes them and keeps what they share."""

    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    layer_class: ClassVar[type[ConditionedLayer]]

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.live = LivePreference()

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        width = self._conditioning_width(peft_config, adapter_name, target)
        self.live.sizes[adapter_name] = peft_config.input_width
        if peft_config.conditions_on_strength:
            self.live.told_strength.add(adapter_name)
        peft_config.fan_in_fan_out = isinstance(getattr(target, "base_layer", target), Conv1D)
        if isinstance(target, ConditionedLayer):
            target.update_layer(adapter_name, peft_config, width)
            return
        if not isinstance(target, nn.Linear | Conv1D):
            raise ConfigError(
                f"The module {current_key!r} is a {type(target).__name__}; a preference-conditioned adapter needs "
                "linear layers: name others in target_modules."
            )
        layer = self.layer_class(target, self.live, current_key)
        layer.update_layer(adapter_name, peft_config, width)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _conditioning_width(self, config: Any, adapter: str, target: Any) -> int:
        """Return D_C, after making what the adapter's layers share."""
        return config.input_width

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter."""
        super().delete_adapter(adapter_name)
        for table in (self.live.alphas, self.live.ready, self.live.sizes):
            table.pop(adapter_name, None)
        self.live.told_strength.discard(adapter_name)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._refuse_new_biases(adapter_names or list(self.active_adapters))
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _refuse_new_biases(self, adapters: list[str]) -> None:
        # The model's config says nothing of such biases, so saving and loading the merged model would lose them.
        for module in self.model.modules():
            if isinstance(module, ConditionedLayer) and any(module.needs_bias(adapter) for adapter in adapters):
                raise ConfigError(
                    f"The adapter shifts features (δ ≠ 0), but the base's {module.name!r} has no bias to merge that "
                    "into: export it as a LoRA ('trimtab export'), or train with modulation='scale'."
                )
