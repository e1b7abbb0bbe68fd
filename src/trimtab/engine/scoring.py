"""Scoring a given answer: what base, guides and their combination think of each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.decoding.rules import combine, ensure_usable
from trimtab.engine.adapters import RowSlice
from trimtab.engine.backbone import pad_left
from trimtab.engine.batch import BASE, Core
from trimtab.engine.results import Score
from trimtab.errors import DataError, PromptTooLongError


def score_answer(
    core: Core, prompts: Sequence[list[int] | None], answer: Sequence[int], weights: Sequence[float]
) -> Score:
    """Return the log-probabilities and rewards of one answer; every stream reads prompt and answer in one forward.

    Args:
        core: what is loaded.
        prompts: stream → prompt ids, all given.
        answer: T token ids of the base.
        weights: w of each guide.

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
    logits = _logits(core, prompts, answer)  # stream → (T, V) by the base's ids
    z = combine(
        logits[BASE],
        [logits[j + 1] for j in range(len(weights))],
        [torch.full((len(answer),), w, device=logits[BASE].device) for w in weights],
    )
    ensure_usable(z)
    names = [guide.name for guide in core.guides]
    guides = {name: _taken(logits[j + 1], answer) for j, name in enumerate(names)}
    return Score(
        token_ids=list(answer),
        tokens=[str(core.base.tokenizer.decode([token])) for token in answer],
        base=_taken(logits[BASE], answer),
        guides=guides,
        contributions={n: [w * v for v in guides[n]] for n, w in zip(names, weights, strict=True)},
        combined=_taken(z, answer),
        rewards={name: sum(values) for name, values in guides.items()},
        weights=dict(zip(names, weights, strict=True)),
    )


def _logits(core: Core, prompts: Sequence[list[int] | None], answer: Sequence[int]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for number, backbone in enumerate(core.backbones):
        streams = [BASE] if number == 0 else []
        streams += [j + 1 for j, guide in enumerate(core.guides) if guide.backbone == number]
        if not streams:
            continue
        slices: list[RowSlice] = []
        rows: list[list[int]] = []
        for row, stream in enumerate(streams):
            guide = core.guides[stream - 1] if stream else None
            own = [guide.own_id(token) for token in answer] if guide else list(answer)
            rows.append([*(prompts[stream] or ()), *own[:-1]])
            if guide and guide.slot is not None:
                slices.append(RowSlice(guide.slot, row, row + 1))
        ids, mask, positions = pad_left(rows, backbone.device)
        logits = backbone.forward(ids, slices=slices, mask=mask, positions=positions, cache=None, keep=len(answer))
        for row, stream in enumerate(streams):
            raw = logits[row]
            found[stream] = (core.guides[stream - 1].vocabulary.gather(raw) if stream else raw).to(core.base.device)
    return found


def _taken(logits: Tensor, answer: Sequence[int]) -> list[float]:
    """Return the log-softmax, in float32, of the answer's tokens: (T, V) → T numbers in nats."""
    index = torch.tensor(answer, device=logits.device).unsqueeze(-1)
    values: list[float] = logits.to(torch.float32).log_softmax(-1).gather(-1, index).squeeze(-1).tolist()
    return values
