"""Small guides on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import tiny
from trimtab.models import Base, load_base, tokenizer_hash
from trimtab.rewards import BaseRef, GuideManifest, Objective, save_guide


def manifest(base: Base, *, id: str | None = None, revision: str | None = None, **fields: Any) -> GuideManifest:
    """A manifest that fits ``base``; ``id`` and ``revision`` replace the base's."""
    reference = BaseRef.of(base).model_copy(update={"id": id or base.id, "revision": revision})
    values: dict[str, Any] = {
        "objectives": (Objective(name="polite", description="Says please."),),
        "beta": 0.1,
        "base": reference,
        "tokenizer_hash": tokenizer_hash(base.tokenizer),
        "eos_token_id": 2,
    }
    return GuideManifest(**{**values, **fields})


def lora_on(base: Base, *, seed: int = 1, scale: float = 0.3, **options: Any) -> Any:
    """A PeftModel with random non-zero LoRA weights on a copy of the base's model."""
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    model: Any = get_peft_model(
        copy.deepcopy(base.model), LoraConfig(**{**values, **options}, task_type="CAUSAL_LM")
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def saved(base_folder: Path, folder: Path, *, seed: int = 1, adapter: str = "lora", **fields: Any) -> tuple[Base, Path]:
    """Save a guide for the base in ``base_folder``; returns the loaded base and the guide's folder."""
    base = load_base(str(base_folder), dtype="float32")
    made = manifest(base, adapter=adapter, **fields)
    if adapter == "lora":
        save_guide(folder, lora_on(base, seed=seed), made)
    else:
        save_guide(folder, tiny.make_llama(vocab_size=320, seed=seed), made, tokenizer=base.tokenizer)
    return base, folder
