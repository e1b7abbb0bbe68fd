"""Scorers that read log-probabilities: fluency under a model that nothing guides, and a guide's implicit reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.engine import Engine, Score
from trimtab.errors import PromptTooLongError
from trimtab.evaluation.scorers.common import About, prompts_for
from trimtab.models import Text

Array = NDArray[np.float64]

_TOGETHER = 16
"""Answers read in one forward: calls from several threads share the engine's steps."""


@dataclass(frozen=True)
class FluencyScorer:
    """Mean log-probability of an answer's tokens given the prompt, under a model that nothing guides.

    Guidance that breaks the language shows here; so does any text that this model would not have written, good or bad.
    The end-of-answer token is not scored, because answers that reached the limit have none; an empty answer is nothing
    but that token, and is scored by it.

    Attributes:
        engine: holds the model; its guides, if there are any, do not take part.
        model: the model's name, for the description.
        is_base: whether it is the base that is evaluated, as where no other was named.
    """

    engine: Engine = field(repr=False)
    model: str
    is_base: bool = False

    @property
    def about(self) -> About:
        """What the number means."""
        measures = f"mean log-probability of the answer's tokens under {self.model}"
        measures += ", the base of the comparison itself, unguided" if self.is_base else ", which nothing guides"
        return About("fluency", measures, high=0.0, unit="nats a token", name=f"fluency:{self.model}", licence="")

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return the mean log-probability of each answer, (N,), nats a token.

        Raises:
            ConfigError: the prompts are missing or are not as many as the answers.
            PromptTooLongError: prompt and answer do not fit the model's context.
        """

        def mean(prompt: Text, answer: str) -> float:
            base = self.engine.score(prompt, answer, guidance=0.0, include_eos=not answer).base
            return sum(base) / len(base)

        return _each(mean, prompts_for(answers, prompts), answers, self.model)


@dataclass(frozen=True)
class ImplicitScorer:
    """A guide as a judge: Σ_t log π_r(y_t) − log π_ref(y_t), π_ref the guide's own base with the adapter off.

    The difference takes out what any language model thinks of the text, and with it most of the preference for short
    answers that Σ_t log π_r has (arXiv 2305.18290 calls it the implicit reward).

    Attributes:
        engine: the guide on its own base, nothing else.
        objective: what it scores; one of a conditioned guide's, or its name where all are wanted alike.
        guide: fingerprint of the guide.
        fitted_on: SHA-256 of what it was trained on.
        folder: where it lies, for the description.
        weights: objective → weight for a conditioned guide's one objective; empty for its default.
    """

    engine: Engine = field(repr=False)
    objective: str
    guide: str
    folder: str
    fitted_on: tuple[str, ...] = ()
    fitted_on_pairs: frozenset[str] = field(default=frozenset(), repr=False)
    labelled_by: str | None = None
    accuracy: float | None = None
    accuracy_on: str = ""
    licence: str = ""
    weights: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def about(self) -> About:
        """What the number means."""
        one = next(iter(self.weights), "")
        return About(
            self.objective,
            f"log π_r − log π_ref of the answer, π_r the guide {self.folder!r}, π_ref its base {self.engine.base.id!r}",
            licence=self.licence,
            name=f"implicit:{self.folder}{'@' + one if one else ''}",
            fitted_on=self.fitted_on,
            fitted_on_pairs=self.fitted_on_pairs,
            labelled_by=self.labelled_by,
            guide=self.guide,
            accuracy=self.accuracy,
            accuracy_on=self.accuracy_on,
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return the difference for each answer with its end-of-answer token, (N,), nats.

        Raises:
            ConfigError: the prompts are missing or are not as many as the answers.
            PromptTooLongError: prompt and answer do not fit the base's context.
        """
        (name,) = self.engine.guides
        guidance = self.weights or None

        def difference(prompt: Text, answer: str) -> float:
            score: Score = self.engine.score(prompt, answer, guidance=guidance)
            total = sum(score.guides[name])
            # A policy's score is the difference already; its reference is the engine's base.
            return total if self.engine.guides[name].is_policy else total - sum(score.base)

        return _each(difference, prompts_for(answers, prompts), answers, self.folder)


def _each(
    measure: Callable[[Text, str], float], prompts: Sequence[Text], answers: Sequence[str], model: str
) -> Array:  # fmt: skip
    def one(pair: tuple[int, Text, str]) -> float:
        number, prompt, answer = pair
        try:
            return measure(prompt, answer)
        except PromptTooLongError as error:
            raise PromptTooLongError(
                f"Answer {number + 1} cannot be scored with {model}: {error} Score with a model of a longer context, "
                "or limit the answers with max_tokens."
            ) from error

    with ThreadPoolExecutor(_TOGETHER) as pool:
        found = list(pool.map(one, zip(range(len(answers)), prompts, answers, strict=True)))
    return np.array(found, dtype=np.float64)
