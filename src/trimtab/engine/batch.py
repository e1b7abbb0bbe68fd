"""Decoding a batch of answers: one forward a backbone and step, one combination, one draw an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.decoding.config import Sampling
from trimtab.decoding.rules import combine, ensure_usable
from trimtab.decoding.sampling import choose
from trimtab.decoding.stops import TextAssembler
from trimtab.engine.backbone import Backbone, Rows, StreamRows
from trimtab.engine.conditioned import RowConditions
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.results import FinishReason, Generation
from trimtab.errors import NumericalError, PromptTooLongError
from trimtab.models import Base

BASE = 0  # the base's stream; guide j is stream j + 1


@dataclass(frozen=True)
class Core:
    """What is loaded: the base, its guides and their backbones."""

    base: Base
    backbones: Sequence[Backbone]
    guides: Sequence[Guide]
    stop_ids: frozenset[int]

    def room(self, prompts: Sequence[list[int] | None]) -> int:
        """Return how many tokens fit behind the prompts of one request, base's and guides'.

        Raises:
            PromptTooLongError: one of them fills its context.
        """
        most: list[int] = []
        for stream, ids in enumerate(prompts):
            if ids is None:
                continue
            guide = self.guides[stream - 1] if stream else None
            length = self.backbones[guide.backbone if guide else 0].context_length
            if len(ids) >= length:
                reader = f"the guide {guide.name!r}" if guide else f"the base {self.base.id!r}"
                raise PromptTooLongError(
                    f"The prompt has {len(ids)} tokens, but {reader} reads at most {length}, answer included: "
                    "shorten the prompt."
                )
            most.append(length - len(ids))
        return min(most)


@dataclass
class Answer:
    """One answer being written.

    Attributes:
        prompts: stream → prompt ids as that stream reads them; ``None`` for a guide that has no row here.
        pulls: what is asked of each guide.
        limit: most tokens, by ``max_tokens`` and by the context.
    """

    prompt_index: int
    sample_index: int
    prompts: list[list[int] | None]
    pulls: tuple[Pull, ...]
    sampling: Sampling
    limit: int
    seed: int | None
    text: TextAssembler
    tokens: list[int] = field(default_factory=list[int])
    finish_reason: FinishReason | None = None
    generator: torch.Generator | None = None
    seen: Tensor | None = None  # (V,) bool, kept only for a repetition penalty

    def result(self, guides: Sequence[Guide]) -> Generation:
        """Return the finished answer."""
        return Generation(
            text=self.text.text,
            token_ids=list(self.tokens),
            finish_reason=self.finish_reason or "length",
            stopped_by=self.text.stopped_by,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
            prompt_tokens=len(self.prompts[BASE] or ()),
            seed=self.seed,
            **applied(guides, self.pulls),
        )


def applied(guides: Sequence[Guide], pulls: Sequence[Pull]) -> dict[str, Any]:
    """Return what results say of guidance: ``weights`` by guide, and ``preferences`` of guides that take one."""
    named = {guide.name: (guide, pull) for guide, pull in zip(guides, pulls, strict=True)}
    return {
        "weights": {name: pull.weight for name, (_, pull) in named.items()},
        "preferences": {name: guide.preference(pull) for name, (guide, pull) in named.items() if guide.conditioned},
    }


def new_answer(
    core: Core,
    *,
    prompts: list[list[int] | None],
    pulls: tuple[Pull, ...],
    sampling: Sampling,
    seed: int,
    prompt_index: int,
    sample_index: int,
) -> Answer:
    """Return an answer with no token yet."""
    answer = Answer(
        prompt_index=prompt_index,
        sample_index=sample_index,
        prompts=prompts,
        pulls=pulls,
        sampling=sampling,
        limit=min(sampling.max_tokens, core.room(prompts)),
        seed=None if sampling.is_greedy else seed,
        text=TextAssembler(core.base.tokenizer, sampling.stop),
    )
    if not sampling.is_greedy:
        answer.generator = torch.Generator().manual_seed(seed)
    if sampling.repetition_penalty != 1:
        answer.seen = torch.zeros(core.base.vocabulary_size, dtype=torch.bool)
        answer.seen[torch.tensor(prompts[BASE])] = True
    return answer


class Batch:
    """Answers written together. Finished ones leave, so that a step costs what is still being written.

    Attributes:
        active: the unfinished answers, in the order of their rows.
    """

    def __init__(self, core: Core, groups: Sequence[Sequence[Answer]]) -> None:
        """Read the prompts: one row for each group, whose answers share prompts and guides, then cloned."""
        self.core = core
        self.active: list[Answer] = [group[0] for group in groups]
        self._lanes: dict[int, Rows] = {}  # backbone → its rows
        self._logits: dict[int, tuple[Tensor, Sequence[int]]] = {}  # stream → scores not yet drawn from, owners
        self._is_current = False
        self._read()
        if any(len(group) > 1 for group in groups):
            self.active = [answer for group in groups for answer in group]
            self._select([g for g, group in enumerate(groups) for _ in group])

    @property
    def streams(self) -> list[int]:
        """The streams that have rows: 0 for the base, j + 1 for guide j."""
        return sorted(stream.number for rows in self._lanes.values() for stream in rows.streams)

    def advance(self) -> list[tuple[Answer, str]]:
        """Write one token of every active answer; return each with the text it gained."""
        self._read()
        self._step()
        tokens = self._choose(self._combined(self._logits))
        self._logits = {}
        gained = [(answer, self._take(answer, token)) for answer, token in zip(self.active, tokens, strict=True)]
        going = [i for i, answer in enumerate(self.active) if answer.finish_reason is None]
        if len(going) < len(self.active):
            self.active = [self.active[i] for i in going]
            if going:
                self._select(going)
        return gained

    def refresh(self) -> None:
        """Note that pulls or prompts of answers have changed, which may need rows that are read from the start."""
        self._is_current = False

    def _read(self) -> None:
        """Read prompts and answers so far on every backbone whose rows are not those that the answers now need.

        A guide that joins has read nothing yet; and what a guide has cached of the text was read at the preference it
        then had, so at another one it reads the text again.
        """
        if self._is_current:
            return
        for number, backbone in enumerate(self.core.backbones):
            streams = [stream for s in self._streams_on(number) if (stream := self._stream(s)).owners]
            if not streams or (number in self._lanes and self._are_right(self._lanes[number], streams)):
                continue
            rows = self._lanes[number] = Rows(backbone, streams)
            self._keep(rows, rows.prefill([self._history(s.number, i) for s in streams for i in s.owners]))
        self._is_current = True

    def _stream(self, s: int) -> StreamRows:
        owners = [i for i, answer in enumerate(self.active) if answer.prompts[s] is not None]
        if not s:
            return StreamRows(BASE, None, owners)
        guide = self.core.guides[s - 1]
        made = [guide.conditions(self.active[i].pulls[s - 1]) for i in owners]
        return StreamRows(s, guide.slot, owners, RowConditions.of(made))

    def _are_right(self, rows: Rows, wanted: Sequence[StreamRows]) -> bool:
        there = [stream for stream in rows.streams if stream.owners]
        same_rows = [(s.number, s.owners) for s in there] == [(s.number, s.owners) for s in wanted]
        return same_rows and all(self._follows(s, w) for s, w in zip(there, wanted, strict=True))

    def _follows(self, stream: StreamRows, wanted: StreamRows) -> bool:
        """Return whether rows were read at the wanted preferences. A row of weight 0 is not heard, so any will do."""
        if stream.conditions is None or wanted.conditions is None:
            return True
        weights = [self.active[owner].pulls[stream.number - 1].weight for owner in stream.owners]
        rows = zip(weights, stream.conditions.rows, wanted.conditions.rows, strict=True)
        return all(weight == 0 or torch.equal(found, asked) for weight, found, asked in rows)

    def _step(self) -> None:
        for rows in self._lanes.values():
            if rows.streams[0].number in self._logits:
                continue  # has just been read
            last = [self._own_id(s.number, self.active[owner].tokens[-1]) for s in rows.streams for owner in s.owners]
            if last:
                self._keep(rows, rows.step(last))

    def _keep(self, rows: Rows, logits: Sequence[Tensor]) -> None:
        self._logits.update({s.number: (scores, s.owners) for s, scores in zip(rows.streams, logits, strict=True)})

    def _select(self, owners: list[int]) -> None:
        """Row bookkeeping after answers were dropped or cloned: new answer i continues old answer ``owners[i]``."""
        for stream, (scores, old) in self._logits.items():
            place = {owner: i for i, owner in enumerate(old)}
            kept = [(new, place[owner]) for new, owner in enumerate(owners) if owner in place]
            index = torch.tensor([i for _, i in kept], device=scores.device)
            self._logits[stream] = (scores[index], [new for new, _ in kept])
        for number, rows in list(self._lanes.items()):
            if any(owner in stream.owners for stream in rows.streams for owner in owners):
                rows.select(owners)
            else:
                del self._lanes[number]

    def _combined(self, logits: Mapping[int, tuple[Tensor, Sequence[int]]]) -> Tensor:
        base = logits[BASE][0]
        scores: list[Tensor] = []
        weights: list[Tensor] = []
        index: list[Tensor | None] = []
        for stream, (raw, owners) in sorted(logits.items()):
            if stream == BASE or not owners:
                continue
            w = [self.active[owner].pulls[stream - 1].weight for owner in owners]
            if any(w):
                scores.append(self.core.guides[stream - 1].vocabulary.gather(raw).to(base.device))
                weights.append(torch.tensor(w, device=base.device))
                index.append(torch.tensor(owners, device=base.device))
        z = combine(base, scores, weights, index)
        try:
            ensure_usable(z)
        except NumericalError as error:
            raise NumericalError(f"{error} {self._blame(logits)}") from error
        return z

    def _blame(self, logits: Mapping[int, tuple[Tensor, Sequence[int]]]) -> str:
        for stream, (raw, _) in sorted(logits.items()):
            if bool(torch.isnan(raw).any()):
                who = f"guide {self.core.guides[stream - 1].name!r}" if stream else f"base {self.core.base.id!r}"
                return f"They come from the {who}: try dtype='float32', and check its weights."
        return "Each model's own logits are numbers: the weights are too large, or no token is left that all know."

    def _choose(self, z: Tensor) -> list[int]:
        """Return one token for each active answer; answers of one sampling config are drawn together."""
        kinds: dict[Sampling, list[int]] = {}
        for i, answer in enumerate(self.active):
            kinds.setdefault(answer.sampling, []).append(i)
        tokens = [0] * len(self.active)
        for sampling, members in kinds.items():
            part = z if len(kinds) == 1 else z[torch.tensor(members, device=z.device)]
            masks = [seen for i in members if (seen := self.active[i].seen) is not None]
            seen = torch.stack(masks).to(z.device) if masks else None
            uniforms = None if sampling.is_greedy else torch.cat([_uniform(self.active[i]) for i in members])
            for i, token in zip(members, choose(part, sampling, seen=seen, uniforms=uniforms).tolist(), strict=True):
                tokens[i] = int(token)
        return tokens

    def _take(self, answer: Answer, token: int) -> str:
        """Add a token to an answer and see whether it ends; return the text gained."""
        answer.tokens.append(token)
        if answer.seen is not None:
            answer.seen[token] = True
        if token in self.core.stop_ids and not answer.sampling.ignore_eos:
            answer.finish_reason = "stop"
            return answer.text.finish()
        gained = answer.text.push(token)
        if answer.text.stopped_by is None and len(answer.tokens) >= answer.limit:
            answer.finish_reason = "length"
            gained += answer.text.finish()
        if answer.text.stopped_by is not None:
            answer.finish_reason = "stop"
        return gained

    def _streams_on(self, number: int) -> list[int]:
        """Return the streams of a backbone, the base's first: its rows are then a slice without adapter."""
        guides = [j + 1 for j, guide in enumerate(self.core.guides) if guide.backbone == number]
        return [BASE, *guides] if number == 0 else guides

    def _own_id(self, stream: int, token: int) -> int:
        return self.core.guides[stream - 1].own_id(token) if stream else token

    def _history(self, stream: int, i: int) -> list[int]:
        answer = self.active[i]
        return [*(answer.prompts[stream] or ()), *(self._own_id(stream, token) for token in answer.tokens)]


def _uniform(answer: Answer) -> Tensor:
    generator: Any = answer.generator
    return torch.rand(1, generator=generator, dtype=torch.float64)
