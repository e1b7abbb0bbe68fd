"""Scoring a given answer: what base, guides and their combination think of each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.decoding.rules import combine, ensure_usable
from trimtab.engine.adapters import RowSlice
from trimtab.engine.backbone import pad_left
from trimtab.engine.batch import BASE, Core, applied
from trimtab.engine.conditioned import RowConditions
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.results import Score
from trimtab.errors import DataError, PromptTooLongError


def score_answer(
    core: Core,
    prompts: Sequence[list[int] | None],
    answer: Sequence[int],
    pulls: Sequence[Pull],
    *,
    by_objective: bool = False,
) -> Score:
    """Return the log-probabilities and rewards of one answer; every stream reads prompt and answer in one forward.

    Args:
        core: what is loaded.
        prompts: stream → prompt ids, all given.
        answer: T token ids of the base.
        pulls: what is asked of each guide.
        by_objective: whether each guide also scores at each of its objectives alone.

    Raises:
        DataError: the answer is empty.
        PromptTooLongError: prompt and answer do not fit a context.
        GuidanceError: a guide does not know a token of the answer.
        NumericalError: a model gives NaN.
    """
    if not answer:
        raise DataError("The answer has no tokens, so there is nothing to score.")
    if core.room(prompts) < len(answer):
        raise PromptTooLongError(
            f"Prompt and answer ({len(answer)} tokens) do not fit the context: {core.room(prompts)} tokens are left."
        )
    rows = [
        [None],
        *([pull, *_alone(guide, pull, by_objective)] for guide, pull in zip(core.guides, pulls, strict=True)),
    ]
    logits = _logits(core, prompts, answer, rows)  # stream → for each of its rows (T, V) by the base's ids
    base = logits[BASE][0]
    z = combine(
        base,
        [logits[j + 1][0] for j in range(len(pulls))],
        [torch.full((len(answer),), pull.weight, device=base.device) for pull in pulls],
    )
    ensure_usable(z)
    guides = {guide.name: _taken(logits[j + 1][0], answer) for j, guide in enumerate(core.guides)}
    said = applied(core.guides, pulls)
    return Score(
        token_ids=list(answer),
        tokens=[str(core.base.tokenizer.decode([token])) for token in answer],
        base=_taken(base, answer),
        guides=guides,
        contributions={name: [said["weights"][name] * v for v in values] for name, values in guides.items()},
        combined=_taken(z, answer),
        rewards={name: sum(values) for name, values in guides.items()},
        objectives={
            guide.name: _by_objective(guide, guides[guide.name], logits[j + 1][1:], answer)
            for j, guide in enumerate(core.guides)
            if by_objective
        },
        **said,
    )


def _alone(guide: Guide, pull: Pull, wanted: bool) -> list[Pull]:
    """Return the pulls towards each objective alone, for a guide that takes a preference."""
    if not wanted or not guide.conditioned:
        return []
    k = len(guide.objectives)
    return [Pull(pull.weight, tuple(float(i == j) for j in range(k))) for i in range(k)]


def _by_objective(
    guide: Guide, values: list[float], alone: Sequence[Tensor], answer: Sequence[int]
) -> dict[str, list[float]]:
    if guide.conditioned:
        return {name: _taken(logits, answer) for name, logits in zip(guide.objectives, alone, strict=True)}
    # What a plain guide with several objectives rewards is their mixture, which is none of them.
    return {guide.objectives[0]: values} if len(guide.objectives) == 1 else {}


def _logits(
    core: Core, prompts: Sequence[list[int] | None], answer: Sequence[int], rows: Sequence[Sequence[Pull | None]]
) -> dict[int, list[Tensor]]:
    """Return stream → (T, V) logits of each of its rows; ``rows`` is what is asked of each, ``None`` of the base."""
    found: dict[int, list[Tensor]] = {}
    for number, backbone in enumerate(core.backbones):
        streams = [BASE] if number == 0 else []
        streams += [j + 1 for j, guide in enumerate(core.guides) if guide.backbone == number]
        if not streams:
            continue
        slices: list[RowSlice] = []
        texts: list[list[int]] = []
        for stream in streams:
            guide = core.guides[stream - 1] if stream else None
            own = [guide.own_id(token) for token in answer] if guide else list(answer)
            start = len(texts)
            texts += [[*(prompts[stream] or ()), *own[:-1]]] * len(rows[stream])
            if guide and guide.slot is not None:
                conditions = RowConditions.of([guide.conditions(pull) for pull in rows[stream] if pull])
                slices.append(RowSlice(guide.slot, start, len(texts), conditions))
        ids, mask, positions = pad_left(texts, backbone.device)
        logits = backbone.forward(ids, slices=slices, mask=mask, positions=positions, cache=None, keep=len(answer))
        for stream, part in zip(streams, logits.split([len(rows[stream]) for stream in streams]), strict=True):
            raw = core.guides[stream - 1].vocabulary.gather(part) if stream else part
            found[stream] = list(raw.to(core.base.device))
    return found


def _taken(logits: Tensor, answer: Sequence[int]) -> list[float]:
    """Return the log-softmax, in float32, of the answer's tokens: (T, V) → T numbers in nats."""
    index = torch.tensor(answer, device=logits.device).unsqueeze(-1)
    values: list[float] = logits.to(torch.float32).log_softmax(-1).gather(-1, index).squeeze(-1).tolist()
    return values
