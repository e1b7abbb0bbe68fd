"""A model that is a hash: its logits depend on every token before, and on nothing else.

Its pages hold the tokens themselves, so a wrong page table, a page that was given away too early or a neighbour's
token gives other logits, and the text tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import tiny
from trimtab.decoding.config import Sampling, make_sampling
from trimtab.engine.answers import Answer
from trimtab.engine.backbone import Pending
from trimtab.engine.config import EngineConfig, make_engine_config
from trimtab.engine.core import Core, DraftModel
from trimtab.engine.guidance import Pull
from trimtab.engine.results import Watch
from trimtab.engine.scheduler import Scheduler
from trimtab.engine.spans import PAGE, SCRATCH
from trimtab.errors import GuidanceError
from trimtab.models import VocabularyMap

VOCABULARY = 300
TOKENIZER = tiny.make_tokenizer()


def logits_after(tokens, slot=None, mark=None) -> torch.Tensor:
    """(V,) logits of the mock model after a text."""
    seed = hash((tuple(int(t) for t in tokens), slot, mark)) % 2**31
    return torch.from_numpy(np.random.default_rng(seed).normal(size=VOCABULARY) * 2).float()


@dataclass
class MockBackbone:
    """Reads spans as a real backbone does, and notes what each step read.

    ``error`` makes it a worse model than the others: so much of its logits is its own. One that is
    ``narrow`` writes three tokens only, so that its text repeats itself.
    """

    error: float = 0.0
    narrow: bool = False
    context_length: int = 4096
    bytes_per_page: int = 1024
    model: Any = field(default_factory=lambda: torch.nn.Linear(2, 2))
    steps: list[list[int]] = field(default_factory=list)

    def allocate(self, pages: int) -> None:
        self.pages = np.full((pages, PAGE), -1, dtype=np.int64)

    def run(self, spans) -> torch.Tensor:
        self.steps.append([len(span.tokens) for span in spans])
        slots = [-1 if span.slot is None else span.slot for span in spans]
        assert slots == sorted(slots)
        kept = []
        for span in spans:
            for i, token in enumerate(span.tokens, start=span.start):
                page = span.pages[i // PAGE]
                assert page != SCRATCH
                self.pages[page, i % PAGE] = token
            read = span.start + len(span.tokens)
            text = [self.pages[span.pages[i // PAGE], i % PAGE] for i in range(read)]
            mark = None if span.conditions is None else tuple(span.conditions.tolist())
            kept += [self.logits(text[: read - k], span.slot, mark) for k in reversed(range(span.keep))]
        return torch.stack(kept) if kept else torch.empty(0, VOCABULARY)

    def run_async(self, spans):
        return Pending(self.run(spans))

    def logits(self, text, slot, mark) -> torch.Tensor:
        z = logits_after(text, slot, mark)
        if self.narrow and slot is None:
            z[3:6] += 30.0
        return z + self.error * logits_after(text, "error") if self.error and slot is None else z


@dataclass(eq=False)
class MockGuide:
    """A guide whose preference, if it takes one, is part of the hash; it may not know every token."""

    name: str
    backbone: int = 0
    slot: int | None = 0
    conditioned: bool = False
    objectives: tuple[str, ...] = ("x", "y")
    recommended_weight: float = 1.0
    vocabulary: VocabularyMap = field(default_factory=lambda: VocabularyMap(VOCABULARY, VOCABULARY, None))
    is_policy: bool = False
    reference: MockGuide | None = None

    def condition_key(self, pull: Pull):
        return tuple(pull.alpha) if pull.alpha is not None else None

    def conditions(self, pull: Pull):
        return torch.tensor(pull.alpha) if pull.alpha is not None else None

    def own_id(self, token: int) -> int:
        if self.vocabulary.index is not None and self.vocabulary.index[token] < 0:
            raise GuidanceError(f"token {token}")
        return token

    def encode_prompt(self, prompt) -> list[int]:
        return [5, *TOKENIZER(prompt)["input_ids"]]

    def preference(self, pull: Pull):
        return {}


def make_core(*guides: MockGuide, backbones: int = 1, draft: int | None = None, error: float = 0.3) -> Core:
    """What is loaded; ``draft`` is the backbone whose bare weights draft, a noisy copy of the base."""
    base = SimpleNamespace(
        tokenizer=TOKENIZER, vocabulary_size=VOCABULARY, device=torch.device("cpu"), id="mock", model=None
    )
    models = [MockBackbone(error=error if k == draft else 0.0) for k in range(backbones)]
    models[0].model = torch.nn.Linear(2, 20)  # larger than the others, so that drafting is cheap
    drafts = None if draft is None else DraftModel(draft, VocabularyMap(VOCABULARY, VOCABULARY, None))
    return Core(base, models, list(guides), frozenset({2}), drafts)


def make_scheduler(core: Core, *, tokens: int = 0, **options: Any) -> Scheduler:
    """A scheduler; ``tokens`` sets the memory for keys and values so that so many tokens of every stream fit."""
    if tokens:
        streams = len(core.guides) + 1
        options["kv_cache_memory_gib"] = (-(-tokens // PAGE)) * streams * 1024 / 2**30
    config: EngineConfig = make_engine_config(options)
    return Scheduler(core, config)


def make_answer(
    core: Core,
    prompt,
    pulls=(),
    sampling: Sampling | None = None,
    seed: int = 0,
    rule: Any = "coupled",
    watch: Watch | None = None,
    salt: str | None = None,
    **options: Any,
) -> Answer:
    ids = list(prompt) if not isinstance(prompt, str) else TOKENIZER(prompt)["input_ids"]
    prompts = {0: ids}
    everyone = watch is not None and watch.objectives
    streams = [j + 1 for j, pull in enumerate(pulls) if pull.weight != 0 or everyone]
    prompts |= {stream: [5, *ids] for stream in core.with_references(streams) if stream}
    chosen = sampling or make_sampling(None, **{"max_tokens": 8, "ignore_eos": True, **options})
    return Answer(core, prompts, tuple(pulls), chosen, seed, rule=rule, prompt=prompt, watch=watch, salt=salt)


def add(scheduler: Scheduler, answer: Answer) -> Answer:
    scheduler.add(answer, tokens=answer.limit)
    return answer


def finish(scheduler: Scheduler) -> None:
    while scheduler.step():
        pass


def expected_greedy(core: Core, answer: Answer) -> list[int]:
    """The answer's tokens by the mock model alone, without any scheduler."""
    tokens: list[int] = []
    while len(tokens) < answer.limit:
        z = logits_after([*answer.prompts[0], *tokens])
        for stream, prompt in answer.prompts.items():
            if stream:
                guide, pull = core.guides[stream - 1], answer.pulls[stream - 1]
                mark = None if pull.alpha is None else tuple(torch.tensor(pull.alpha).tolist())
                z = z + pull.weight * logits_after([*prompt, *tokens], guide.slot, mark)
        tokens.append(int(z.argmax()))
    return tokens
