"""How much memory an engine takes, planned before the first request."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from trimtab.engine.config import EngineConfig
from trimtab.engine.core import Core
from trimtab.engine.readings import PIECE
from trimtab.engine.spans import PAGE
from trimtab.errors import ConfigError

_SHARE = 0.3  # of the memory that is free, for keys and values, where the config does not say


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes.

    Attributes:
        pages: for each backbone, pages of the KV cache (16 positions each), the scratch page included.
        tokens: how many tokens of requests that every guide reads along fit at a time, over all requests.
        weights: bytes of all backbones' parameters.
        kv_cache: bytes of the pages.
        logits: bytes of the float32 logits of the largest step.
    """

    pages: tuple[int, ...]
    tokens: int
    weights: int
    kv_cache: int
    logits: int

    def __str__(self) -> str:
        """Return it as one line."""
        sizes = [f"{_gib(self.weights)} weights", f"{_gib(self.kv_cache)} keys and values ({self.tokens} tokens)"]
        return ", ".join([*sizes, f"{_gib(self.logits)} logits"])


def plan_memory(core: Core, config: EngineConfig) -> MemoryPlan:
    """Return how many pages each backbone gets: as many tokens of every stream as fit the budget together.

    A request of T tokens takes T positions for the base and for each guide, each on its own backbone. Without a
    budget in the config it is a share of the free memory, and never more than ``max_num_seqs`` full contexts.

    Raises:
        ConfigError: the budget does not hold one page for each stream.
    """
    streams = [0] * len(core.backbones)
    for stream in range(-1 if core.draft else 0, len(core.readers) + 1):
        streams[core.backbone_of(stream)] += 1
    per_page = sum(count * b.bytes_per_page for count, b in zip(streams, core.backbones, strict=True))
    longest = min(b.context_length for b, count in zip(core.backbones, streams, strict=True) if count)
    most = config.max_num_seqs * -(-longest // PAGE)
    asked = config.kv_cache_memory_gib
    budget = int(asked * 2**30) if asked is not None else int(_SHARE * free_memory(core.base.device))
    pages = min(most, budget // per_page)
    if pages < 1:
        need = per_page / 2**30
        raise ConfigError(
            f"{PAGE} tokens of base and guides take {need:.3g} GiB of keys and values, but there are "
            f"{budget / 2**30:.3g} GiB: raise kv_cache_memory_gib, or load fewer guides."
        )
    each = tuple(pages * count + 1 if count else 0 for count in streams)
    lines = max(config.max_num_seqs, PIECE, config.speculate_up_to * (1 + config.num_speculative_tokens))
    lines *= len(core.readers) + 1
    return MemoryPlan(
        pages=each,
        tokens=pages * PAGE,
        weights=sum(weight_bytes(b.model) for b in core.backbones),
        kv_cache=sum(n * b.bytes_per_page for n, b in zip(each, core.backbones, strict=True)),
        logits=lines * core.base.vocabulary_size * 4,
    )


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, those that are shared counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
