"""Tiny random models and a byte-level tokenizer: every code path in milliseconds, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["the quick brown fox jumps over the lazy dog", "I would be happy to help you, thank you for asking"] * 8


def make_tokenizer(*, chat: bool = True, vocab_size: int = 300) -> Any:
    """A byte-level BPE tokenizer: 256 bytes, three special tokens, a few merges; knows every Unicode text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_llama(
    vocab_size: int = 300, *, seed: int = 0, tied: bool = True, hidden: int = 32, layers: int = 2, context: int = 512
) -> Any:
    """A random Llama; weights are scaled up so that its next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def make_gpt2(vocab_size: int = 300, *, seed: int = 0, context: int = 256) -> Any:
    """A random GPT-2: absolute positions, Conv1D layers, fused qkv."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval()


def save_base(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write a model and its tokenizer as a folder that ``load_base`` accepts."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_lora(folder: Path, model: Any, *, seed: int = 1, scale: float = 0.3, **options: Any) -> Path:
    """Write a PEFT LoRA folder with non-zero random weights for a COPY of ``model`` (the model stays untouched)."""
    import copy

    from peft import LoraConfig, get_peft_model

    targets = options.pop("target_modules", None) or (
        ["c_attn", "c_proj", "c_fc"] if isinstance(model, GPT2LMHeadModel) else "all-linear"
    )
    options.setdefault("fan_in_fan_out", isinstance(model, GPT2LMHeadModel))
    peft_model = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad and "lora" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    peft_model.save_pretrained(folder)
    return folder
