"""The forward of a Llama-like decoder in torch operations, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.engine.adapters import RowAdapters
from trimtab.engine.kv_cache import KVCache
from trimtab.engine.layouts import Batch, ConditionStacks, Group, Piece, plan, to_device
from trimtab.engine.shape import Layer, Linear, Shape
from trimtab.engine.spans import PAGE, Span
from trimtab.models.quantized import QuantizedWeight


@dataclass(frozen=True)
class _Rows:
    """A group of spans on the device.

    Attributes:
        tokens: (R·T,) places of its tokens among those of the forward; ``None`` for all, as they lie.
        blocks: (R·H·P,) rows of a layer's cache that hold its keys, seen as (pages·H_kv, PAGE·D); H is H_kv where
            one token a row lets the query heads that share a key be its queries, else the number of query heads.
        masks: window → (R, 1, T, S), which keys a query sees; ``None`` where it sees all up to itself.
    """

    group: Group
    tokens: Tensor | None
    blocks: Tensor
    masks: dict[int | None, Tensor | None]


class TorchForward:
    """Runs spans through a decoder: each linear layer once over all tokens, each adapter on its tokens only."""

    def __init__(self, shape: Shape, cache: KVCache, adapters: RowAdapters) -> None:
        self.shape, self.cache, self.adapters = shape, cache, adapters
        self.stacks = ConditionStacks()
        self._windows = sorted({layer.window for layer in shape.layers}, key=lambda w: w or 0)
        self._keys = [keys.view(-1, PAGE * shape.head_dim) for keys in cache.keys]
        self._values = [values.view(-1, PAGE * shape.head_dim) for values in cache.values]

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits."""
        device = self.shape.embedding.device
        found = plan(spans)
        if len(found.fresh_pages):
            self.cache.clear(to_device(found.fresh_pages, device))
        conditions = [self.stacks(rows) for rows in found.rows]
        return self.compute(Batch(found.layout, to_device(found.numbers, device), conditions))

    def compute(self, batch: Batch) -> Tensor:
        """Return (kept, V) float32 logits. Looks at no number, so that a CUDA graph can hold it."""
        shape, layout = self.shape, batch.layout
        ids, positions, pages, kept, *parts = batch.numbers.split(layout.sizes)
        groups = self._groups(layout.groups, positions, parts)
        ropes = [_rope(cos, sin, positions) for cos, sin in shape.ropes]
        places = pages, positions % PAGE
        x = F.embedding(ids, shape.embedding)
        if shape.embedding_scale != 1:
            x = x * shape.embedding_scale
        for number, layer in enumerate(shape.layers):
            h = self._norm(x, layer.input_norm)
            rope = None if layer.rope is None else ropes[layer.rope]
            h = self._attention(h, layer, number, rope, places, groups, batch)
            x = x + (h if layer.attention_out_norm is None else self._norm(h, layer.attention_out_norm))
            h = self._mlp(self._norm(x, layer.mlp_norm), layer, batch)
            x = x + (h if layer.mlp_out_norm is None else self._norm(h, layer.mlp_out_norm))
        if layout.kept == 0:
            return x.new_empty((0, shape.head.d_out), dtype=torch.float32)
        logits = product(self._norm(x[kept], shape.final_norm), shape.head).float()
        return logits if shape.logit_softcap is None else _softcapped(logits, shape.logit_softcap)

    def _groups(self, groups: Sequence[Group], positions: Tensor, parts: Sequence[Tensor]) -> list[_Rows]:
        return [
            self._rows(group, positions, tokens if len(groups) > 1 else None, table)
            for group, tokens, table in zip(groups, parts[::2], parts[1::2], strict=True)
        ]

    def _rows(self, group: Group, positions: Tensor, tokens: Tensor | None, table: Tensor) -> _Rows:
        shape = self.shape
        heads = torch.arange(shape.kv_heads, device=table.device)
        if group.length > 1:
            heads = heads.repeat_interleave(shape.heads // shape.kv_heads)
        table = table.view(group.rows, 1, group.pages)
        blocks = (table * shape.kv_heads + heads.view(1, -1, 1)).flatten()
        query = (positions if tokens is None else positions[tokens]).view(group.rows, 1, group.length, 1)
        key = torch.arange(group.pages * PAGE, device=table.device)
        causal = key <= query
        masks: dict[int | None, Tensor | None] = {}
        for window in self._windows:
            if group.fresh and (window is None or window >= group.length):
                masks[window] = None
            else:
                masks[window] = causal if window is None else causal & (key > query - window)
        return _Rows(group, tokens, blocks, masks)

    def _attention(
        self,
        h: Tensor,
        layer: Layer,
        number: int,
        rope: tuple[Tensor, Tensor] | None,
        places: tuple[Tensor, Tensor],
        groups: Sequence[_Rows],
        batch: Batch,
    ) -> Tensor:
        shape = self.shape
        heads = (len(h), -1, shape.head_dim)
        q, k, v = (self._linear(h, linear, batch).view(heads) for linear in (layer.q, layer.k, layer.v))
        if layer.q_norm is not None:
            q = self._norm(q, layer.q_norm)
        if layer.k_norm is not None:
            k = self._norm(k, layer.k_norm)
        if rope is not None:
            q, k = _rotated(torch.cat([q, k], dim=1), *rope).split([shape.heads, shape.kv_heads], dim=1)
        pages, offsets = places
        self.cache.keys[number][pages, :, offsets] = k
        self.cache.values[number][pages, :, offsets] = v
        if len(groups) == 1:
            out = self._attend(q, groups[0], number, layer.window)
        else:
            out = torch.empty_like(q)
            for rows in groups:
                out[rows.tokens] = self._attend(q[rows.tokens], rows, number, layer.window)
        return self._linear(out.reshape(len(h), -1), layer.o, batch)

    def _attend(self, q: Tensor, rows: _Rows, number: int, window: int | None) -> Tensor:
        """Return what the queries (R·T, H, D) of a group read, in the same shape."""
        group, shape = rows.group, self.shape
        stored = (group.rows, -1, group.pages * PAGE, shape.head_dim)
        keys = self._keys[number].index_select(0, rows.blocks).view(stored)
        values = self._values[number].index_select(0, rows.blocks).view(stored)
        mask = rows.masks[window]
        if mask is None:
            keys, values = keys[:, :, : group.length], values[:, :, : group.length]
        if group.length == 1:
            q = q.view(group.rows, shape.kv_heads, -1, shape.head_dim)
            out = self._softmax_sum(q, keys, values, mask)
        else:
            q = q.view(group.rows, group.length, shape.heads, shape.head_dim).transpose(1, 2)
            out = self._softmax_sum(q, keys, values, mask).transpose(1, 2)
        return out.reshape(-1, shape.heads, shape.head_dim)

    def _softmax_sum(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        scale, softcap = self.shape.attention_scale, self.shape.attention_softcap
        causal = mask is None and keys.shape[2] > 1
        if softcap is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
        scores = _softcapped((q @ keys.transpose(-1, -2)).float() * scale, softcap)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1).to(values.dtype) @ values

    def _mlp(self, h: Tensor, layer: Layer, batch: Batch) -> Tensor:
        gate = self._linear(h, layer.gate, batch)
        gate = F.silu(gate) if self.shape.activation == "silu" else F.gelu(gate, approximate="tanh")
        return self._linear(gate * self._linear(h, layer.up, batch), layer.down, batch)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, self.shape.norm_eps).to(x.dtype)

    def _linear(self, x: Tensor, linear: Linear, batch: Batch) -> Tensor:
        """Return x Wᵀ + b, with what the adapters add to their tokens."""
        y = product(x, linear)
        for piece, conditions in zip(batch.layout.pieces, batch.conditions, strict=True):
            self._add_delta(x, y, linear.name, piece, conditions)
        return y

    def _add_delta(self, x: Tensor, y: Tensor, name: str, piece: Piece, conditions: Any) -> None:
        delta = self.adapters.delta(name, piece.slot)
        if delta is None:
            return
        own = x[piece.start : piece.stop].view(piece.rows, -1, x.shape[-1])
        added_to = y[piece.start : piece.stop]
        added_to.addmm_(delta.hidden(own, conditions).flatten(0, 1), delta.b_t)
        if delta.bias is not None:
            added_to.add_(delta.bias)


def product(x: Tensor, linear: Linear) -> Tensor:
    """Return x Wᵀ + b of (N, D_in) inputs."""
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        weight = dense(weight).to(x.dtype)
    return F.linear(x, weight, linear.bias)


def dense(weight: QuantizedWeight) -> Tensor:
    """Return what a quantised weight stands for, (D_out, D_in) float32."""
    codes = weight.codes
    if weight.bits == 4:
        runs = codes.view(len(codes), -1, 16)
        codes = torch.cat([runs & 15, runs >> 4], dim=2)
    groups = codes.reshape(len(codes), -1, weight.group).float() * weight.scales.unsqueeze(2)
    if weight.minima is not None:
        groups = groups + weight.minima.unsqueeze(2)
    return groups.view(len(codes), -1)


def _softcapped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def _rope(cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin for each token, (N, 1, D_rot) each: x cos + roll(x) sin rotates x."""
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    return torch.cat([c, c], dim=-1), torch.cat([-s, s], dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads (N, H, D) by their positions; dimensions beyond D_rot stay."""
    wide = x[..., : cos.shape[-1]].float()
    turned = torch.addcmul(wide * cos, wide.roll(cos.shape[-1] // 2, -1), sin).to(x.dtype)
    return turned if cos.shape[-1] == x.shape[-1] else torch.cat([turned, x[..., cos.shape[-1] :]], dim=-1)
