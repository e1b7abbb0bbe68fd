"""The base model with PBLoRA layers in it."""

from __future__ import annotations

from trimtab.rewards.conditioned.tuner import ConditionedModel
from trimtab.rewards.pblora.config import PREFIX
from trimtab.rewards.pblora.layer import PBLoRALayer


class PBLoRAModel(ConditionedModel):
    """PEFT's model class for PBLoRA; its layers share nothing but the live preference."""

    prefix = PREFIX
    tuner_layer_cls = PBLoRALayer
    layer_class = PBLoRALayer
