"""The base model with MoSLoRA layers in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import ConfigError
from trimtab.rewards.conditioned.tuner import ConditionedModel
from trimtab.rewards.moslora.config import PREFIX, encode_description
from trimtab.rewards.moslora.encoder import ObjectiveEncoder, embed_descriptions
from trimtab.rewards.moslora.layer import MoSLoRALayer


class MoSLoRAModel(ConditionedModel):
    """PEFT's model class for MoSLoRA; the objectives' embeddings lie here, once for all layers."""

    prefix = PREFIX
    tuner_layer_cls = MoSLoRALayer
    layer_class = MoSLoRALayer

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self.moslora_encoder = nn.ModuleDict()
        self.live.encoders = self.moslora_encoder  # type: ignore[assignment]  # a ModuleDict is a mapping in all but name

    def _conditioning_width(self, config: Any, adapter: str, target: Any) -> int:
        if adapter not in self.moslora_encoder:
            embedding: Tensor | None = None
            if config.condition == "text":
                embedding = self.model.get_input_embeddings().weight
            self.moslora_encoder[adapter] = ObjectiveEncoder(config, embedding)
            self._move_adapter_to_device_of_base_layer(adapter, target.weight.device)
        encoder: Any = self.moslora_encoder[adapter]
        return encoder.width

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the encoder with the layers; PEFT calls this by name on each module after loading."""
        encoder = self.moslora_encoder[adapter_name]
        if not any(parameter.is_meta for parameter in encoder.parameters()):
            layers = (m for m in self.model.modules() if isinstance(m, MoSLoRALayer) and m.has(adapter_name))
            encoder.to(device or next(layers).weight.device)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters; what their layers share is trained with them."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, encoder in self.moslora_encoder.items():
            encoder.requires_grad_(name in active and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.moslora_encoder:
            del self.moslora_encoder[adapter_name]

    def add_objective(self, name: str, description: str, tokenizer: Any, *, adapter: str = "default") -> None:
        """Add an objective by its description alone; it becomes the last entry of α, before log w where w is told.

        Args:
            name: a new name.
            description: one sentence on what is preferred.
            tokenizer: the base's.
            adapter: the adapter meant.

        Raises:
            ConfigError: the name is taken, or the guide's condition is not 'text'.
        """
        config: Any = self.peft_config[adapter]
        if config.condition != "text":
            raise ConfigError(
                f"A guide with condition={config.condition!r} knows only the objectives it was trained on: train one "
                "with condition='text' to add objectives by description."
            )
        if name in config.objectives:
            raise ConfigError(f"There is an objective {name!r} already: {', '.join(config.objectives)}.")
        ids = encode_description(description, tokenizer)
        encoder: Any = self.moslora_encoder[adapter]
        row = embed_descriptions([ids], self.model.get_input_embeddings().weight.detach())
        known = len(config.objectives)  # log w's row, if there is one, stays the last
        rows: Tensor = encoder.objectives
        encoder.objectives = torch.cat([rows[:known], row.to(rows), rows[known:]])
        config.objectives = [*config.objectives, name]
        config.descriptions = [*config.descriptions, description]
        config.description_token_ids = [*config.description_token_ids, ids]
        self.live.sizes[adapter] = config.input_width
        for table in (self.live.alphas, self.live.ready):
            table.pop(adapter, None)
