"""Decode steps as CUDA graphs: the same few sizes again and again, so that a step costs one launch and no Python.

A step of equally long spans is padded to a *bucket* of rows and pages. A bucket has input buffers that stay where they
are, and the operations on them are recorded once and then replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.fusing import Conditions
from trimtab.engine.layouts import Batch, Layout, Plan, padded_plan, to_device
from trimtab.engine.llama import TorchForward
from trimtab.engine.spans import Span

Segments = tuple[tuple[int | None, int], ...]

_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MOST_TOKENS = 256
_MOST_TOKENS_OF_A_SPAN = 16
_MOST_GRAPHS = 64


def bucket(spans: Sequence[Span]) -> tuple[Segments, int] | None:
    """Return the rows of each slot and the pages of a step's bucket; ``None`` for spans that are none of a step."""
    length = len(spans[0].tokens)
    if length > _MOST_TOKENS_OF_A_SPAN or any(len(span.tokens) != length for span in spans):
        return None
    segments: list[tuple[int | None, int]] = []
    for slot, own in itertools.groupby(spans, key=lambda span: span.slot):
        n = len(list(own))
        rows = next((rows for rows in _ROWS if rows >= n), None)
        if rows is None:
            return None
        segments.append((slot, rows))
    if len({slot for slot, _ in segments}) < len(segments) or length * sum(n for _, n in segments) > _MOST_TOKENS:
        return None
    return tuple(segments), pages_bucket(max(-(-(span.start + length) // 16) for span in spans))


def pages_bucket(pages: int) -> int:
    """Return the width that a page table is padded to: at most an eighth more than it needs, or 3 pages."""
    step = max(4, (1 << (pages - 1).bit_length()) // 8)
    return -(-pages // step) * step


class Step:
    """The input buffers of one bucket, and what runs on them.

    Attributes:
        batch: the buffers.
    """

    def __init__(self, forward: TorchForward, plan: Plan, device: torch.device) -> None:
        self._forward = forward
        found = forward.conditions(plan)
        self._loaded: list[Conditions | None] = [None] * len(found)
        own = [None if given is None else Conditions([part.clone() for part in given.parts]) for given in found]
        self.batch = Batch(plan.layout, to_device(plan.numbers, device).clone(), own)

    def load(self, plan: Plan) -> None:
        """Put a step's numbers into the buffers."""
        numbers = torch.from_numpy(plan.numbers)
        if self.batch.numbers.is_cuda:
            numbers = numbers.pin_memory()
        self.batch.numbers.copy_(numbers, non_blocking=True)
        for i, given in enumerate(self._forward.conditions(plan)):
            if given is not None and given is not self._loaded[i]:
                for buffer, part in zip(self.batch.conditions[i].parts, given.parts, strict=True):
                    buffer.copy_(part)
                self._loaded[i] = given

    def compute(self) -> Tensor:
        """Return the logits of every token of the bucket, (tokens, V)."""
        return self._forward.compute(self.batch)


class SteppedForward:
    """A :class:`TorchForward` whose decode steps run in buckets; what is no step runs as it is."""

    def __init__(self, forward: TorchForward, record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]]) -> None:
        """Take a forward and how to record a function over buffers; see :class:`GraphRecorder`."""
        self._forward, self._record = forward, record
        self._device = forward.shape.embedding.device
        self._steps: dict[Layout, tuple[Step, Callable[[], Tensor]]] = {}
        self._seen: set[Layout] = set()

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits, good until the next call."""
        found = bucket(spans)
        if found is None:
            return self._forward(spans)
        plan, places = padded_plan(spans, *found)
        if plan.layout not in self._seen:  # a size that comes once is not worth its recording
            self._seen.add(plan.layout)
            return self._forward(spans)
        if len(plan.fresh_pages):
            self._forward.cache.clear(to_device(plan.fresh_pages, self._device))
        step, replay = self._recorded(plan)
        step.load(plan)
        logits = replay()
        if np.array_equal(places, np.arange(len(logits))):
            return logits
        return logits.index_select(0, to_device(places, self._device))

    def _recorded(self, plan: Plan) -> tuple[Step, Callable[[], Tensor]]:
        found = self._steps.pop(plan.layout, None)
        if found is None:
            step = Step(self._forward, plan, self._device)
            found = step, self._record(step.compute)
            if len(self._steps) >= _MOST_GRAPHS:
                del self._steps[next(iter(self._steps))]
        self._steps[plan.layout] = found  # the one used last is the last to go
        return found


class GraphRecorder:
    """Records functions over fixed buffers as CUDA graphs in one pool of memory.

    A replay overwrites what an earlier one of any graph returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Run a function once to warm up, record it, and return what replays it."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                function()  # libraries make their workspaces now, which a graph must not
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may be stepping another backbone, which is none of this recording's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def run_as_is(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record nothing: the buckets run on any device."""
    return function
