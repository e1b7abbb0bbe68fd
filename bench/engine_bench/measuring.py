"""Timing in turns, ratios, the machine's read bandwidth, and what a decode step has to read."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine_bench.making import make_prompts
from engine_bench.ways import Way
from trimtab.models.quantized import QuantizedLinear


@dataclass(frozen=True)
class Case:
    """So many rows, prompt tokens and new tokens."""

    batch: int
    prompt: int
    tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, prompt {self.prompt} + {self.tokens}"


@dataclass(frozen=True)
class Timing:
    """One round of one way.

    Attributes:
        first: seconds until every row has its first token: the prompts' reading and one token.
        decode: seconds of the other tokens.
        written: tokens written in them, over all rows.
        overall: tokens a second with the prompts' reading, all rows together.
    """

    first: float
    decode: float
    written: int
    overall: float

    @property
    def speed(self) -> float:
        """Tokens a second while decoding, all rows together."""
        return self.written / self.decode


def time_way(way: Way, case: Case, tokenizer: Any, seed: int, *, cpu: bool = False) -> Timing:
    """Time one round: the first token alone, then all tokens, each on prompts that nothing has seen before."""
    one_at_a_time = getattr(way, "one_at_a_time", False)
    rows = 1 if one_at_a_time else case.batch
    spent: list[float] = []
    for half, tokens in enumerate((1, case.tokens)):
        texts, ids = make_prompts(tokenizer, rows, case.prompt, 2 * seed + half)
        start = _now(way, cpu)
        answers = way.write(texts, ids, tokens)
        spent.append(_now(way, cpu) - start)
        if [len(answer) for answer in answers] != [tokens] * rows:
            raise SystemExit(f"{type(way).__name__} wrote {[len(a) for a in answers]} tokens, not {tokens} each.")
    first = spent[0] * (case.batch if one_at_a_time else 1)
    overall = rows * case.tokens / spent[1]
    return Timing(first, max(spent[1] - spent[0], 1e-9), rows * (case.tokens - 1), overall)


def _now(way: Way, cpu: bool) -> float:
    if not cpu:
        return time.perf_counter()
    of_another_process = getattr(way, "cpu_seconds", None)
    return time.process_time() if of_another_process is None else of_another_process


def measure(
    ways: Mapping[str, Way],
    case: Case,
    tokenizer: Any,
    rounds: int,
    *,
    cpu: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Timing]]:
    """Return way → its timings; in each round every way has a turn, first to last and then last to first.

    Each turn has prompts of its own: ways that are one engine must not find each other's prompts in its cache.
    """
    found: dict[str, list[Timing]] = {name: [] for name in ways}
    seeds = itertools.count()
    short = Case(case.batch, case.prompt, min(case.tokens, 4))
    for way in ways.values():  # warms up; not counted
        time_way(way, short, tokenizer, next(seeds), cpu=cpu)
    for number in range(1, rounds + 1):
        for name in list(ways) if number % 2 else reversed(ways):
            timing = time_way(ways[name], case, tokenizer, next(seeds), cpu=cpu)
            found[name].append(timing)
            say(f"{case}, round {number}: {name}: {timing.speed:.1f} tokens/s, first after {timing.first:.2f} s")
    return found


def ratios(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Return min, median and max over the rounds of value ÷ reference of the same round."""
    found = sorted(a / b for a, b in zip(values, reference, strict=True))
    return found[0], statistics.median(found), found[-1]


def read_bandwidth(device: torch.device, megabytes: int = 512, repeats: int = 5) -> float:
    """Return how many bytes a second this machine reads, with torch's threads: the best of several plain sums."""
    data = torch.ones(megabytes * 250_000, dtype=torch.float32, device=device)
    best = 0.0
    for read in (torch.sum, torch.amax):
        for _ in range(repeats):
            _synchronise(device)
            start = time.perf_counter()
            float(read(data))
            _synchronise(device)
            best = max(best, 4 * data.numel() / (time.perf_counter() - start))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bytes_a_step(model: Any, case: Case) -> float:
    """Return what one unguided decode step has to read: every linear weight once, and each row's keys and values."""
    weights = 0
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            weights += module.quantized.nbytes
        elif isinstance(module, nn.Linear):
            weights += module.weight.numel() * module.weight.element_size()
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize
    return weights + case.batch * (case.prompt + case.tokens / 2) * a_token


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has held: of the GPU where it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
