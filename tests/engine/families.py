"""Tiny random models of many families: weights far from their neutral starting values, norms and biases included."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 100
CONTEXT = 128
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}

LLAMA_SHAPED: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-3": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama-yarn": {"model_type": "llama", "rope_parameters": _YARN, "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 9},
    "mistral-whole": {"model_type": "mistral", "sliding_window": None},
    "ministral": {"model_type": "ministral", "head_dim": 8, **_ALTERNATING},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 8},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        **_GEMMA,
        **_ALTERNATING,
    },
    "gemma3": {"model_type": "gemma3_text", "query_pre_attn_scalar": 20, **_GEMMA, **_ALTERNATING},
}
OTHER: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "window_size": 9,
    },
    "gpt_neox": {"model_type": "gpt_neox"},
    "gptj": {"model_type": "gptj", "rotary_dim": 4},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"model_type": "bloom", "n_head": 4, "n_layer": 2},
    "falcon": {"model_type": "falcon", "alibi": False, "multi_query": True, "new_decoder_architecture": False},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "multi_query": False, "new_decoder_architecture": False},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT},
    "phi": {"model_type": "phi"},
    "phi3": {"model_type": "phi3", "sliding_window": 9},
    "stablelm": {"model_type": "stablelm"},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 9},
    "cohere": {"model_type": "cohere"},
    "olmo2": {"model_type": "olmo2"},
    "granite": {"model_type": "granite", "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "moe_intermediate_size": 16},
    "llama-dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    },
}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"model_type": "mamba", "state_size": 4, "time_step_rank": 4},
    "rwkv": {"model_type": "rwkv", "attention_hidden_size": 32},
    "recurrent_gemma": {
        "model_type": "recurrent_gemma",
        "attention_window_size": 64,
        "lru_width": 32,
        "num_hidden_layers": 3,
    },
    "falcon_h1": {
        "model_type": "falcon_h1",
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
    },
}
_RENAMED = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48},
}


def make(options: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model; matrices are scaled so that logits are of order one and far from uniform."""
    kind = options["model_type"]
    settings = {"vocab_size": VOCABULARY, **_RENAMED[kind]} if kind in _RENAMED else dict(_SMALL)
    settings.update({name: value for name, value in options.items() if name != "model_type"})
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.data.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False).to(dtype)
