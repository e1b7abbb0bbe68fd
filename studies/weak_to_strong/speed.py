"""Decode speed of each way beside the plain large base, the ways taking turns on the same prompts, one answer at a time.

Every round is one prompt, on which every way has a turn, so that other work on the machine falls on all of them; what is
reported are ratios to the plain base of the same round, and tokens a second only beside.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import trimtab
from trimtab.evaluation.sweeps.generation import Prompt
from trimtab.models import load_base

TOKENS = 48
PLAIN = "1.5B, plain"
CONFIG = {"enable_prefix_caching": False, "kv_cache_memory_gib": 0.25}
"""Of every engine: a second turn on a prompt reads it like the first, and many engines fit side by side."""


def merged(large: Any, guide: Path) -> Any:
    """Return the large base with a guide's LoRA added into its weights: what one would serve after a fine-tune."""
    from trimtab.rewards import load_guide_model

    model: Any = load_guide_model(guide, large)
    return dataclasses.replace(large, model=model.merge_and_unload().eval())


def engines(options: Any, folders: dict[str, Path]) -> dict[str, tuple[Any, float]]:
    """Return way → (engine, strength). Ways on the same weights share them."""
    first = options.seeds[0]
    drafter = "small" if options.small != options.large else "ngram"  # --smoke has one model only
    large = load_base(options.large)
    found: dict[str, tuple[Any, float]] = {}

    def add(name: str, guide: str | None, strength: float, speculation: str, quantization: str | None = None) -> None:
        guides = {guide: folders[guide]} if guide else {}
        found[name] = (
            trimtab.load(
                large,
                guides,
                guide_bases=dict.fromkeys(guides, options.small) if guide and "-small-" in guide else {},
                guide_quantization=quantization,
                config={**CONFIG, "speculation": speculation},
            ),
            strength,
        )

    arm, own, policy, proxy = (
        f"{method}-{size}-{first}"
        for method, size in (("genarm", "small"), ("genarm", "large"), ("dpo", "large"), ("dpo", "small"))
    )
    add(PLAIN, None, 0.0, "off")
    if own in folders:
        add("1.5B + its own ARM", own, 1.0, "off")
    if policy in folders:
        add("1.5B DPO, its LoRA beside the base", policy, 1.0, "off")
    add("1.5B + 0.5B ARM", arm, 1.0, "off")
    add("1.5B + 0.5B ARM, the 0.5B side drafts", arm, 1.0, drafter)
    add("1.5B + 0.5B ARM, the 0.5B side drafts in int8", arm, 1.0, drafter, "int8")
    if proxy in folders:
        add("1.5B + 0.5B DPO, proxy", proxy, 1.0, "off")
        add("1.5B + 0.5B DPO, proxy, the 0.5B side drafts", proxy, 1.0, drafter)
    if policy in folders:
        tuned = merged(load_base(options.large), folders[policy])
        found["1.5B DPO, merged"] = trimtab.load(tuned, config={**CONFIG, "speculation": "off"}), 0.0
    return found


def one(engine: Any, prompt: Any, strength: float) -> tuple[float, list[int]]:
    """Return decode tokens a second, from the first token to the last, and the tokens."""
    stream = engine.stream(
        prompt, guidance=strength, temperature=1.0, max_tokens=TOKENS, seed=1, ignore_eos=True
    )  # fmt: skip
    next(stream)
    first, start = len(stream.token_ids), time.perf_counter()
    for _ in stream:
        pass
    return (len(stream.token_ids) - first) / (time.perf_counter() - start), list(stream.token_ids)


def measure(options: Any, folders: dict[str, Path], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return way → tokens a second and ratio to the plain base: least, median and greatest over the rounds."""
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    found = engines(options, folders)
    for engine, strength in found.values():  # a turn that does not count
        one(engine, prompts[0].content, strength)
        engine.statistics.drafted = engine.statistics.kept = 0
    speeds: dict[str, list[float]] = {name: [] for name in found}
    texts: dict[str, list[list[int]]] = {name: [] for name in found}
    for number, prompt in enumerate(prompts[: options.speed_rounds]):
        for name, (engine, strength) in found.items():
            speed, tokens = one(engine, prompt.content, strength)
            speeds[name].append(speed)
            texts[name].append(tokens)
        print(f"round {number + 1}: " + ", ".join(f"{n} {s[-1]:.1f}" for n, s in speeds.items()), flush=True)
    rows: dict[str, Any] = {}
    for name, (engine, _) in found.items():
        ratios = [s / p for s, p in zip(speeds[name], speeds[PLAIN], strict=True)]
        stats = engine.statistics
        plain = name.split(", the 0.5B side")[0]
        rows[name] = {
            "tokens_a_second": statistics.median(speeds[name]),
            "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
            "kept": stats.kept / stats.drafted if stats.drafted else None,
            "same_text": None if plain == name else sum(a == b for a, b in zip(texts[name], texts[plain], strict=True)),
        }
    how = {
        "threads": options.threads,
        "rounds": min(options.speed_rounds, len(prompts)),
        "tokens": TOKENS,
        "load_before": load,
    }
    return {"ways": rows, **how}
