"""Scorers of the surface of a text: how long it is, and how often it repeats itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab.evaluation.scorers.common import About
from trimtab.models import Text

Array = NDArray[np.float64]


def words_of(text: str) -> list[str]:
    """Return the words of a text: what white space divides, in lower case."""
    return text.lower().split()


@dataclass(frozen=True)
class LengthScorer:
    """How long an answer is, in words or in a model's tokens; longer is higher, or shorter.

    Neither is good in itself. Length stands in every table because much that looks like quality is length: log-
    probabilities prefer short answers, and judges prefer long ones (arXiv 2404.04475).

    Attributes:
        objective: the name to score under.
        shorter: whether the score is MINUS the length.
        tokenizer: counts tokens, end-of-answer token excluded; ``None`` counts words (what white space divides).
        tokenizer_name: of whose tokens, for the description.
    """

    objective: str = "length"
    shorter: bool = False
    tokenizer: Any = field(default=None, repr=False)
    tokenizer_name: str = ""

    @property
    def about(self) -> About:
        """What the number means."""
        unit = "words" if self.tokenizer is None else "tokens"
        whose = f" of {self.tokenizer_name}" if self.tokenizer_name else ""
        name = "concise" if self.shorter else "length"
        return About(
            self.objective,
            f"{'minus ' if self.shorter else ''}the number of {unit}{whose} of the answer",
            low=-math.inf if self.shorter else 0.0,
            high=0.0 if self.shorter else math.inf,
            unit=unit,
            name=f"{name}:{self.tokenizer_name}" if self.tokenizer_name else name,
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return the length of each answer, (N,), negated where shorter is better. Prompts are not read."""
        lengths = np.array([self._length(answer) for answer in answers], dtype=np.float64)
        return -lengths if self.shorter else lengths

    def _length(self, answer: str) -> int:
        if self.tokenizer is None:
            return len(answer.split())
        return len(self.tokenizer(answer, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class ConcisenessScorer(LengthScorer):
    """Minus the length: the shorter answer is the better one."""

    objective: str = "concise"
    shorter: bool = True


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the runs of ``n`` neighbouring words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_share(texts: Iterable[str], n: int) -> float:
    """Return distinct-n (arXiv 1510.03055): different n-grams over all n-grams, pooled over ``texts``.

    Over the samples of one prompt it says how much they differ from each other. It falls with the amount of text, so
    compare only like amounts. 1 where there is no n-gram.
    """
    grams = [gram for text in texts for gram in ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else 1.0


@dataclass(frozen=True)
class DistinctScorer:
    """distinct-n of each answer (Li et al., arXiv 1510.03055): different n-grams of words over all of them.

    An answer of fewer than n words repeats nothing and scores 1.

    Attributes:
        n: words in an n-gram.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"distinct-n counts runs of n words, so n is at least 1, not {self.n}.")

    @property
    def about(self) -> About:
        """What the number means."""
        name = f"distinct-{self.n}"
        measures = f"different runs of {self.n} words over all runs of {self.n} words of the answer (arXiv 1510.03055)"
        return About(name, measures, low=0.0, high=1.0, unit="share", name=name)

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return distinct-n of each answer, (N,). Prompts are not read."""
        return np.array([distinct_share([answer], self.n) for answer in answers], dtype=np.float64)


@dataclass(frozen=True)
class RepetitionScorer:
    """Minus seq-rep-n (Welleck et al., arXiv 1908.04319): minus the share of n-grams that have stood before.

    seq-rep-n = 1 − distinct-n; the paper counts tokens, this words, so that models of different tokenizers compare.

    Attributes:
        n: words in an n-gram; the paper's 4.
    """

    n: int = 4

    @property
    def about(self) -> About:
        """What the number means."""
        measures = f"minus the share of runs of {self.n} words that stood in the answer before (arXiv 1908.04319)"
        return About("repetition", measures, low=-1.0, high=0.0, unit="share", name="repetition")

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return minus seq-rep-n of each answer, (N,); 0 where nothing repeats. Prompts are not read."""
        return DistinctScorer(self.n).score(answers) - 1.0
