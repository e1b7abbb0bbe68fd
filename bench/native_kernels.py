"""The CPU kernels by themselves: tokens a second of a bare step, bytes a second, and products beside torch's.

    OMP_NUM_THREADS=2 python bench/native_kernels.py --threads 1 2 --formats bf16 int8 int4 fp32

On one thread times are CPU time, which other work on the machine disturbs least; on more they are wall time. Each is
the least of many repeats; the plain read beside it is measured between them.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trimtab.engine import native
from trimtab.engine.adapters import Delta, RowAdapters
from trimtab.engine.families import read_shape
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.native.build import library
from trimtab.engine.native.layout import CLinear
from trimtab.engine.shape import Shape
from trimtab.engine.spans import PAGE, Span
from trimtab.models import load_base
from trimtab.models.quantized import QuantizedLinear, QuantizedWeight


def least(run: Any, repeats: int, clock: Any) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def load_in(form: str) -> Any:
    dtype = "float32" if form == "fp32" else "bfloat16"
    return load_base("smollm2", dtype=dtype, quantization=form if form.startswith("int") else None).model


def lora(model: Any, rank: int = 8) -> dict[str, Delta]:
    def factors(layer: Any) -> Delta:
        a, b = torch.randn(layer.in_features, rank), torch.randn(rank, layer.out_features)
        return Delta((0.01 * a).to(model.dtype), (0.01 * b).to(model.dtype), None)

    linears = (torch.nn.Linear, QuantizedLinear)
    return {n: factors(m) for n, m in model.named_modules() if isinstance(m, linears) and n != "lm_head"}


def read_a_step(shape: Shape) -> int:
    """Return the bytes of the weights that one token needs; of the embedding it needs one row."""
    layers = [
        w for layer in shape.layers for w in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    ]
    weights = [linear.weight for linear in (*layers, shape.head)]
    return sum(w.nbytes if isinstance(w, QuantizedWeight) else w.numel() * w.element_size() for w in weights)


def steps(model: Any, form: str, threads: list[int], context: int, repeats: int) -> None:
    shape = read_shape(model)
    per_row = context // PAGE + 2
    sizes = [KVShape(shape.kv_heads, shape.head_dim, shape.head_dim)] * len(shape.layers)
    cache = KVCache(sizes, 1 + 32 * per_row, dtype=shape.dtype, device=torch.device("cpu"))
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    adapters = RowAdapters(model)
    adapters.add(lora(model))
    forward = native.NativeForward(shape, cache, adapters)
    adapters.remove = lambda: None
    weights = read_a_step(shape)
    block = torch.ones(int(weights) // 8, dtype=torch.int64)  # zeros would be one page of memory, over and over
    for count in threads:
        torch.set_num_threads(count)
        clock = time.thread_time if count == 1 else time.perf_counter
        print(f"{form}, {count} thread(s), context {context}:")
        for batch in (1, 4, 16):
            times = []
            for slots in ([None] * batch, [None] * batch + [0] * batch):
                spans = [
                    Span([100 + i], context, np.arange(1 + i * per_row, 1 + (i + 1) * per_row, dtype=np.int32), slot)
                    for i, slot in enumerate(slots)
                ]
                times.append(least(lambda spans=spans: forward(spans), repeats, clock))
            read = least(block.sum, 5, clock)
            plain, guided = times
            print(
                f"  batch {batch:2}: unguided {1e3 * plain:6.2f} ms {batch / plain:5.0f} tok/s | guided {1e3 * guided:6.2f}"
                f" ms {batch / guided:5.0f} tok/s | ratio {plain / guided:.2f} | {weights / plain / 1e9:4.1f} GB/s,"
                f" a plain read {weights / read / 1e9:4.1f}"
            )
        table = np.arange(1, 1 + 512 // PAGE, dtype=np.int32)
        prompt = [Span(list(range(100, 356)), 0, table)]
        took = least(lambda prompt=prompt: forward(prompt), 3, clock)
        print(f"  prefill of 256: {1e3 * took:.0f} ms, {256 / took:.0f} tok/s")


def products(repeats: int) -> None:
    """One thread, bf16, weights from memory: 64 MB of matrices in turn."""
    torch.set_num_threads(1)
    kernels = library()
    for d_in, d_out in ((576, 576), (576, 1536), (1536, 576), (576, 49152), (2048, 2048)):
        count = max(1, 32_000_000 // (d_in * d_out))
        weights = [torch.randn(d_out, d_in).to(torch.bfloat16) for _ in range(count)]
        linears = [CLinear(w.data_ptr(), None, None, None, 1, d_in, d_out, d_in) for w in weights]
        for rows in (1, 2, 4, 16, 32, 256):
            x = torch.randn(rows, d_in).to(torch.bfloat16)
            y = torch.empty(rows, d_out)
            some = linears if rows < 256 else linears[: max(1, count // 8)]

            def ours(some: Any = some, x: Any = x, y: Any = y, rows: int = rows) -> None:
                for linear in some:
                    kernels.product(ctypes.byref(linear), x.data_ptr(), rows, y.data_ptr())

            def theirs(some: Any = some, x: Any = x, weights: Any = weights) -> None:
                for weight in weights[: len(some)]:
                    F.linear(x, weight)

            pair = [least(run, repeats, time.thread_time) for run in (ours, theirs, ours, theirs)]
            own, other = min(pair[0], pair[2]), min(pair[1], pair[3])
            work = len(some) * d_in * d_out
            print(
                f"{d_out:5} x {d_in:4}, {rows:3} rows: ours {2 * work / own / 1e9:5.1f} GB/s {work * rows / own / 1e9:6.1f}"
                f" GMAC/s | torch {2 * work / other / 1e9:5.1f} GB/s {work * rows / other / 1e9:6.1f} GMAC/s |"
                f" {other / own:4.2f} x"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--formats", nargs="*", default=["bf16"], choices=["bf16", "fp32", "int8", "int4"])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--products", action="store_true", help="compare products with torch instead")
    args = parser.parse_args()
    native.build(wait=True)
    print(f"kernels for {library().arithmetic}")
    with torch.inference_mode():
        if args.products:
            products(args.repeats)
            return
        for form in args.formats:
            steps(load_in(form), form, args.threads, args.context, args.repeats)


if __name__ == "__main__":
    main()
