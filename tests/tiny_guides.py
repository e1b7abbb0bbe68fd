"""Tiny guides on disk: a random LoRA (any options) or full model, saved as a real guide folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from trimtab.models import Base, end_of_response_id, load_base, tokenizer_hash
from trimtab.rewards.artifact import BaseRef, GuideManifest, Objective, save_guide


def manifest_for(base: Base, objective: str = "polite", **changes: Any) -> GuideManifest:
    return GuideManifest(
        objectives=(Objective(name=objective),),
        beta=0.1,
        base=BaseRef.of(base),
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=end_of_response_id(base.tokenizer, "x"),
        chat_template=changes.pop("chat_template", base.tokenizer.chat_template),
        **changes,
    )


def random_lora(model: Any, *, seed: int = 1, scale: float = 0.15, r: int = 4, lora_alpha: int = 8, **options: Any):
    """A PeftModel on a COPY of ``model`` with non-zero random adapter weights."""
    is_gpt2 = type(model).__name__.startswith("GPT2")
    options.setdefault("target_modules", ["c_attn", "c_proj", "c_fc"] if is_gpt2 else "all-linear")
    options.setdefault("fan_in_fan_out", is_gpt2)
    config = LoraConfig(r=r, lora_alpha=lora_alpha, task_type="CAUSAL_LM", **options)
    peft_model = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            elif "magnitude" in name:
                parameter.mul_(1 + scale * torch.rand(parameter.shape, generator=generator))
            elif "modules_to_save" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return peft_model.eval()


def save_lora_guide(
    folder: Path,
    base: Base | Path,
    *,
    objective: str = "polite",
    manifest: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    base = base if isinstance(base, Base) else load_base(str(base), dtype="float32")
    save_guide(folder, random_lora(base.model, **options), manifest_for(base, objective, **(manifest or {})))
    return folder
