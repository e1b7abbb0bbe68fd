"""What is noted of tokens beside the tokens themselves, for requests that are watched, and only for those."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.core import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.places import Place, Scores, lines, log_probabilities, taken
from trimtab.engine.requests import Row
from trimtab.engine.results import TokenScores, Watch

_Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Voice:
    """A guide, or an objective of one, whose own opinion of each token is noted.

    Attributes:
        stream: of the guide.
        pull: what the guide is asked: its preference in force, or one objective alone.
        guide: the guide's name, where this is its preference in force.
        objective: the objective's label, where this is one alone; a plain guide of one objective is both.
    """

    stream: int
    pull: Pull
    guide: str | None = None
    objective: str | None = None


def voices(guides: Sequence[Guide], pulls: Sequence[Pull]) -> list[Voice]:
    """Return every guide and every objective alone, at what is asked of the guides."""
    owners = Counter(objective for guide in guides for objective in guide.objectives)
    found: list[Voice] = []
    for stream, (guide, pull) in enumerate(zip(guides, pulls, strict=True), start=1):
        labels = [name if owners[name] == 1 else f"{guide.name}/{name}" for name in guide.objectives]
        # What a plain guide with several objectives rewards is their mixture, which is none of them.
        single = labels[0] if len(labels) == 1 and not guide.conditioned else None
        found.append(Voice(stream, pull, guide.name, single))
        if guide.conditioned:
            found += [Voice(stream, alone, None, label) for alone, label in zip(each(guide, pull), labels, strict=True)]
    return found


def each(guide: Guide, pull: Pull) -> list[Pull]:
    """Return a guide's pulls towards each of its objectives alone."""
    k = len(guide.objectives)
    return [Pull(pull.weight, tuple(float(i == j) for j in range(k))) for i in range(k)]


@dataclass(frozen=True, slots=True)
class Heard:
    """A voice and the rows that it comes from.

    Attributes:
        voice: whose opinion it is.
        row: the row that gives it.
        reference: for a policy, the row whose log-probabilities are subtracted; else ``None``.
    """

    voice: Voice
    row: Row
    reference: Row | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows without which nothing is heard."""
        return [self.row] if self.reference is None else [self.row, self.reference]


@dataclass(frozen=True, slots=True)
class Part:
    """What is to be noted of one request in one step.

    Attributes:
        watch: what is asked for.
        tokens: T tokens of the base.
        base: the base's row.
        heard: the voices.
    """

    watch: Watch
    tokens: Sequence[int]
    base: Row
    heard: Sequence[Heard] = field(default_factory=list[Heard])

    def places(self, row: Row, scores: Scores) -> Sequence[Place]:
        """Return where a row's logits for each of the tokens lie."""
        return scores[row][: len(self.tokens)]


def note(core: Core, parts: Sequence[Part], z: Tensor, scores: Scores) -> list[list[TokenScores]]:
    """Return what is noted of the tokens of each part.

    Args:
        core: what is loaded.
        parts: the requests that are watched.
        z: (Σ T, V) combined logits, part after part, before penalties, biases, temperature and cuts.
        scores: where logits lie.
    """
    tokens = [token for part in parts for token in part.tokens]
    owners = [part for part in parts for _ in part.tokens]
    combined = log_probabilities(z)
    chosen = taken(combined, tokens)
    tops = _tops(combined, [part.watch.top for part in owners])
    asking = [n for n, part in enumerate(owners) if part.watch.base]
    base: dict[int, tuple[float, _Top, float]] = {}
    if asking:
        places = [place for part in parts if part.watch.base for place in part.places(part.base, scores)]
        logs = log_probabilities(lines(places).to(z.device))
        own = combined if len(asking) == len(tokens) else combined[torch.tensor(asking, device=z.device)]
        base_tops = _tops(logs, [owners[n].watch.top for n in asking])
        values = zip(taken(logs, [tokens[n] for n in asking]), base_tops, _kl(own, logs), strict=True)
        base = dict(zip(asking, values, strict=True))
    policies = [found for part in parts for found in [_policies(core, part)] * len(part.tokens)]
    by_guide, by_objective = _heard(core, parts, scores, z.device)
    notes = [
        TokenScores(
            token,
            chosen[n],
            tops[n],
            *base.get(n, (None, (), None)),
            guides=by_guide[n],
            objectives=by_objective[n],
            policies=policies[n][0],
            policy_objectives=policies[n][1],
        )
        for n, token in enumerate(tokens)
    ]
    result: list[list[TokenScores]] = []
    for part in parts:
        result.append(notes[: len(part.tokens)])
        notes = notes[len(part.tokens) :]
    return result


def _policies(core: Core, part: Part) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the guides, and of the objectives, that are heard of policies."""
    voices = [heard.voice for heard in part.heard if core.reference_of(heard.voice.stream) is not None]
    guides = frozenset(voice.guide for voice in voices if voice.guide is not None)
    return guides, frozenset(voice.objective for voice in voices if voice.objective is not None)


def _heard(
    core: Core, parts: Sequence[Part], scores: Scores, device: torch.device
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return what each guide and each objective thinks of each token, by name."""
    asked: dict[int, list[tuple[int, Heard, Part]]] = defaultdict(list)
    first = 0
    for part in parts:
        for heard in part.heard:
            asked[heard.voice.stream].append((first, heard, part))
        first += len(part.tokens)
    by_guide: list[dict[str, float]] = [{} for _ in range(first)]
    by_objective: list[dict[str, float]] = [{} for _ in range(first)]
    for stream, group in asked.items():
        tokens = [token for *_, part in group for token in part.tokens]

        def logs(stream: int, rows: Iterable[Row], group: Any = group, tokens: Sequence[int] = tokens) -> list[float]:
            places = [place for row, (*_, part) in zip(rows, group, strict=True) for place in part.places(row, scores)]
            return taken(log_probabilities(core.gather(stream, lines(places).to(device))), tokens)

        found = logs(stream, [heard.row for _, heard, _ in group])
        reference = core.reference_of(stream)
        if reference is not None:
            rows = [heard.reference for _, heard, _ in group if heard.reference is not None]
            found = less(found, logs(reference, rows))
        values = iter(found)
        for at, heard, part in group:
            voice, known = heard.voice, True
            for n, value in enumerate([next(values) for _ in part.tokens], start=at):
                # It does not know the token, so what it says of those after it is about another text.
                known = known and math.isfinite(value)
                if known and voice.guide is not None:
                    by_guide[n][voice.guide] = value
                if known and voice.objective is not None:
                    by_objective[n][voice.objective] = value
    return by_guide, by_objective


def less(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return log π − log π_ref of each token; -inf for one that either cannot write, as decoding has it."""
    return [
        value - other if value > -math.inf and other > -math.inf else -math.inf
        for value, other in zip(values, reference, strict=True)
    ]


def _tops(logs: Tensor, counts: Sequence[int]) -> list[_Top]:
    """Return the likeliest tokens of each line, as many as are asked for; none that is impossible."""
    most = min(max(counts), logs.shape[-1])
    if most == 0:
        return [()] * len(counts)
    found = logs.topk(most, dim=-1)
    return [
        tuple((token, value) for token, value in zip(tokens[:count], values[:count], strict=True) if value > -math.inf)
        for tokens, values, count in zip(found.indices.tolist(), found.values.tolist(), counts, strict=True)
    ]


def _kl(p: Tensor, q: Tensor) -> list[float]:
    """Return KL(p ‖ q) of each line, nats, from log-probabilities (T, V)."""
    terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
    values: list[float] = terms.sum(dim=-1, dtype=torch.float64).clamp_min(0).tolist()
    return values
