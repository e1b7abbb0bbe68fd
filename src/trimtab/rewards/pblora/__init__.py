"""PBLoRA, PARM's adapter (arXiv 2505.06274): one guide for several objectives, with a preference in each row.

Importing this package registers the method with PEFT, so that ``PeftModel.from_pretrained`` loads its folders.
"""

from trimtab.rewards.conditioned import condition_input, conditioning, preference, set_preference
from trimtab.rewards.conditioned.registry import register
from trimtab.rewards.pblora.config import PREFIX, PBLoRAConfig
from trimtab.rewards.pblora.functional import bilinear_delta, merged_delta, mixture
from trimtab.rewards.pblora.layer import PBLoRALayer
from trimtab.rewards.pblora.model import PBLoRAModel

__all__ = [
    "PBLoRAConfig",
    "PBLoRALayer",
    "PBLoRAModel",
    "bilinear_delta",
    "condition_input",
    "conditioning",
    "merged_delta",
    "mixture",
    "preference",
    "set_preference",
]

register("pblora", PBLoRAConfig, PBLoRAModel, PREFIX)
