"""Weight-only quantised linear layers: what is stored of a weight, and what it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
