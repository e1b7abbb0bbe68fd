"""Weight-only quantised linear layers: what is stored of a weight, and what it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RUN = 32
"""Inputs that 4-bit codes are packed by."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight W (D_out, D_in) as small integers: W[o, i] = scales[o, g] · q[o, i] + minima[o, g], g = i // group.

    Attributes:
        bits: 8 or 4.
        codes: q. 8 bits: (D_out, D_in) int8. 4 bits: (D_out, D_in / 2) uint8, q from 0 to 15; in each run of 32
            inputs, byte j (0 to 15) holds input j in its low half and input j + 16 in its high half.
        scales: (D_out, G) float32.
        minima: (D_out, G) float32, or ``None`` for 0.
        group: inputs that share a scale; D_in for one scale a row, a multiple of 32 for 4 bits.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    group: int

    @property
    def d_out(self) -> int:
        """Rows of W."""
        return int(self.codes.shape[0])

    @property
    def d_in(self) -> int:
        """Columns of W."""
        return int(self.codes.shape[1]) * (8 // self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes that reading it once takes."""
        parts = (self.codes, self.scales, self.minima)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def integers(self) -> Tensor:
        """Return q, (D_out, D_in) int8, unpacked."""
        if self.bits == 8:
            return self.codes
        runs = self.codes.unflatten(1, (-1, RUN // 2))
        return torch.cat([runs & 15, runs >> 4], dim=-1).flatten(1).to(torch.int8)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return W, (D_out, D_in): computed in float32, then rounded to ``dtype``."""
        values = self.integers().unflatten(1, (-1, self.group)) * self.scales.unsqueeze(-1)
        if self.minima is not None:
            values += self.minima.unsqueeze(-1)
        return values.flatten(1).to(dtype)


def pack(integers: Tensor) -> Tensor:
    """Return 4-bit codes in the order of :class:`QuantizedWeight`: (D_out, D_in) from 0 to 15 → (D_out, D_in / 2)."""
    runs = integers.to(torch.uint8).unflatten(1, (-1, 2, RUN // 2))
    return (runs[:, :, 0] | runs[:, :, 1] << 4).flatten(1)


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with a quantised W, in the dtype of x.

    This forward is the plain one, for any path that calls the module: it makes the whole W anew in each call. The
    fast forwards read :attr:`quantized` themselves.

    Attributes:
        in_features: D_in.
        out_features: D_out.
        bias: (D_out,) or ``None``.
        dtype: that of the weight before it was quantised, so of x.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None

    def __init__(self, quantized: QuantizedWeight, bias: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = quantized.d_in, quantized.d_out
        self.dtype = dtype
        self._bits, self._group = quantized.bits, quantized.group
        # Buffers, so that a copy or a move of the model takes them along.
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", quantized.scales)
        self.register_buffer("minima", quantized.minima)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def quantized(self) -> QuantizedWeight:
        """W as it is stored; the module's own tensors, not copies."""
        return QuantizedWeight(self._bits, self.codes, self.scales, self.minima, self._group)

    def forward(self, x: Tensor) -> Tensor:
        """Return y, (…, D_out), for x, (…, D_in)."""
        return F.linear(x, self.quantized.dequantize(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Say what the module's line in a printed model says."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self._bits}, bias={bias}"
