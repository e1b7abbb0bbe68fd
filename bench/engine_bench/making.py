"""Models, guides and prompts to measure with. Their weights may be random: speed does not depend on what they learnt."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from trimtab.models import Base, encode_prompt, end_of_response_id, load_base, load_tokenizer, tokenizer_hash
from trimtab.models.loading import resolve_device, resolve_dtype
from trimtab.models.quantizing import quantize
from trimtab.rewards.artifact import BaseRef, GuideManifest, Objective, save_guide
from trimtab.rewards.moslora import MoSLoRAConfig

ARMS = ("arm-1", "arm-2", "arm-3", "arm-4")
UNIARMS = {"uniarm-2": 2, "uniarm-8": 8}
RANK = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# hidden, intermediate, layers, heads, key-value heads
SHAPES = {
    "llama-7b": (4096, 11008, 32, 32, 32),
    "llama-1b": (2048, 8192, 16, 32, 8),
    "tiny": (64, 128, 2, 4, 2),
}
TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who its now find long down day did get come made may part"
)


def make_base(options: Any, quantization: str | None = None) -> Base:
    """Return the base that the options ask for: a real one, or one of a known shape with random weights."""
    if not options.shape:
        return load_base(options.base, dtype=options.dtype, device=options.device, quantization=quantization)
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads = SHAPES[options.shape]
    tokenizer = load_tokenizer(options.base)
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # the tokenizer's, whatever the shape's own vocabulary is
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    device = resolve_device(options.device)
    default = torch.get_default_dtype()
    torch.manual_seed(0)  # a second process makes the same weights
    torch.set_default_dtype(resolve_dtype(options.dtype, options.device))
    try:
        with device:
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.eval().requires_grad_(False)
    base = Base(model, tokenizer, f"{options.shape} (random weights)", None, Path())
    return base if quantization is None else quantised(base, quantization, copied=False)


def quantised(base: Base, name: str, *, copied: bool = True) -> Base:
    """Return a base with int8 or int4 weights: a copy, or the base itself changed."""
    fingerprint = base.fingerprint
    model = copy.deepcopy(base.model) if copied else base.model
    quantize(model, name)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(base, model=model, quantization=name, loaded_fingerprint=fingerprint)


def make_guides(base: Base, folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Save the named guides with random weights; return name → folder."""
    return {name: _make_guide(base, folder / name, name, seed) for seed, name in enumerate(names)}


def _make_guide(base: Base, folder: Path, name: str, seed: int) -> Path:
    k = UNIARMS.get(name, 1)
    objectives = [f"o{i}" for i in range(k)]
    config: Any = LoraConfig(**RANK)  # pyright: ignore[reportArgumentType]
    if k > 1:
        described = {o: f"The answer is good in way number {i}." for i, o in enumerate(objectives)}
        config = MoSLoRAConfig.described(described, base.tokenizer, **RANK)
    model: Any = get_peft_model(copy.deepcopy(base.model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    manifest = GuideManifest(
        objectives=tuple(Objective(name=o) for o in objectives),
        beta=1.0,
        adapter="moslora" if k > 1 else "lora",
        base=BaseRef.of(base),
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=end_of_response_id(base.tokenizer, "x"),
        chat_template=base.tokenizer.chat_template,
    )
    save_guide(folder, model, manifest)
    return folder


@functools.lru_cache(maxsize=1)
def _whole_words(tokenizer: Any) -> tuple[str, ...]:
    """Return the words that are one token each wherever they stand."""
    return tuple(
        w for w in TEXT.split() if all(len(encode_prompt(tokenizer, t)) == n for t, n in ((w, 1), (f"{w} {w}", 2)))
    )


def make_prompt(tokenizer: Any, tokens: int, seed: int) -> tuple[str, list[int]]:
    """Return a text of exactly so many tokens, and the tokens."""
    words = _whole_words(tokenizer)
    if words:
        text = " ".join(random.Random(seed).choices(words, k=tokens))
    else:  # a tokenizer of bytes
        text = "".join(random.Random(seed).choices("acgt", k=tokens))
    ids = list(encode_prompt(tokenizer, text))
    if len(ids) != tokens:
        raise SystemExit(f"A prompt of {tokens} tokens came out as {len(ids)}: this tokenizer merges whole words.")
    return text, ids


def make_prompts(tokenizer: Any, rows: int, tokens: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Return prompts of one length, as texts and as ids; those of two seeds part within a few words."""
    made = [make_prompt(tokenizer, tokens, 1000 * seed + row) for row in range(rows)]
    return [text for text, _ in made], [ids for _, ids in made]
