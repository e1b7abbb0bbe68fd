"""Drafting for the answers of a step, so that base and guides check several tokens of each in one forward.

A model that drafts does it with the guides that share its weights, in the same forwards: what these guides think of a
draft is known when it is made, and the check only asks the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trimtab.decoding.adjusting import adjusted
from trimtab.decoding.drafting import Costs, DraftLength, NGramDrafter
from trimtab.decoding.speculation import propose, verify
from trimtab.engine.answers import Answer
from trimtab.engine.config import EngineConfig
from trimtab.engine.core import Core
from trimtab.engine.drafting import Drafting
from trimtab.engine.memory import weight_bytes
from trimtab.engine.places import Place, Scores
from trimtab.engine.requests import BASE, DRAFT, Row
from trimtab.engine.sampler import combined, draw_together, notes_of, take, unusable

_POSITION = 0.05  # what one more position adds to a check, as a share of a step
CATCH_UP = 32  # tokens that a drafting model may be behind and still draft; more it reads beside the prompts


@dataclass(slots=True)
class Read:
    """What one step reads of one row: ``count`` tokens, with logits for the last ``keep``."""

    row: Row
    count: int
    keep: int


Forward = Callable[[Sequence[Read]], Scores]
"""Reads rows and returns where their logits lie; good until the next call."""


class Counts(Protocol):
    """Where drafts are counted."""

    drafted: int
    kept: int


class Speculator:
    """Drafts for answers, by a model or by looking their text up."""

    def __init__(self, core: Core, config: EngineConfig, counts: Counts) -> None:
        self._core, self._config, self._counts = core, config, counts
        self._costs = _costs(core)

    def attach(self, answer: Answer) -> None:
        """Give a new answer what drafting for it needs."""
        length = DraftLength(self._costs, most=self._config.num_speculative_tokens)
        if self._core.draft is None:
            answer.drafting = Drafting(length, NGramDrafter(answer.prompts[BASE]))
            return
        answer.drafting = Drafting(length)
        ids = [self._core.own_id(DRAFT, token) for token in answer.prompts[BASE]]
        answer.rows.append(Row(DRAFT, self._core.draft.backbone, ids, salt=answer.salt))

    def draft(self, answers: Sequence[Answer], forward: Forward, reserve: Callable[[Row, int], bool]) -> None:
        """Draft for answers whose next token is all that is missing.

        Args:
            answers: the answers.
            forward: reads rows.
            reserve: takes pages for so many tokens of a row if there are enough; returns whether there were.
        """
        wanted: dict[Answer, int] = {}
        for answer in answers:
            count = self._count(answer)
            if count and all(reserve(row, len(row.tokens) + count) for row in answer.rows):
                wanted[answer] = count
        if self._core.draft is None:
            for answer, count in wanted.items():
                self._look_up(answer, count)
            return
        for i in range(max(wanted.values(), default=0)):
            self._draft_one([a for a, count in wanted.items() if count > i and a.ahead == i], i, forward)

    def decide(self, answers: Sequence[Answer], scores: Scores) -> None:
        """Take, for answers with drafts, those that stay and the token after them."""
        scores = {**scores, **{row: places for a in answers for row, places in _complete(a, scores)}}
        z = combined(self._core, answers, scores)
        first = [0]
        for answer in answers:
            first.append(first[-1] + 1 + answer.ahead)
        tokens: list[list[int]] = [[] for _ in answers]
        for members in draw_together(answers):
            part = [answers[i] for i in members]
            lines = torch.cat([z[first[i] : first[i + 1]] for i in members]) if len(members) < len(answers) else z
            for i, written in zip(members, self._verify(lines, part), strict=True):
                tokens[i] = written
        notes = notes_of(self._core, answers, tokens, z, first, scores)
        for i, (answer, written) in enumerate(zip(answers, tokens, strict=True)):
            self._counts.drafted += answer.ahead
            self._counts.kept += len(written) - 1
            own = z[first[i] : first[i] + len(written)]
            if answer.adjustments is not None:
                own = adjusted(own, [(answer.adjustments, written[:n]) for n in range(len(written))])
            usable = torch.isfinite(own.amax(dim=-1))
            if bool(usable.all()):
                take(answer, written, notes.get(i, ()))
            else:
                answer.error = unusable(self._core, own[~usable][0], answer, scores)

    def _verify(self, z: Tensor, answers: Sequence[Answer]) -> list[list[int]]:
        drafting = [answer.drafting for answer in answers if answer.drafting is not None]
        uniforms = [answer.uniforms.ahead(1 + answer.ahead) for answer in answers if answer.uniforms is not None]
        adjust = any(answer.adjustments is not None for answer in answers)
        return verify(
            z,
            [d.drafts for d in drafting],
            answers[0].sampling,
            rule=self._config.acceptance,
            uniforms=torch.cat(uniforms) if uniforms else None,
            adjustments=[answer.adjustments for answer in answers] if adjust else None,
            proposals=[torch.stack(d.proposals) if d.proposals else None for d in drafting],
        )

    def _count(self, answer: Answer) -> int:
        drafting = answer.drafting
        if drafting is None or any(row.pending != 1 for row in answer.scoring):
            return 0
        if any(row.pending > CATCH_UP for row in answer.rows):
            return 0
        # The last token is never drafted: one more than the drafts is always written.
        return min(drafting.length.next(), answer.limit - len(answer.tokens) - 1)

    def _look_up(self, answer: Answer, count: int) -> None:
        drafting = answer.drafting
        if drafting is None or drafting.ngrams is None:
            return
        for token in drafting.ngrams.draft(count):
            if not answer.draft(token):
                return
            drafting.drafts.append(token)

    def _draft_one(self, answers: Sequence[Answer], i: int, forward: Forward) -> None:
        """Draft token number ``i`` of each answer."""
        draft = self._core.draft
        if draft is None or not answers:
            return
        helping = [[row for row in answer.deciding if row.backbone == draft.backbone] for answer in answers]
        reads = [Read(row, row.pending, 1) for answer in answers for row in answer.rows if row.stream == DRAFT]
        reads += [Read(row, 1, 1) for rows in helping for row in rows]
        scores = forward(reads)
        z = combined(self._core, answers, scores, head=DRAFT)
        for members in draw_together(answers):
            part = [answers[k] for k in members]
            lines = z[torch.tensor(members, device=z.device)] if len(members) < len(answers) else z
            uniforms = [answer.uniforms.ahead(i + 1)[i, 0] for answer in part if answer.uniforms is not None]
            if any(answer.adjustments is not None for answer in part):
                lines = adjusted(lines, [(answer.adjustments, _drafts(answer)) for answer in part])
            tokens, chances = propose(
                lines,
                part[0].sampling,
                uniforms=torch.stack(uniforms).to(z.device) if uniforms else None,
            )
            for k, token in enumerate(tokens.tolist()):
                self._keep(part[k], int(token), None if chances is None else chances[k], helping[members[k]], scores)

    def _keep(self, answer: Answer, token: int, chances: Tensor | None, rows: Sequence[Row], scores: Scores) -> None:
        drafting = answer.drafting
        if drafting is None:
            return
        if not answer.draft(token):
            for row in rows:
                row.read -= 1  # the check reads it again
            return
        for row in rows:
            ((logits, line),) = scores[row]
            drafting.scored.setdefault(row, []).append((logits[line].clone().unsqueeze(0), 0))
        drafting.drafts.append(token)
        if chances is not None and self._config.acceptance == "rejection":
            drafting.proposals.append(chances)


def make_speculator(core: Core, config: EngineConfig, counts: Counts) -> Speculator | None:
    """Return what drafts for the answers of an engine; ``None`` where nothing does."""
    if core.draft is None and config.speculation != "ngram":
        return None
    return Speculator(core, config, counts)


def _drafts(answer: Answer) -> Sequence[int]:
    return answer.drafting.drafts if answer.drafting is not None else ()


def _complete(answer: Answer, scores: Scores) -> Iterator[tuple[Row, list[Place]]]:
    """Yield where the logits of rows lie that got some while drafting, position by position."""
    if answer.drafting is not None:
        for row, before in answer.drafting.scored.items():
            yield row, [*before, *scores[row]]


def _costs(core: Core) -> Costs:
    """Return what drafting and checking cost where reading weights is what takes time."""
    streams = {core.backbone_of(stream) for stream in range(len(core.readers) + 1)}
    sizes = [weight_bytes(backbone.model) for backbone in core.backbones]
    step = sum(size for number, size in enumerate(sizes) if number in streams)
    return Costs.of_reads(max(1, step), sizes[core.draft.backbone] if core.draft else 0, position=_POSITION)
