"""What an answer costs: processor seconds of one thread, so that what else the machine does is not in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trimtab
from objectives.guides import cached, key_of
from single.answers import BASE, best_of
from single.plan import DPO, GENARM

PROMPTS = 8


def measure(options: Any, prompts: Sequence[Any], trained: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return method → processor seconds an answer, 8 prompts at a time, answers of full length."""
    folders = {GENARM: trained[GENARM]["folders"][0], DPO: trained[DPO]["folders"][0]}
    texts = [row["prompt"] for row in prompts][:PROMPTS]
    sampling = {"temperature": 1.0, "max_tokens": options.max_tokens, "seed": 0, "ignore_eos": True}

    def make() -> dict[str, Any]:
        found: dict[str, Any] = {}
        with trimtab.load(options.base, guides={name: Path(folder) for name, folder in folders.items()}) as engine:

            def run(weights: dict[str, float], n: int) -> float:
                started = time.process_time()
                engine.generate(
                    texts, guidance=weights, sampling={**sampling, "n": n}, max_batch_size=options.batch_size
                )
                return (time.process_time() - started) / len(texts)

            off = dict.fromkeys(folders, 0.0)
            run(off, 1)  # the first run pays for what later ones find prepared
            found[BASE] = run(off, 1)
            for name in folders:
                found[name] = run({**off, name: 1.0}, 1)
            for n in options.best_of:
                found[best_of(n)] = run(off, n)
        return found

    key = key_of([Path(f).name for f in folders.values()], texts, sampling, list(options.best_of), options.batch_size)
    return cached(work / f"runtime-{key}.json", make)
