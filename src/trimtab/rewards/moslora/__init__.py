"""MoSLoRA, UniARM's adapter (arXiv 2602.09538): one guide for several objectives, with a preference in each row.

Importing this package registers the method with PEFT, so that ``PeftModel.from_pretrained`` loads its folders.
"""

from trimtab.rewards.conditioned import condition_input, conditioning, preference, set_preference
from trimtab.rewards.conditioned.registry import register
from trimtab.rewards.moslora.config import PREFIX, MoSLoRAConfig
from trimtab.rewards.moslora.encoder import ObjectiveEncoder, embed_descriptions
from trimtab.rewards.moslora.functional import merged_delta, mixed_vector, modulated_delta, modulation
from trimtab.rewards.moslora.layer import MoSLoRALayer
from trimtab.rewards.moslora.model import MoSLoRAModel

__all__ = [
    "MoSLoRAConfig",
    "MoSLoRALayer",
    "MoSLoRAModel",
    "ObjectiveEncoder",
    "condition_input",
    "conditioning",
    "embed_descriptions",
    "merged_delta",
    "mixed_vector",
    "modulated_delta",
    "modulation",
    "preference",
    "set_preference",
]

register("moslora", MoSLoRAConfig, MoSLoRAModel, PREFIX)
