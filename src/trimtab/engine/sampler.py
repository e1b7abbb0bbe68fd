"""From the logits of one step to the next token of every answer in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trimtab.decoding.adjusting import adjusted
from trimtab.decoding.config import Sampling
from trimtab.decoding.rules import combine
from trimtab.decoding.sampling import choose
from trimtab.engine.answers import Answer
from trimtab.engine.core import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.noting import Part, note
from trimtab.engine.places import Place, Scores, lines
from trimtab.engine.requests import BASE, DRAFT, Request, Row
from trimtab.engine.results import TokenScores
from trimtab.errors import EngineFailure, NumericalError, TrimtabError

log = logging.getLogger("trimtab")


class Steered(Protocol):
    """An answer as far as the logits of its next tokens go; :class:`Answer` says what each attribute is."""

    @property
    def rows(self) -> Sequence[Row]: ...  # noqa: D102

    @property
    def deciding(self) -> Sequence[Row]: ...  # noqa: D102

    @property
    def pulls(self) -> Sequence[Pull]: ...  # noqa: D102

    @property
    def ahead(self) -> int: ...  # noqa: D102


def sample(core: Core, answers: Sequence[Answer], scores: Scores) -> None:
    """Choose and take the next token of every answer; one whose logits cannot be drawn from gets an error instead."""
    raw = combined(core, answers, scores)
    z = raw
    if any(answer.adjustments is not None for answer in answers):
        z = adjusted(raw, [(answer.adjustments, ()) for answer in answers])
    kinds = draw_together(answers)
    if len(kinds) == 1:
        tokens = _choose(z, answers)
    else:
        tokens = z.new_empty(len(answers), dtype=torch.long)
        for members in kinds:
            index = torch.tensor(members, device=z.device)
            tokens[index] = _choose(z[index], [answers[i] for i in members])
    # One transfer for the whole step. The best value is NaN where any is, so one number a line tells whether it can be
    # drawn from; the likeliest token's value is the best.
    greedy = all(answer.sampling.is_greedy for answer in answers)
    best = z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) if greedy else z.amax(dim=-1)
    found: list[list[int]] = torch.stack([tokens, torch.isfinite(best).long()], dim=1).tolist()
    notes = notes_of(core, answers, [[token] for token, _ in found], raw, range(len(answers)), scores)
    for i, (token, good) in enumerate(found):
        if good:
            take(answers[i], [token], notes.get(i, ()))
        else:
            answers[i].error = unusable(core, z[i], answers[i], scores)


def take(answer: Answer, tokens: Sequence[int], notes: Sequence[TokenScores] = ()) -> None:
    """Let an answer take its tokens."""
    with own_error(answer):
        answer.take(tokens, notes)


@contextlib.contextmanager
def own_error(request: Request) -> Generator[None]:
    """Make what goes wrong with one request its own error: its neighbours in the step go on."""
    try:
        yield
    except TrimtabError as error:
        request.error = error
    except Exception as error:  # whatever it is, a tokenizer's own for instance
        log.exception("What a step gave could not be added to a request.")
        failure = EngineFailure(f"What the step gave could not be added to this request ({type(error).__name__}).")
        failure.__cause__ = error
        request.error = failure


def notes_of(
    core: Core,
    answers: Sequence[Answer],
    tokens: Sequence[Sequence[int]],
    z: Tensor,
    first: Sequence[int],
    scores: Scores,
) -> dict[int, list[TokenScores]]:
    """Return what is noted of the tokens of answers that are watched, by number of the answer.

    Args:
        core: what is loaded.
        answers: the answers of a step.
        tokens: those that each writes.
        z: (N, V) the combined logits of the step.
        first: where the lines of each answer begin.
        scores: where logits lie.
    """
    watched = {i: answer.watch for i, answer in enumerate(answers) if answer.watch is not None}
    if not watched:
        return {}
    parts = [Part(watch, tokens[i], answers[i].rows[0], answers[i].heard) for i, watch in watched.items()]
    index = [first[i] + n for i in watched for n in range(len(tokens[i]))]
    found = note(core, parts, z if len(index) == len(z) else z[torch.tensor(index, device=z.device)], scores)
    return dict(zip(watched, found, strict=True))


def combined(core: Core, answers: Sequence[Steered], scores: Scores, *, head: int = BASE) -> Tensor:
    """Return z', (N, V) float32: the logits that tokens are drawn from at N positions, answer after answer.

    Args:
        core: what is loaded.
        answers: an answer has as many positions as its rows have logits: one, and one for each of its drafts.
        scores: where logits lie.
        head: the stream that guides are added to: the base's or, with the guides of its own weights only, that of the
            model that drafts.
    """
    base = lines([place for answer in answers for place in _places(answer, head, scores)])
    if head == DRAFT and core.draft is not None:
        base = core.draft.vocabulary.gather(base)
    spread = [answer for answer in answers for _ in range(1 + answer.ahead if head == BASE else 1)]
    guides: list[Tensor] = []
    weights: list[Tensor] = []
    owners: list[Tensor | None] = []
    for stream, guide in enumerate(core.readers, start=1):
        if head == DRAFT and guide.backbone != core.backbone_of(DRAFT):
            continue
        heard = {a for a in answers if any(row.stream == stream and not row.watches for row in a.rows)}
        if not heard:
            continue
        places = [place for answer in answers if answer in heard for place in _places(answer, stream, scores)]
        guides.append(guide.vocabulary.gather(lines(places).to(base.device)))
        asked = [core.pull(stream, a.pulls, head).weight for a in spread if a in heard]
        weights.append(torch.tensor(asked, device=base.device))
        index = [i for i, answer in enumerate(spread) if answer in heard]
        owners.append(None if len(index) == len(spread) else torch.tensor(index, device=base.device))
    own: Tensor | None = None
    if head == BASE and core.shares_reference:
        own = torch.tensor([core.base_weight(answer.pulls) for answer in spread], device=base.device)
    return combine(base, guides, weights, owners, base_weight=own)


def draw_together(answers: Sequence[Answer]) -> list[list[int]]:
    """Return the numbers of the answers in groups whose tokens can be drawn together."""
    kinds: dict[tuple[float, ...], list[int]] = {}
    for i, answer in enumerate(answers):
        kinds.setdefault(_kind(answer.sampling), []).append(i)
    return list(kinds.values())


def _places(answer: Steered, stream: int, scores: Scores) -> list[Place]:
    return scores[next(row for row in answer.rows if row.stream == stream and not row.watches)]


def _kind(sampling: Sampling) -> tuple[float, ...]:
    """Return what answers must have in common to be drawn together."""
    s = sampling
    return (s.temperature, s.top_k, s.top_p, s.min_p)


def _choose(z: Tensor, answers: Sequence[Answer]) -> Tensor:
    sampling = answers[0].sampling
    found = [answer.uniforms.ahead(1)[0, 0] for answer in answers if answer.uniforms is not None]
    uniforms = torch.stack(found).to(z.device) if found else None
    return choose(z, sampling, uniforms=uniforms)


def unusable(core: Core, z: Tensor, answer: Steered, scores: Scores) -> NumericalError:
    """Return the error that says why no token can be chosen from z', (V,), of an answer."""
    kind = "NaN" if bool(torch.isnan(z).any()) else "no finite best value"
    what = f"The logits hold {kind}, so no token can be chosen from them."
    for row in answer.deciding:
        if any(bool(torch.isnan(tensor[line]).any()) for tensor, line in scores[row]):
            who = f"guide {core.reader(row.stream).name!r}" if row.stream else f"base {core.base.id!r}"
            return NumericalError(f"{what} They come from the {who}: try dtype='float32', and check its weights.")
    return NumericalError(
        f"{what} Each model's own logits are numbers: the weights are too large, or no token is left that all know "
        "and the options allow."
    )
