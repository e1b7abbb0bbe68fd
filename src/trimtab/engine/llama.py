"""The forward of a Llama-like decoder in torch operations, on any device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.engine.adapters import Delta, RowAdapters
from trimtab.engine.fusing import Conditions, Product, SlotDeltas, products
from trimtab.engine.kv_cache import KVCache
from trimtab.engine.layouts import Batch, ConditionStacks, Group, Piece, Plan, plan, to_device
from trimtab.engine.shape import Layer, Shape
from trimtab.engine.spans import PAGE, Span


@dataclass(frozen=True)
class _Rows:
    """A group of spans on the device.

    Attributes:
        tokens: (R·T,) places of its tokens among those of the forward; ``None`` for all, as they lie.
        blocks: (R·H·P,) rows of a layer's cache that hold its keys, seen as (pages·H_kv, PAGE·D); H is H_kv where
            one token a row lets the query heads that share a key be its queries, else the number of query heads.
        masks: window → (R, 1, T, S), 0 for a key that a query sees and -∞ for others; ``None`` where it sees all up to
            itself.
    """

    group: Group
    tokens: Tensor | None
    blocks: Tensor
    masks: dict[int | None, Tensor | None]


class TorchForward:
    """Runs spans through a decoder: each linear layer once over all tokens, each adapter on its tokens only."""

    def __init__(self, shape: Shape, cache: KVCache, adapters: RowAdapters) -> None:
        self.shape, self.cache, self.adapters = _with_narrow_norms(shape), cache, adapters
        self._stacks = ConditionStacks()
        self._layers = [_products_of(layer) for layer in shape.layers]
        self._head = Product((shape.head,), shape.head.weight, shape.head.bias)
        self._every = [product for layer in self._layers for product in layer.all]
        self._slots: dict[int, SlotDeltas] = {}
        self._windows = sorted({layer.window for layer in shape.layers}, key=lambda w: w or 0)
        self._keys = [keys.view(-1, PAGE * shape.head_dim) for keys in cache.keys]
        self._values = [values.view(-1, PAGE * shape.head_dim) for values in cache.values]

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits."""
        device = self.shape.embedding.device
        found = plan(spans)
        if len(found.fresh_pages):
            self.cache.clear(to_device(found.fresh_pages, device))
        return self.compute(Batch(found.layout, to_device(found.numbers, device), self.conditions(found)))

    def conditions(self, found: Plan) -> list[Conditions | None]:
        """Return the conditions of each piece's rows; the same objects for the same rows, where seen lately."""
        made: list[Conditions | None] = []
        for piece, rows in zip(found.layout.pieces, found.rows, strict=True):
            if piece.slot not in self._slots:
                self._slots[piece.slot] = SlotDeltas(self.adapters, piece.slot, self._every)
            made.append(self._stacks(rows, self._slots[piece.slot].conditions))
        return made

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
        for number, (layer, own) in enumerate(zip(shape.layers, self._layers, strict=True)):
            h = self._norm(x, layer.input_norm)
            rope = None if layer.rope is None else ropes[layer.rope]
            h = self._attention(self._outputs(h, own.qkv, batch), layer, number, rope, places, groups)
            h = self._outputs(h, own.o, batch)[0]
            x = x + (h if layer.attention_out_norm is None else self._norm(h, layer.attention_out_norm))
            outputs = self._outputs(self._norm(x, layer.mlp_norm), own.gate_up, batch)
            gate, up = outputs[0].chunk(2, dim=-1) if len(outputs) == 1 else outputs
            gate = F.silu(gate) if shape.activation == "silu" else F.gelu(gate, approximate="tanh")
            h = self._outputs(gate * up, own.down, batch)[0]
            x = x + (h if layer.mlp_out_norm is None else self._norm(h, layer.mlp_out_norm))
        if layout.kept == 0:
            return x.new_empty((0, shape.head.d_out), dtype=torch.float32)
        logits = self._head(self._norm(x[kept], shape.final_norm)).float()
        return logits if shape.logit_softcap is None else _softcapped(logits, shape.logit_softcap)

    def _groups(self, groups: Sequence[Group], positions: Tensor, parts: Sequence[Tensor]) -> list[_Rows]:
        return [
            self._rows(group, positions, tokens if len(groups) > 1 else None, table)
            for group, tokens, table in zip(groups, parts[::2], parts[1::2], strict=True)
        ]

    def _rows(self, group: Group, positions: Tensor, tokens: Tensor | None, table: Tensor) -> _Rows:
        shape = self.shape
        if group.length == 1:
            heads = torch.arange(shape.kv_heads, device=table.device)
        else:
            heads = torch.arange(shape.heads, device=table.device) // (shape.heads // shape.kv_heads)
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
                seen = causal if window is None else causal & (key > query - window)
                mask = torch.zeros(seen.shape, dtype=shape.dtype, device=seen.device)
                masks[window] = mask.masked_fill_(~seen, -torch.inf)
        return _Rows(group, tokens, blocks, masks)

    def _attention(
        self,
        qkv: Sequence[Tensor],
        layer: Layer,
        number: int,
        rope: tuple[Tensor, Tensor] | None,
        places: tuple[Tensor, Tensor],
        groups: Sequence[_Rows],
    ) -> Tensor:
        """Return what each token reads, (N, H·D), from its query and from the keys and values so far.

        ``qkv`` are (N, heads·D) queries, keys and values, side by side in one tensor or in three.
        """
        shape = self.shape
        if len(qkv) == 1:
            both, v = qkv[0].split([layer.q.d_out + layer.k.d_out, layer.v.d_out], dim=-1)
        else:
            both, v = torch.cat([qkv[0], qkv[1]], dim=-1), qkv[2]
        both, v = (x.unflatten(-1, (-1, shape.head_dim)) for x in (both, v))
        heads = [shape.heads, shape.kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = both.split(heads, dim=1)
            both = torch.cat([self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)], dim=1)
        q, k = (both if rope is None else _rotated(both, *rope)).split(heads, dim=1)
        pages, offsets = places
        self.cache.keys[number][pages, :, offsets] = k
        self.cache.values[number][pages, :, offsets] = v
        if len(groups) == 1:
            out = self._attend(q, groups[0], number, layer.window)
        else:
            out = torch.empty_like(q)
            for rows in groups:
                out[rows.tokens] = self._attend(q[rows.tokens], rows, number, layer.window)
        return out.reshape(len(q), -1)

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
            q = q.reshape(group.rows, shape.kv_heads, -1, shape.head_dim)
            out = self._softmax_sum(q, keys, values, mask)
        else:
            q = q.reshape(group.rows, group.length, shape.heads, shape.head_dim).transpose(1, 2)
            out = self._softmax_sum(q, keys, values, mask).transpose(1, 2)
        return out.reshape(-1, shape.heads, shape.head_dim)

    def _softmax_sum(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        scale, softcap = self.shape.attention_scale, self.shape.attention_softcap
        causal = mask is None and keys.shape[2] > 1
        if softcap is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
        scores = _softcapped((q @ keys.transpose(-1, -2)).float() * scale, softcap)
        if causal:
            mask = torch.full(scores.shape[-2:], -torch.inf, device=q.device).triu(1)
        if mask is not None:
            scores = scores + mask
        return scores.softmax(-1).to(values.dtype) @ values

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, self.shape.norm_eps)
        return F.rms_norm(x.float(), weight.shape, weight, self.shape.norm_eps).to(x.dtype)

    def _outputs(self, x: Tensor, products: Sequence[Product], batch: Batch) -> list[Tensor]:
        """Return x Wᵀ + b for each product, with what the adapters add to their tokens."""
        outputs: list[Tensor] = []
        for product in products:
            y = product(x)
            for piece, conditions in zip(batch.layout.pieces, batch.conditions, strict=True):
                delta = self._slots[piece.slot].deltas.get(product.linears[0].name)
                if delta is not None:
                    _add(x, y, delta, piece, conditions)
            outputs.append(y)
        return outputs


@dataclass(frozen=True)
class _Products:
    """The products of one layer, by the input that they share."""

    qkv: Sequence[Product]
    o: Sequence[Product]
    gate_up: Sequence[Product]
    down: Sequence[Product]

    @property
    def all(self) -> list[Product]:
        return [*self.qkv, *self.o, *self.gate_up, *self.down]


def _products_of(layer: Layer) -> _Products:
    together = products((layer.q, layer.k, layer.v)), products((layer.gate, layer.up))
    return _Products(together[0], products((layer.o,)), together[1], products((layer.down,)))


def _with_narrow_norms(shape: Shape) -> Shape:
    """Return the shape with norms in the model's dtype where that is exact, for a GPU then needs one kernel a norm.

    The sum of squares is taken in float32 in any case.
    """

    def narrow(weight: Tensor | None) -> Any:
        if weight is None or not torch.equal(weight.to(shape.dtype).float(), weight.float()):
            return weight
        return weight.to(shape.dtype)

    names = ("input_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
    layers = [dataclasses.replace(layer, **{n: narrow(getattr(layer, n)) for n in names}) for layer in shape.layers]
    return dataclasses.replace(shape, layers=layers, final_norm=narrow(shape.final_norm))


def _add(x: Tensor, y: Tensor, delta: Delta, piece: Piece, conditions: Any) -> None:
    """Add an adapter's delta to its piece of the outputs, in place."""
    own = x[piece.start : piece.stop].view(piece.rows, -1, x.shape[-1])
    added_to = y[piece.start : piece.stop]
    added_to.addmm_(delta.hidden(own, conditions).flatten(0, 1), delta.b_t)
    if delta.bias is not None:
        added_to.add_(delta.bias)


def _softcapped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def _rope(cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin for each token, (N, 1, D_rot) each: x cos + roll(x) sin rotates x."""
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    return torch.cat([c, c], dim=-1), torch.cat([-s, s], dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads (N, H, D) by their positions, in float32; dimensions beyond D_rot stay."""
    turns = x[..., : cos.shape[-1]]
    out = torch.empty(turns.shape, dtype=x.dtype, device=x.device)
    torch.addcmul(turns * cos, turns.roll(cos.shape[-1] // 2, -1), sin, out=out)
    return out if cos.shape[-1] == x.shape[-1] else torch.cat([out, x[..., cos.shape[-1] :]], dim=-1)
