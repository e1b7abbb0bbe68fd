"""A Llama-like decoder in a few lines of torch, straight from a ``Shape``: the oracle of the CPU kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from trimtab.engine.conditioned import BilinearDelta, ModulatedDelta
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.shape import Layer, Linear, Shape
from trimtab.models.quantized import QuantizedWeight

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def rope_tables(positions, dims, theta=10000.0):
    angles = torch.arange(positions)[:, None] / theta ** (torch.arange(dims) / dims)[None]
    return angles.cos(), angles.sin()


def llama_shape(model):
    """The shape of a Hugging Face Llama."""
    config = model.config

    def linear(name):
        layer = model.get_submodule(name)
        bias = None if layer.bias is None else layer.bias.data
        return Linear(name, layer.weight.data, bias, layer.in_features, layer.out_features)

    def norm(layer):
        return layer.weight.data.float()

    def layer(number, module):
        path = f"model.layers.{number}"
        attention = {x: linear(f"{path}.self_attn.{x}_proj") for x in "qkvo"}
        mlp = {x: linear(f"{path}.mlp.{x}_proj") for x in ("gate", "up", "down")}
        return Layer(
            input_norm=norm(module.input_layernorm), mlp_norm=norm(module.post_attention_layernorm), **attention,
            **mlp, q_norm=None, k_norm=None, attention_out_norm=None, mlp_out_norm=None, rope=0, window=None,
        )  # fmt: skip

    dim = config.hidden_size // config.num_attention_heads
    angles = torch.arange(config.max_position_embeddings)[:, None] * model.model.rotary_emb.inv_freq.float()[None]
    return Shape(
        layers=[layer(i, module) for i, module in enumerate(model.model.layers)],
        embedding=model.model.embed_tokens.weight.data, embedding_scale=1.0, final_norm=norm(model.model.norm),
        head=linear("lm_head"), heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=dim,
        norm_eps=config.rms_norm_eps, activation="silu", ropes=[(angles.cos(), angles.sin())],
        attention_scale=dim**-0.5, attention_softcap=None, logit_softcap=None, dtype=model.dtype,
        context_length=config.max_position_embeddings,
    )  # fmt: skip


def random_shape(
    *, hidden=24, heads=4, kv_heads=2, dim=10, inner=44, layers=3, vocab=70, dtype=torch.float32, bias=False,
    norms=False, windows=(None,), ropes=(0,), rope_dims=None, seed=0, **options,
):  # fmt: skip
    """A random decoder with whatever a ``Shape`` can say."""
    torch.manual_seed(seed)

    def linear(name, d_in, d_out):
        weight = (torch.randn(d_out, d_in) * 1.5 / d_in**0.5).to(dtype)
        return Linear(name, weight, torch.randn(d_out).mul(0.3).to(dtype) if bias else None, d_in, d_out)

    def norm(size, wanted=True):
        return 1 + 0.2 * torch.randn(size) if wanted else None

    made = [
        Layer(
            norm(hidden), linear(f"{i}.q", hidden, heads * dim), linear(f"{i}.k", hidden, kv_heads * dim),
            linear(f"{i}.v", hidden, kv_heads * dim), linear(f"{i}.o", heads * dim, hidden), norm(dim, norms),
            norm(dim, norms), norm(hidden, norms), norm(hidden), linear(f"{i}.gate", hidden, inner),
            linear(f"{i}.up", hidden, inner), linear(f"{i}.down", inner, hidden), norm(hidden, norms),
            ropes[i % len(ropes)], windows[i % len(windows)],
        )
        for i in range(layers)
    ]  # fmt: skip
    tables = [rope_tables(600, (rope_dims or dim) // 2, theta) for theta in (100.0, 10000.0)]
    settings = {
        "embedding_scale": 1.0, "activation": "silu", "attention_softcap": None, "logit_softcap": None,
        "attention_scale": dim**-0.5, **options,
    }  # fmt: skip
    return Shape(
        made, torch.randn(vocab, hidden).to(dtype), final_norm=norm(hidden), head=linear("head", hidden, vocab),
        heads=heads, kv_heads=kv_heads, head_dim=dim, norm_eps=1e-5, ropes=tables, dtype=dtype, context_length=600,
        **settings,
    )  # fmt: skip


def replace_weights(shape, change):
    """The same decoder with other weights in its linear layers."""

    def changed(linear):
        return dataclasses.replace(linear, weight=change(linear.weight))

    layers = [dataclasses.replace(x, **{n: changed(getattr(x, n)) for n in LINEARS}) for x in shape.layers]
    return dataclasses.replace(shape, layers=layers, head=changed(shape.head))


def cache_for(shape, pages=64):
    sizes = [KVShape(shape.kv_heads, shape.head_dim, shape.head_dim)] * len(shape.layers)
    cache = KVCache(sizes, pages, dtype=shape.dtype, device=torch.device("cpu"))
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))  # what was never written must never be read
    return cache


def pages_for(tokens, seed=0, first=1, of=60):
    order = np.random.default_rng(seed).permutation(np.arange(first, first + of))
    return order[: (tokens + 15) // 16].astype(np.int32)


def dequantized(weight):
    if isinstance(weight, torch.Tensor):
        return weight.double()
    codes = weight.codes
    if weight.bits == 4:
        runs = codes.view(codes.shape[0], -1, 16)
        codes = torch.cat([runs & 15, runs >> 4], dim=2).flatten(1)
    codes = codes.double().view(codes.shape[0], -1, weight.group)
    out = codes * weight.scales.double()[..., None]
    if weight.minima is not None:
        out = out + weight.minima.double()[..., None]
    return out.flatten(1)


def quantized(weight, bits, group, *, minima):
    rows = weight.double().view(weight.shape[0], -1, group)
    top, low = rows.amax(2), rows.amin(2)
    if minima:
        scales = ((top - low) / (2**bits - 1)).clamp(min=1e-9)
        base = low if bits == 4 else low + 128 * scales
    else:
        scales = (rows.abs().amax(2) / 127).clamp(min=1e-9) if bits == 8 else (top / 15).clamp(min=1e-9)
        base = torch.zeros_like(low)
    codes = ((rows - base[..., None]) / scales[..., None]).round()
    codes = codes.clamp(-128, 127) if bits == 8 else codes.clamp(0, 15)
    if bits == 8:
        stored = codes.flatten(1).to(torch.int8)
    else:
        runs = codes.flatten(1).to(torch.uint8).view(weight.shape[0], -1, 32)
        stored = (runs[..., :16] | (runs[..., 16:] << 4)).flatten(1)
    return QuantizedWeight(bits, stored.contiguous(), scales.float(), base.float() if minima else None, group)


def reference(shape, ids, deltas=None, conditions=None):
    """(T, V) logits of one sequence in float64; ``deltas`` by layer name."""
    parts = None if conditions is None else conditions.double().flatten(0, 1)

    def linear(layer, x):
        y = x @ dequantized(layer.weight).T + (0 if layer.bias is None else layer.bias.double())
        delta = (deltas or {}).get(layer.name)
        if delta is None:
            return y
        h = x @ delta.a_t.double()
        if isinstance(delta, ModulatedDelta):
            h = h * (1 if delta.gamma is None else parts[delta.gamma])
            h = h + (0 if delta.delta is None else parts[delta.delta])
        if isinstance(delta, BilinearDelta):
            h = h @ parts[delta.part]
        return y + h @ delta.b_t.double() + (0 if delta.bias is None else delta.bias.double())

    def norm(x, weight):
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.norm_eps)
        return x if weight is None else scaled * weight.double()

    def rotate(x, number):
        if number is None:
            return x
        cos, sin = (table[: len(ids)].double() for table in shape.ropes[number])
        n = cos.shape[1]
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def heads(x, count):
        return x.view(len(ids), count, -1).transpose(0, 1)

    def attention(layer, x):
        q = rotate(norm(heads(linear(layer.q, x), shape.heads), layer.q_norm), layer.rope)
        k = rotate(norm(heads(linear(layer.k, x), shape.kv_heads), layer.k_norm), layer.rope)
        v = heads(linear(layer.v, x), shape.kv_heads)
        shared = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.transpose(1, 2) * shape.attention_scale
        if shape.attention_softcap:
            scores = shape.attention_softcap * torch.tanh(scores / shape.attention_softcap)
        at = torch.arange(len(ids))
        seen = at[:, None] >= at[None]
        if layer.window:
            seen &= at[:, None] - at[None] < layer.window
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return linear(layer.o, (weights @ v).transpose(0, 1).flatten(1))

    activation = F.silu if shape.activation == "silu" else lambda x: F.gelu(x, approximate="tanh")
    x = shape.embedding[torch.as_tensor(ids)]
    x = (x * torch.tensor(shape.embedding_scale, dtype=shape.dtype)).double()
    for layer in shape.layers:
        x = x + norm(attention(layer, norm(x, layer.input_norm)), layer.attention_out_norm)
        y = norm(x, layer.mlp_norm)
        y = linear(layer.down, activation(linear(layer.gate, y)) * linear(layer.up, y))
        x = x + norm(y, layer.mlp_out_norm)
    logits = linear(shape.head, norm(x, shape.final_norm))
    return shape.logit_softcap * torch.tanh(logits / shape.logit_softcap) if shape.logit_softcap else logits
