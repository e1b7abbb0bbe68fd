"""Reading the shape of a Llama-like decoder off a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.engine.shape import Layer, Linear, Shape
from trimtab.models.loading import context_length
from trimtab.models.quantized import QuantizedWeight

# Model types whose forward is the one that a Shape describes. A model of another type may have modules of the same
# names and still compute something else, so that looking alike is not enough.
_FAMILIES = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "ministral",
    "mistral",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
}
# Tables that are the same whatever the length of the text; "dynamic" and "longrope" are not.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


class NotLlamaShapedError(Exception):
    """The model is no Llama-like decoder; its message says why. It then runs through transformers' own forward."""


def read_shape(model: Any) -> Shape:
    """Return the shape of a model. Weights are the model's own tensors; nothing is copied but norms and RoPE tables.

    Raises:
        NotLlamaShapedError: the fast forwards cannot run it.
    """
    config = model.config.get_text_config()
    family = config.model_type
    if family not in _FAMILIES:
        raise NotLlamaShapedError(f"models of type {family!r} are not known to have it")
    if getattr(config, "use_bidirectional_attention", False):
        raise NotLlamaShapedError("its tokens see later ones")
    try:
        shape = _Reader(model, config).read()
    except AttributeError as error:
        raise NotLlamaShapedError(f"it is built otherwise ({error})") from error
    _check(shape)
    return shape


class _Reader:
    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.config = model, config
        self.family: str = config.model_type
        self.decoder: Any = model.get_decoder()
        self.names = {id(module): name for name, module in model.named_modules()}

    def read(self) -> Shape:
        attentions = [layer.self_attn for layer in self.decoder.layers]
        ropes, rope_of = self._ropes(attentions)
        embedding = self.decoder.embed_tokens
        dtype = embedding.weight.dtype
        scale = torch.tensor(float(getattr(embedding, "scalar_embed_scale", 1.0)), dtype=dtype)
        first = attentions[0]
        softcap = getattr(first, "attn_logit_softcapping", None) if self.family == "gemma2" else None
        return Shape(
            layers=[self._layer(layer, rope) for layer, rope in zip(self.decoder.layers, rope_of, strict=True)],
            embedding=embedding.weight.detach(),
            embedding_scale=float(scale),
            final_norm=self._norm(self.decoder.norm),
            head=self._linear(self.model.get_output_embeddings()),
            heads=self.config.num_attention_heads,
            kv_heads=self.config.num_key_value_heads,
            head_dim=first.head_dim,
            norm_eps=_eps(self.decoder.norm),
            activation=_activation(self.decoder.layers[0].mlp.act_fn),
            ropes=ropes,
            attention_scale=float(first.scaling),
            attention_softcap=softcap,
            logit_softcap=getattr(self.config, "final_logit_softcapping", None),
            dtype=dtype,
            context_length=context_length(self.config),
        )

    def _layer(self, layer: Any, rope: int | None) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        gemma_order = hasattr(layer, "pre_feedforward_layernorm")
        after = layer.post_attention_layernorm
        return Layer(
            input_norm=self._norm(layer.input_layernorm),
            q=self._linear(attention.q_proj),
            k=self._linear(attention.k_proj),
            v=self._linear(attention.v_proj),
            o=self._linear(attention.o_proj),
            q_norm=self._norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            k_norm=self._norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            attention_out_norm=self._norm(after) if gemma_order else None,
            mlp_norm=self._norm(layer.pre_feedforward_layernorm if gemma_order else after),
            gate=self._linear(mlp.gate_proj),
            up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj),
            mlp_out_norm=self._norm(layer.post_feedforward_layernorm) if gemma_order else None,
            rope=rope,
            window=self._window(attention),
        )

    def _linear(self, module: Any) -> Linear:
        name = self.names[id(module)]
        quantized = getattr(module, "quantized", None)
        if isinstance(quantized, QuantizedWeight):
            return Linear(name, quantized, _detached(module.bias), quantized.d_in, quantized.d_out)
        if type(module) is not nn.Linear:
            raise NotLlamaShapedError(f"{name!r} is a {type(module).__name__}")
        d_out, d_in = module.weight.shape
        return Linear(name, module.weight.detach(), _detached(module.bias), d_in, d_out)

    def _norm(self, module: Any) -> Tensor:
        weight = module.weight.detach().float()
        return 1 + weight if self.family.startswith("gemma") else weight

    def _window(self, attention: Any) -> int | None:
        window = getattr(attention, "sliding_window", None)
        return self.config.sliding_window if self.family == "mistral" else window

    def _ropes(self, attentions: Sequence[Any]) -> tuple[list[tuple[Tensor, Tensor]], list[int | None]]:
        """Return the RoPE tables, and for each layer which it uses."""
        rotary: Any = self.decoder.rotary_emb
        for kind in _rope_types(self.config.rope_parameters):
            if kind not in _ROPE_TYPES:
                raise NotLlamaShapedError(f"its RoPE is of type {kind!r}")
        device = self.decoder.embed_tokens.weight.device
        positions = torch.arange(context_length(self.config), device=device)[None]
        dtype_giver = torch.zeros(1, device=device)
        if "layer_type" not in inspect.signature(rotary.forward).parameters:
            tables = [_halves(*rotary(dtype_giver, positions))]
            return tables, [0 if getattr(a, "use_rope", True) else None for a in attentions]
        kinds = sorted({a.layer_type for a in attentions})
        tables = [_halves(*rotary(dtype_giver, positions, kind)) for kind in kinds]
        return tables, [kinds.index(a.layer_type) for a in attentions]


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, D_rot / 2) tables from (1, P, D_rot) ones, whose halves are equal."""
    half = cos.shape[-1] // 2
    for table in (cos, sin):
        if not torch.equal(table[..., :half], table[..., half:]):
            raise NotLlamaShapedError("its RoPE rotates pairs that are not halves")
    return cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()


def _rope_types(parameters: Mapping[str, Any]) -> set[str]:
    if "rope_type" in parameters:
        return {parameters["rope_type"]}
    return {found["rope_type"] for found in parameters.values() if found is not None}


def _eps(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def _activation(function: Any) -> Literal["silu", "gelu_tanh"]:
    """Name an activation by what it does, for its class has many names."""
    x = torch.linspace(-4, 4, 33)
    y = function(x)
    if torch.allclose(y, F.silu(x), atol=1e-6):
        return "silu"
    if torch.allclose(y, F.gelu(x, approximate="tanh"), atol=1e-6):
        return "gelu_tanh"
    raise NotLlamaShapedError(f"its activation is {type(function).__name__}")


def _check(shape: Shape) -> None:
    """Refuse sizes and places that the fast forwards do not expect."""
    for layer in shape.layers:
        sizes = [layer.q.d_out, layer.k.d_out, layer.v.d_out, layer.o.d_in]
        heads = [shape.heads, shape.kv_heads, shape.kv_heads, shape.heads]
        if sizes != [n * shape.head_dim for n in heads] or shape.heads % shape.kv_heads:
            raise NotLlamaShapedError("its heads are not all of one size")
        for norm in (layer.q_norm, layer.k_norm):
            if norm is not None and norm.shape != (shape.head_dim,):
                raise NotLlamaShapedError("its queries and keys are not normalised by head")
    if len({layer.input_norm.device for layer in shape.layers} | {shape.embedding.device}) > 1:
        raise NotLlamaShapedError("it lies on several devices")
