"""From the logits of one step to the next token of every answer in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trimtab.decoding.config import Sampling
from trimtab.decoding.rules import combine
from trimtab.decoding.sampling import choose
from trimtab.engine.answers import Answer, Core
from trimtab.engine.guidance import Pull
from trimtab.engine.requests import BASE, Row
from trimtab.errors import NumericalError

Scores = Mapping[Row, tuple[Tensor, int]]
"""Row → logits of a forward, and which line of them is the first of this row."""


class Steered(Protocol):
    """One answer: its rows, and what it asks of each guide."""

    @property
    def rows(self) -> Sequence[Row]: ...  # noqa: D102

    @property
    def pulls(self) -> Sequence[Pull]: ...  # noqa: D102


def sample(core: Core, answers: Sequence[Answer], scores: Scores) -> None:
    """Choose and take the next token of every answer; one whose logits cannot be drawn from gets an error instead."""
    z = combined(core, answers, scores)
    kinds: dict[tuple[float, ...], list[int]] = {}
    for i, answer in enumerate(answers):
        kinds.setdefault(_kind(answer.sampling), []).append(i)
    tokens = z.new_empty(len(answers), dtype=torch.long)
    for members in kinds.values():
        part = [answers[i] for i in members]
        lines = z if len(kinds) == 1 else z[torch.tensor(members, device=z.device)]
        chosen = _choose(lines, part)
        if len(kinds) == 1:
            tokens = chosen
        else:
            tokens[torch.tensor(members, device=z.device)] = chosen
    # One transfer for the whole step. The best value is NaN where any is, so one number a line tells whether it can be
    # drawn from; the likeliest token's value is the best.
    greedy = all(answer.sampling.is_greedy for answer in answers)
    best = z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) if greedy else z.amax(dim=-1)
    usable = torch.isfinite(best).long()
    for i, (token, good) in enumerate(torch.stack([tokens, usable], dim=1).tolist()):
        if good:
            answers[i].take(int(token))
        else:
            answers[i].error = unusable(core, z[i], answers[i], scores)


def combined(core: Core, answers: Sequence[Steered], scores: Scores) -> Tensor:
    """Return z', (B, V) float32: the logits that the next token of each of B answers is drawn from."""
    base = _lines([scores[answer.rows[BASE]] for answer in answers])
    guides: list[Tensor] = []
    weights: list[Tensor] = []
    owners: list[Tensor | None] = []
    for stream, guide in enumerate(core.guides, start=1):
        found = [(i, row) for i, answer in enumerate(answers) for row in answer.rows if row.stream == stream]
        if not found:
            continue
        guides.append(guide.vocabulary.gather(_lines([scores[row] for _, row in found]).to(base.device)))
        weights.append(torch.tensor([answers[i].pulls[stream - 1].weight for i, _ in found], device=base.device))
        everyone = len(found) == len(answers)
        owners.append(None if everyone else torch.tensor([i for i, _ in found], device=base.device))
    return combine(base, guides, weights, owners)


def _lines(places: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return the lines that lie at the given places, as a view where they follow each other."""
    logits, first = places[0]
    if all(tensor is logits and line == first + i for i, (tensor, line) in enumerate(places)):
        return logits[first : first + len(places)]
    return torch.stack([tensor[line] for tensor, line in places])


def _kind(sampling: Sampling) -> tuple[float, ...]:
    """Return what answers must have in common to be drawn together."""
    s = sampling
    return (s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty)


def _choose(z: Tensor, answers: Sequence[Answer]) -> Tensor:
    sampling = answers[0].sampling
    masks = [answer.seen for answer in answers if answer.seen is not None]
    seen = torch.stack(masks) if masks else None
    uniforms = None
    if not sampling.is_greedy:
        uniforms = torch.tensor([answer.uniform() for answer in answers], dtype=torch.float64, device=z.device)
    return choose(z, sampling, seen=seen, uniforms=uniforms)


def unusable(core: Core, z: Tensor, answer: Steered, scores: Scores) -> NumericalError:
    """Return the error that says why no token can be chosen from z', (V,), of an answer."""
    kind = "NaN" if bool(torch.isnan(z).any()) else "no finite best value"
    what = f"The logits hold {kind}, so no token can be chosen from them."
    for row in answer.rows:
        tensor, line = scores[row]
        if bool(torch.isnan(tensor[line]).any()):
            who = f"guide {core.guides[row.stream - 1].name!r}" if row.stream else f"base {core.base.id!r}"
            return NumericalError(f"{what} They come from the {who}: try dtype='float32', and check its weights.")
    return NumericalError(
        f"{what} Each model's own logits are numbers: the weights are too large, or no token is left that all know."
    )
