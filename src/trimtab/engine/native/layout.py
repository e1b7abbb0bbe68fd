"""The C structs of ``model.h``, and a model and its adapters described by them; only the factors A are copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.engine.adapters import Delta, RowAdapters
from trimtab.engine.conditioned import BilinearDelta, ModulatedDelta
from trimtab.engine.kv_cache import KVCache
from trimtab.engine.shape import Layer, Linear, Shape
from trimtab.models.quantized import QuantizedWeight

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("input_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")


class CLinear(ctypes.Structure):
    """``struct Linear``."""

    _fields_ = (
        *((name, _POINTER) for name in ("weight", "bias", "scales", "minima")),
        *((name, _INT) for name in ("kind", "d_in", "d_out", "group")),
    )


class CDelta(ctypes.Structure):
    """``struct Delta``."""

    _fields_ = (
        *((name, _POINTER) for name in ("a", "b_t", "bias")),
        *((name, _INT) for name in ("rank", "kind", "first", "second")),
    )


class CLayer(ctypes.Structure):
    """``struct Layer``."""

    _fields_ = (
        *((name, CLinear) for name in _LINEARS),
        *((name, _POINTER) for name in (*_NORMS, "keys", "values")),
        *((name, _INT) for name in ("rope", "window")),
    )


class CModel(ctypes.Structure):
    """``struct Model``."""

    _fields_ = (
        ("layers", ctypes.POINTER(CLayer)),
        ("head", ctypes.POINTER(CLinear)),
        ("deltas", ctypes.POINTER(CDelta)),
        ("embedding", _POINTER),
        ("final_norm", _POINTER),
        ("cosines", ctypes.POINTER(_POINTER)),
        ("sines", ctypes.POINTER(_POINTER)),
        ("rope_dims", ctypes.POINTER(_INT)),
        *(
            (name, _INT)
            for name in ["n_layers", "slots", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "bf16", "gelu"]
        ),
        *(
            (name, _FLOAT)
            for name in ("norm_eps", "embedding_scale", "attention_scale", "attention_softcap", "logit_softcap")
        ),
    )


class CBatch(ctypes.Structure):
    """``struct Batch``."""

    _fields_ = (
        *((name, _INT) for name in ("spans", "tokens", "kept", "threads")),
        *(
            (name, _POINTER)
            for name in [
                "ids",
                "counts",
                "starts",
                "keeps",
                "slots",
                "first_page",
                "pages",
                "conditions",
                "conditions_bf16",
                "logits",
            ]
        ),
    )


STRUCTS = (CLinear, CDelta, CLayer, CModel, CBatch)


def unsupported(shape: Shape) -> str | None:
    """Return why the kernels cannot run a model, or ``None`` where they can."""
    if shape.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {shape.dtype}"
    if shape.head_dim % 2:
        return f"its heads have {shape.head_dim} numbers, which is odd"
    if shape.embedding.device.type != "cpu":
        return f"it is on {shape.embedding.device}"
    tensors = [shape.embedding]
    for linear in _linears(shape):
        weight = linear.weight
        tensors += [t for t in (None if isinstance(weight, QuantizedWeight) else weight, linear.bias) if t is not None]
        if isinstance(weight, QuantizedWeight) and not weight.codes.is_contiguous():
            return f"the codes of {linear.name} are not contiguous"
    for tensor in tensors:
        if tensor.dtype != shape.dtype or not tensor.is_contiguous():
            return f"a weight of shape {tuple(tensor.shape)} is not a contiguous {shape.dtype}"
    return None


def _linears(shape: Shape) -> list[Linear]:
    """Return all linear layers in the order in which the kernels number them."""
    return [*(getattr(layer, name) for layer in shape.layers for name in _LINEARS), shape.head]


class Description:
    """A model as C structs; keeps alive what they point to."""

    def __init__(self, shape: Shape, cache: KVCache, adapters: RowAdapters) -> None:
        self._kept: list[object] = [shape, cache]
        self._shape, self._adapters = shape, adapters
        self.slots = 0
        pairs = zip(cache.keys, cache.values, strict=True)
        layers = [self._layer(layer, k, v) for layer, (k, v) in zip(shape.layers, pairs, strict=True)]
        ropes = [(self._floats(c), self._floats(s), c.shape[1]) for c, s in shape.ropes]
        count = max(1, len(ropes))
        self.model = CModel(
            layers=(CLayer * len(layers))(*layers),
            head=ctypes.pointer(self._linear(shape.head)),
            embedding=shape.embedding.data_ptr(),
            final_norm=self._floats(shape.final_norm),
            cosines=(_POINTER * count)(*(cosine for cosine, _, _ in ropes)),
            sines=(_POINTER * count)(*(sine for _, sine, _ in ropes)),
            rope_dims=(_INT * count)(*(dims for _, _, dims in ropes)),
            n_layers=len(layers),
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            intermediate=shape.layers[0].gate.d_out,
            bf16=shape.dtype == torch.bfloat16,
            gelu=shape.activation == "gelu_tanh",
            norm_eps=shape.norm_eps,
            embedding_scale=shape.embedding_scale,
            attention_scale=shape.attention_scale,
            attention_softcap=shape.attention_softcap or 0.0,
            logit_softcap=shape.logit_softcap or 0.0,
        )
        self.describe_adapters()

    def describe_adapters(self) -> None:
        """Describe the adapters anew, which are more than at the last time."""
        self.slots = len(self._adapters)
        linears = _linears(self._shape)
        table = (CDelta * (len(linears) * self.slots))()
        self._factors: list[Tensor] = []
        for number, linear in enumerate(linears):
            for slot in range(self.slots):
                delta = self._adapters.delta(linear.name, slot)
                if delta is not None:
                    table[number * self.slots + slot] = self._delta(delta)
        self.model.slots = self.slots
        self.model.deltas = table

    def _delta(self, delta: Delta) -> CDelta:
        dtype = self._shape.dtype
        a, b_t = delta.a_t.t().contiguous().to(dtype), delta.b_t.contiguous().to(dtype)
        bias = None if delta.bias is None else delta.bias.contiguous().to(dtype)
        self._factors += [a, b_t] if bias is None else [a, b_t, bias]
        kind, first, second = 0, -1, -1
        if isinstance(delta, ModulatedDelta):
            kind = 1
            first, second = (-1 if part is None else part for part in (delta.gamma, delta.delta))
        elif isinstance(delta, BilinearDelta):
            kind, first = 2, delta.part
        return CDelta(
            a=a.data_ptr(), b_t=b_t.data_ptr(), bias=None if bias is None else bias.data_ptr(),
            rank=a.shape[0], kind=kind, first=first, second=second,
        )  # fmt: skip

    def _layer(self, layer: Layer, keys: Tensor, values: Tensor) -> CLayer:
        return CLayer(
            **{name: self._linear(getattr(layer, name)) for name in _LINEARS},
            **{name: self._floats(getattr(layer, name)) for name in _NORMS},
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            rope=-1 if layer.rope is None else layer.rope,
            window=layer.window or 0,
        )

    def _linear(self, linear: Linear) -> CLinear:
        weight = linear.weight
        out = CLinear(d_in=linear.d_in, d_out=linear.d_out, group=linear.d_in)
        out.bias = None if linear.bias is None else linear.bias.data_ptr()
        if not isinstance(weight, QuantizedWeight):
            out.weight, out.kind = weight.data_ptr(), int(weight.dtype == torch.bfloat16)
            return out
        out.weight, out.kind, out.group = weight.codes.data_ptr(), 2 if weight.bits == 8 else 3, weight.group
        out.scales, out.minima = self._floats(weight.scales), self._floats(weight.minima)
        return out

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        kept = tensor.detach().to(torch.float32).contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def conditions_of(conditions: Sequence[Tensor | None]) -> tuple[list[int | None], list[bool], list[Tensor]]:
    """Return the addresses of conditions, whether each is bfloat16, and the tensors to keep alive meanwhile."""
    addresses: list[int | None] = []
    halves: list[bool] = []
    kept: list[Tensor] = []
    for tensor in conditions:
        if tensor is None:
            addresses.append(None)
            halves.append(False)
            continue
        if tensor.dtype not in (torch.float32, torch.bfloat16) or not tensor.is_contiguous():
            tensor = tensor.float().contiguous()
        kept.append(tensor)
        addresses.append(tensor.data_ptr())
        halves.append(tensor.dtype == torch.bfloat16)
    return addresses, halves, kept
