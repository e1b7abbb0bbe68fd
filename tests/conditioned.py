"""The table of preference-conditioned methods, so that each test runs on all of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import get_peft_model
from transformers import GPT2LMHeadModel

from trimtab.rewards.moslora import MoSLoRAConfig
from trimtab.rewards.pblora import PBLoRAConfig

DESCRIPTIONS = {
    "helpful": "The answer does what was asked.",
    "harmless": "The answer avoids harm to anyone.",
    "concise": "The answer is short.",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "text-shared": {"generator": "shared"},
    "text-scale": {"modulation": "scale"},
    "text-shift": {"modulation": "shift"},
    "alpha": {"condition": "alpha"},
    "alpha-scale-shared": {"condition": "alpha", "modulation": "scale", "generator": "shared"},
    "learned": {"condition": "learned"},
    "learned-shared": {"condition": "learned", "generator": "shared", "trunk_dim": 5},
}
METHODS = [*(f"moslora-{name}" for name in OPTIONS), "pblora"]


def config_of(method: str, tokenizer: Any, *, k: int = 3, **options: Any) -> Any:
    names = dict(list(DESCRIPTIONS.items())[:k])
    options = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options}
    if method == "pblora":
        return PBLoRAConfig(objectives=list(names), r1=3, r2=2, lora_alpha=4, **options)
    chosen = OPTIONS[method.removeprefix("moslora-")]
    return MoSLoRAConfig.described(names, tokenizer, **{"r": 4, "lora_alpha": 8, **chosen, **options})


def adapted(model: Any, config: Any, *, seed: int = 1, scale: float = 0.3) -> Any:
    """A PeftModel on a copy of ``model`` whose adapter is random and far from zero."""
    if isinstance(model, GPT2LMHeadModel) and not config.target_modules <= {"c_attn", "c_proj", "c_fc"}:
        config.target_modules = {"c_attn", "c_fc"}
    peft_model: Any = get_peft_model(copy.deepcopy(model), config).eval()
    randomise(peft_model, seed=seed, scale=scale)
    return peft_model


def randomise(peft_model: Any, *, seed: int = 1, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "moslora_" in name or "pblora_" in name:
            # A text embedding has length √D, so its generators are drawn smaller for γ of order one.
            size = scale / 4 if "moslora_G" in name or "moslora_D" in name else scale
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
