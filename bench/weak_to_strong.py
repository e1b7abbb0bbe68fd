"""Weak to strong with speculation: a small model's guide steers a large base, and its model drafts for both.

    python bench/weak_to_strong.py --base LARGE --guide ARM --guide-base SMALL --threads 2

Compared with the same large base unguided, in one run, the ways taking turns on the same prompts, one answer at a
time. Reported: decode tokens a second (from the first token to the last) as median, its ratio to the plain unguided
base of the same round (min / median / max), drafts kept, and whether the texts are those without speculation.
`studies/weak_to_strong/models.py` makes a pair of models with one tokenizer.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.engine import Engine, load
from trimtab.models import load_base

PROMPTS = [
    "Explain to a child why the sky is blue.",
    "Write a function that returns the n-th Fibonacci number, and say how it works.",
    "How do I ask my boss for a day off?",
    "Summarise: The quick brown fox jumped over the lazy dog, and the dog did not mind. Later they became friends.",
    "What should I cook tonight with rice, eggs and spinach?",
    "My parcel has not arrived. What can I do?",
]
WAYS = {
    "large base, unguided": (0.0, {"speculation": "off"}),
    "guided, plain": (1.0, {"speculation": "off"}),
    "guided, small side drafts": (1.0, {"speculation": "small"}),
    "guided, small side drafts, rejection rule": (1.0, {"speculation": "small", "acceptance": "rejection"}),
    "guided, the text drafts (n-gram)": (1.0, {"speculation": "ngram"}),
    "unguided, small model drafts": (0.0, {"speculation": "small"}),
}


def engines(options: Any) -> dict[str, tuple[Engine, float]]:
    base = load_base(options.base, dtype=options.dtype)
    found: dict[str, tuple[Engine, float]] = {}
    for quantization in options.guide_quantization:
        for name, (strength, config) in WAYS.items():
            if quantization != "none" and (config["speculation"] != "small"):
                continue
            if options.ways and not any(part in name for part in options.ways):
                continue
            engine = load(
                base,
                {"arm": options.guide},
                guide_bases={"arm": options.guide_base},
                guide_quantization=None if quantization == "none" else quantization,
                config={**config, "kernels": options.kernels, "num_speculative_tokens": options.drafts},
            )
            found[name if quantization == "none" else f"{name}, {quantization} small side"] = engine, strength
    return found


def write(engine: Engine, prompt: str, strength: float, options: Any) -> tuple[float, list[int]]:
    """Return decode tokens a second and the tokens."""
    turns = [{"role": "user", "content": prompt}]
    asked = {"temperature": options.temperature, "max_tokens": options.tokens, "seed": 1, "ignore_eos": True}
    stream = engine.stream(turns, guidance=strength, **asked)
    next(stream)
    first, start = len(stream.token_ids), time.perf_counter()
    for _ in stream:
        pass
    took = time.perf_counter() - start
    tokens = stream.token_ids
    return (len(tokens) - first) / took, tokens


def table(speeds: dict[str, list[float]], texts: dict[str, list[list[int]]], kept: dict[str, str]) -> str:
    reference = speeds["large base, unguided"]
    lines = ["| way | tokens a second | ÷ large base, unguided (min / median / max) | drafts kept | text as without |"]
    lines.append("|---|---|---|---|---|")
    for name, found in speeds.items():
        ratios = [s / r for s, r in zip(found, reference, strict=True)]
        low, mid, high = min(ratios), statistics.median(ratios), max(ratios)
        plain = texts["guided, plain" if name.startswith("guided") else "large base, unguided"]
        same = sum(a == b for a, b in zip(texts[name], plain, strict=True))
        lines.append(
            f"| {name} | {statistics.median(found):.1f} | {low:.2f} / **{mid:.2f}** / {high:.2f} | {kept[name]} "
            f"| {same} of {len(plain)} |"
        )
    return "\n".join(lines)


def measure(found: dict[str, tuple[Engine, float]], prompts: Sequence[str], options: Any) -> str:
    speeds: dict[str, list[float]] = {name: [] for name in found}
    texts: dict[str, list[list[int]]] = {name: [] for name in found}
    for name, (engine, strength) in found.items():  # not counted
        write(engine, "Hello", strength, argparse.Namespace(**{**vars(options), "tokens": 4}))
        engine.statistics.drafted = engine.statistics.kept = 0
        print(f"ready: {name} ({engine.memory})", flush=True)
    for prompt in prompts:
        for name, (engine, strength) in found.items():
            speed, tokens = write(engine, prompt, strength, options)
            speeds[name].append(speed)
            texts[name].append(tokens)
    kept = {
        name: f"{e.statistics.kept / e.statistics.drafted:.0%}" if e.statistics.drafted else "–"
        for name, (e, _) in found.items()
    }
    if options.json:
        Path(options.json).write_text(json.dumps(speeds, indent=1), encoding="utf-8")
    return table(speeds, texts, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--guide", required=True)
    parser.add_argument("--guide-base", required=True, help="the model that the guide was trained on")
    parser.add_argument("--guide-quantization", nargs="+", default=["none", "int8"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--drafts", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--ways", nargs="+", default=[], help="only ways whose names hold one of these")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.dtype}, {options.threads} thread(s), {options.tokens} new tokens, temperature "
        f"{options.temperature:g}, at most {options.drafts} drafts, {options.prompts} prompts, torch {torch.__version__}, "
        f"{platform.machine()}\n"
    )
    print("\n" + measure(engines(options), PROMPTS[: options.prompts], options))


if __name__ == "__main__":
    main()
