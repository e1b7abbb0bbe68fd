"""A scorer that reads words and word pairs: weak, quick, and easy to look into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.scorers.common import About, oriented, pair_accuracy
from trimtab.models import Text
from trimtab.preferences.records import Comparison

_MIN_COUNT = 2
_WORD = r"[A-Za-z']+|[!?,]"


@dataclass(frozen=True)
class BagOfWordsScorer:
    """A Bradley–Terry reward over words and word pairs: r(y) = wᵀφ(y), P(y₁ ≻ y₂) = σ(r(y₁) − r(y₂)).

    φ(y) marks which words and neighbouring word pairs an answer contains, so the score is easy to read and knows
    nothing of any language model. Fit it on comparisons that the guide was not trained on.

    Attributes:
        objective: what it scores.
        vectoriser: scikit-learn's fitted ``CountVectorizer``.
        weights: (F,) one weight a word or word pair; in nats of preference.
        origin: what to say about it in place of the plain description: where its pairs came from, for instance.
    """

    objective: str
    vectoriser: Any
    weights: NDArray[np.float64]
    origin: About | None = None

    @classmethod
    def fit(cls, comparisons: Sequence[Comparison], objective: str, *, regularisation: float = 1.0) -> BagOfWordsScorer:
        """Fit w by L2-regularised logistic regression on the differences φ(chosen) − φ(rejected).

        Args:
            comparisons: pairs the guide has not seen; ties and unjudged rows are passed over.
            objective: which label to fit.
            regularisation: λ of the penalty λ/2·‖w‖².

        Raises:
            DataError: no comparison has a label for ``objective``.
            ConfigError: scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import CountVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise ConfigError('The bag-of-words scorer needs scikit-learn: pip install "trimtab[eval]".') from error
        _, chosen, rejected = oriented(comparisons, objective)
        if not chosen:
            raise DataError(f"No comparison has a label for {objective!r}, so no scorer can be fitted.")
        vectoriser: Any = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=_MIN_COUNT, token_pattern=_WORD)
        vectoriser.fit([*chosen, *rejected])
        difference: Any = vectoriser.transform(chosen).astype(float) - vectoriser.transform(rejected).astype(float)
        # Each pair stands in both orders, so that the two classes balance and no intercept is needed.
        stacked = np.concatenate([difference.toarray(), -difference.toarray()])
        sides = np.repeat([1, 0], len(chosen))
        model: Any = LogisticRegression(C=0.5 / regularisation, fit_intercept=False, max_iter=1000)
        model.fit(stacked, sides)
        return cls(objective, vectoriser, cast("NDArray[np.float64]", model.coef_[0]))

    @property
    def about(self) -> About:
        """What the number means."""
        return self.origin or About(
            self.objective, "Bradley–Terry over words and word pairs of the answer", name="words"
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> NDArray[np.float64]:
        """Return r(y) for each answer, (N,), in nats; 0 for an answer with no known word. Prompts are not read."""
        return cast("NDArray[np.float64]", self.vectoriser.transform(list(answers)) @ self.weights)

    def accuracy(self, comparisons: Sequence[Comparison]) -> float:
        """Return how often it prefers the preferred answer; equal scores count half.

        Raises:
            DataError: no comparison has a label for the objective.
        """
        return pair_accuracy(self, comparisons)
