"""Continuous batching: which tokens of which requests each step reads.

A step is one forward a backbone. It carries the next token of every answer that is being written, and up to a budget
of tokens of prompts that are still being read, so that a long prompt delays the others by a bounded time a step.
Requests join as soon as there are pages for them and leave in the step that ends them. When the pages run out, the
youngest request gives up its own and is read again later; its text goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.engine.answers import Answer
from trimtab.engine.backbone import Pending
from trimtab.engine.config import EngineConfig
from trimtab.engine.core import Core
from trimtab.engine.lockstep import Batch
from trimtab.engine.memory import MemoryPlan, plan_memory
from trimtab.engine.pages import PageKey, PagePool, pages_for
from trimtab.engine.places import Place, Scores
from trimtab.engine.readings import Reading
from trimtab.engine.requests import DRAFT, Request, Row
from trimtab.engine.sampler import own_error, sample
from trimtab.engine.spans import PAGE
from trimtab.engine.speculation import CATCH_UP, Read, make_speculator
from trimtab.errors import PromptTooLongError


@dataclass
class Statistics:
    """What a scheduler has done so far.

    Attributes:
        steps: forwards of the base's backbone.
        tokens_read: tokens that forwards read, of all streams.
        tokens_shared: tokens that were found in the cache instead.
        preemptions: how often a request gave up its pages to an older one.
        drafted: tokens that were drafted.
        kept: drafts that became part of an answer.
    """

    steps: int = 0
    tokens_read: int = 0
    tokens_shared: int = 0
    preemptions: int = 0
    drafted: int = 0
    kept: int = 0


@dataclass
class Scheduler:
    """The requests of one engine.

    Attributes:
        core: what is loaded.
        config: limits.
        waiting: requests without pages, in their order.
        running: requests with pages, the oldest first.
    """

    core: Core
    config: EngineConfig
    waiting: deque[Request] = field(default_factory=deque[Request])
    running: list[Request] = field(default_factory=list[Request])
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        self.plan: MemoryPlan = plan_memory(self.core, self.config)
        self._speculator = make_speculator(self.core, self.config, self.statistics)
        self._pools = [PagePool(max(0, pages - 1)) for pages in self.plan.pages]
        self._awaited: dict[PageKey, Request] = {}  # pages that a running request is about to fill
        for backbone, pages in zip(self.core.backbones, self.plan.pages, strict=True):
            if pages:
                backbone.allocate(pages)

    def add(self, request: Request, *, tokens: int) -> None:
        """Queue a request.

        Args:
            request: the request.
            tokens: how many tokens it may add to its rows.

        Raises:
            PromptTooLongError: it does not fit the KV cache even alone.
        """
        if self._speculator is not None and isinstance(request, Answer):
            self._speculator.attach(request)
        need = [0] * len(self._pools)
        for row in request.rows:
            need[row.backbone] += pages_for(len(row.tokens) + tokens)
        for pages, pool in zip(need, self._pools, strict=True):
            if pages > pool.pages:
                raise PromptTooLongError(
                    f"Prompt and answer need {pages * PAGE} places for keys and values, but the cache has "
                    f"{pool.pages * PAGE}: raise kv_cache_memory_gib, lower max_tokens, or shorten the prompt."
                )
        self.waiting.append(request)

    @property
    def cache_usage(self) -> float:
        """Share of the pages for keys and values that requests hold, of the backbone that has the fewest left."""
        return max((1 - pool.free / pool.pages for pool in self._pools if pool.pages), default=0.0)

    def room(self, request: Request) -> int:
        """Return how many tokens a request may add to its rows so that it fits the KV cache alone."""
        return self.room_for(request.rows)

    def room_for(self, rows: Sequence[Row]) -> int:
        """Return how many tokens may be added to each row of one request so that they fit the KV cache alone."""
        most: list[int] = []
        for number, pool in enumerate(self._pools):
            own = [len(row.tokens) for row in rows if row.backbone == number]
            if own:
                most.append(pool.pages // len(own) * PAGE - max(own))
        return max(0, min(most))

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self._release(request)

    def replace_rows(self, request: Request, rows: list[Row]) -> None:
        """Let a request go on with other rows; those it keeps are the same objects and are not read again."""
        self._release_rows([row for row in request.rows if row not in rows])
        request.rows = rows
        self._forget_awaited(request)

    def step(self) -> bool:
        """Read and write once; return whether there was anything to do."""
        for request in [r for r in [*self.waiting, *self.running] if r.cancelled]:
            self.remove(request)
        self._admit()
        self._draft()
        reads, ready = self._plan_step()
        if not reads:
            return False
        scores = self._forward(reads)
        if self.config.enable_prefix_caching:
            for request in self.running:
                self._publish(request)
        self._decide(ready, scores)
        for request in ready:
            self._release_rows(request.left)
            request.left = []
            if request.finished:
                self._release(request)
        return True

    def _decide(self, ready: Sequence[Request], scores: Scores) -> None:
        answers = [request for request in ready if isinstance(request, Answer)]
        plain = [answer for answer in answers if not answer.ahead]
        drafted = [answer for answer in answers if answer.ahead]
        if plain:
            sample(self.core, plain, scores)
        if drafted and self._speculator is not None:
            self._speculator.decide(drafted, scores)
        for request in ready:
            if isinstance(request, (Reading, Batch)):
                with own_error(request):
                    request.take(scores)

    def _draft(self) -> None:
        """Draft, if so few answers are being written that it pays."""
        if self._speculator is None or not 0 < len(self.running) <= self.config.speculate_up_to:
            return
        answers = [request for request in self.running if isinstance(request, Answer) and request.wanted]
        self._speculator.draft(
            answers, self._forward, lambda row, tokens: row.reserve(self._pools[row.backbone], tokens)
        )

    def _admit(self) -> None:
        """Give pages to requests that wait, in their order, as far as there are some."""
        skipped: list[Request] = []
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.popleft()
            if not request.wanted or self._begins_like_another(request):
                skipped.append(request)
            elif self._makes_room(request):
                self._start(request)
            else:
                self.waiting.appendleft(request)
                break
        self.waiting.extendleft(reversed(skipped))

    def _makes_room(self, request: Request) -> bool:
        """Return whether there are pages for a request; requests that nobody wants just now give up theirs."""
        while not self._fits(request):
            paused = next((r for r in reversed(self.running) if not r.wanted), None)
            if paused is None:
                return False
            self._preempt(paused)
        return True

    def _preempt(self, request: Request) -> None:
        request.drop_ahead()
        self._release(request)
        self.waiting.appendleft(request)
        self.statistics.preemptions += 1

    def _begins_like_another(self, request: Request) -> bool:
        """Return whether the next page it needs is about to be filled by a running request: then waiting saves it."""
        if not self.config.enable_prefix_caching:
            return False
        for row in request.rows:
            keys = row.shareable()
            found = self._pools[row.backbone].find(keys)
            owner = self._awaited.get(keys[len(found)]) if len(found) < len(keys) else None
            if owner is not None and owner.wanted:
                return True
        return False

    def _fits(self, request: Request) -> bool:
        need = [0] * len(self._pools)
        for row in request.rows:
            pool = self._pools[row.backbone]
            used = [page for page in self._shared(row) if not pool.is_idle(page)]
            need[row.backbone] += pages_for(len(row.tokens) + 1) - len(used)
        # A page of reserve for each running row, or requests would push each other out at once.
        for row in [row for other in self.running for row in other.rows]:
            need[row.backbone] += 1
        return not self.running or all(n <= pool.free for n, pool in zip(need, self._pools, strict=True))

    def _shared(self, row: Row) -> list[int]:
        if not self.config.enable_prefix_caching:
            return []
        return self._pools[row.backbone].find(row.shareable())

    def _start(self, request: Request) -> None:
        for row in request.rows:
            row.adopt(self._pools[row.backbone], self._shared(row))
            self.statistics.tokens_shared += row.read
            if isinstance(request, Answer) and not request.begun:
                request.begun, request.cached_tokens = True, row.read  # the base's row is the first
            if self.config.enable_prefix_caching:
                for key in row.shareable()[row.read // PAGE :]:
                    self._awaited.setdefault(key, request)
        place = next((i for i, other in enumerate(self.running) if other.number > request.number), len(self.running))
        self.running.insert(place, request)

    def _plan_step(self) -> tuple[list[Read], list[Request]]:
        """Return what to read, and the requests of which every row gets to its last token."""
        budget = self.config.max_num_batched_tokens
        reads: list[Read] = []
        ready: list[Request] = []
        for request in list(self.running):
            if not request.wanted or request not in self.running:
                continue
            rows = request.scoring
            if request.ahead == 0 and all(row.pending == 1 for row in rows):
                request.look_ahead(budget // len(rows))
                planned = [Read(row, row.pending, row.pending) for row in rows]
                budget -= request.ahead * len(rows)
            elif request.ahead or sum(row.pending for row in rows) <= budget:
                planned = [Read(row, row.pending, min(row.pending, 1 + request.ahead)) for row in rows]
                budget -= sum(read.count for read in planned)
            else:
                planned = self._part(rows, budget)
                budget -= sum(read.count for read in planned)
            for row in request.rows:
                if row.stream == DRAFT and row.pending > CATCH_UP and budget > 0:
                    planned.append(Read(row, min(row.pending - 1, budget), 0))
                    budget -= planned[-1].count
            if self._reserve(request, planned):
                reads.extend(planned)
                if any(read.keep for read in planned):
                    ready.append(request)
        return reads, ready

    @staticmethod
    def _part(rows: Sequence[Row], budget: int) -> list[Read]:
        """Return a part of a prompt. The last token of each row is kept back until all rows have come that far."""
        planned: list[Read] = []
        for row in rows:
            count = min(row.pending - 1, budget)
            if count > 0:
                planned.append(Read(row, count, 0))
                budget -= count
        return planned

    def _reserve(self, request: Request, reads: Sequence[Read]) -> bool:
        """Take the pages for what is to be read, from the youngest requests if need be; return whether it may go on."""
        for read in reads:
            pool = self._pools[read.row.backbone]
            while not read.row.reserve(pool, read.row.read + read.count):
                victim = next((r for r in reversed(self.running) if not r.wanted), self.running[-1])
                self._preempt(victim)
                if victim is request:
                    return False
        return True

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self._forget_awaited(request)
        self._release_rows(request.rows)

    def _release_rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.release(self._pools[row.backbone])

    def _forget_awaited(self, request: Request) -> None:
        for key in [key for key, owner in self._awaited.items() if owner is request]:
            del self._awaited[key]

    def _forward(self, reads: Sequence[Read]) -> dict[Row, list[Place]]:
        """Run what is to be read, one forward a backbone; return where each row's logits lie."""
        scores: dict[Row, list[Place]] = {}
        self.statistics.steps += 1
        started: list[tuple[list[Read], Pending]] = []
        for number, backbone in enumerate(self.core.backbones):
            mine = [read for read in reads if read.row.backbone == number]
            if mine:
                mine.sort(key=lambda read: -1 if read.row.slot is None else read.row.slot)
                started.append((mine, backbone.run_async([read.row.span(read.count, read.keep) for read in mine])))
        for mine, pending in started:
            logits = pending.result()
            line = 0
            for read in mine:
                if read.keep:
                    scores[read.row] = [(logits, line + i) for i in range(read.keep)]
                    line += read.keep
                read.row.read += read.count
                self.statistics.tokens_read += read.count
        return scores

    def _publish(self, request: Request) -> None:
        """Let others share what has been read of tokens that are certain."""
        for row in request.rows:
            for key in row.publish(self._pools[row.backbone], len(row.tokens) - request.ahead):
                self._awaited.pop(key, None)
