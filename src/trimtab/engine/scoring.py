"""Scoring a given answer: what base, guides and their combination think of each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.engine.answers import applied
from trimtab.engine.core import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.guides import Guide
from trimtab.engine.noting import each
from trimtab.engine.readings import Reading
from trimtab.engine.results import Score, Watch
from trimtab.errors import DataError, PromptTooLongError


def make_reading(
    core: Core,
    prompts: Mapping[int, list[int]],
    answer: Sequence[int],
    pulls: Sequence[Pull],
    *,
    by_objective: bool = False,
    watch: Watch | None = None,
    salt: str | None = None,
) -> Reading:
    """Return what the scheduler reads to score one answer.

    Args:
        core: what is loaded.
        prompts: stream → prompt ids, of the base and of every guide that reads.
        answer: T token ids of the base.
        pulls: what is asked of each guide.
        by_objective: whether each guide also scores at each of its objectives alone.
        watch: what is noted of each token.
        salt: requests of different salts share nothing that was read.

    Raises:
        DataError: the answer is empty.
        PromptTooLongError: prompt and answer do not fit a context.
        GuidanceError: a guide does not know a token of the answer.
    """
    if not answer:
        raise DataError("The answer has no tokens, so there is nothing to score.")
    room = core.room([(stream, len(ids)) for stream, ids in prompts.items()])
    if room < len(answer):
        raise PromptTooLongError(
            f"Prompt and answer ({len(answer)} tokens) do not fit the context: {room} tokens are left."
        )
    conditioned = {s: core.guides[s - 1] for s in prompts if s and by_objective and core.guides[s - 1].conditioned}
    alone = {stream: each(guide, pulls[stream - 1]) for stream, guide in conditioned.items()}
    return Reading(core, prompts, answer, pulls, alone, watch=watch, salt=salt)


def make_score(core: Core, reading: Reading, pulls: Sequence[Pull], *, by_objective: bool) -> Score:
    """Return what a finished reading found."""
    guides = {guide.name: values for guide, values in zip(core.guides, reading.guides, strict=True)}
    said = applied(core.guides, pulls)
    return Score(
        token_ids=list(reading.answer),
        tokens=[str(core.base.tokenizer.decode([token])) for token in reading.answer],
        base=reading.base,
        guides=guides,
        contributions={name: [said["weights"][name] * v for v in values] for name, values in guides.items()},
        combined=reading.combined,
        rewards={name: sum(values) for name, values in guides.items()},
        objectives={
            guide.name: _by_objective(guide, reading.guides[j], reading.alone[j])
            for j, guide in enumerate(core.guides)
            if by_objective
        },
        **said,
    )


def _by_objective(guide: Guide, values: list[float], alone: Sequence[list[float]]) -> dict[str, list[float]]:
    if guide.conditioned:
        return dict(zip(guide.objectives, alone, strict=True))
    # What a plain guide with several objectives rewards is their mixture, which is none of them.
    return {guide.objectives[0]: values} if len(guide.objectives) == 1 else {}
