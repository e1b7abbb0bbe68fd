"""A scorer that reads meaning: a linear Bradley–Terry head on a frozen sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.scorers.common import About, oriented, pair_accuracy, prompts_for
from trimtab.models import Text
from trimtab.preferences.records import Comparison, response_text

Array = NDArray[np.float64]
Encode = Callable[[Sequence[str]], Array]
"""Texts to vectors, (N, D)."""

_FOLDS = 5
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class EncoderScorer:
    """r(x, y) = wᵀφ(x, y), φ = [e(x y), e(y), e(x)⊙e(y)], P(y₁ ≻ y₂ | x) = σ(r(x, y₁) − r(x, y₂)).

    e is a sentence encoder that shares nothing with base or guide. Fit it on pairs that the guides never see, and
    report its accuracy on held-out ones: a scorer that is right in 65 % of the pairs can still tell methods apart over
    many answers, but its errors may be systematic.

    Attributes:
        objective: what it scores.
        weights: (3·D,), in nats of preference.
        penalty: λ of the penalty λ/2·‖w‖² that cross-validation chose.
        pairs: pairs it was fitted on.
        encode: e.
        encoder_name: of e, for the description.
        origin: what to say about it in place of the plain description: where its pairs came from, for instance.
    """

    objective: str
    weights: Array
    penalty: float
    pairs: int
    encode: Encode = field(repr=False)
    encoder_name: str = "all-MiniLM-L6-v2"
    origin: About | None = None

    @classmethod
    def fit(
        cls,
        comparisons: Sequence[Comparison],
        objective: str,
        *,
        encode: Encode | None = None,
        penalties: Sequence[float] = _PENALTIES,
        seed: int = 0,
    ) -> EncoderScorer:
        """Fit w by L2-regularised logistic regression on the differences φ(x, chosen) − φ(x, rejected).

        Args:
            comparisons: pairs the guides have not seen; ties and unjudged rows are passed over.
            objective: which label to fit.
            encode: e; default: all-MiniLM-L6-v2, fetched once.
            penalties: λ to choose from by 5-fold cross-validation, where equal prompts stay together.
            seed: of the folds.

        Raises:
            DataError: fewer than two prompts have a label for ``objective``.
            ConfigError: scikit-learn is not installed.
        """
        prompts, chosen, rejected = oriented(comparisons, objective)
        keys = [_text_of(p) for p in prompts]
        if len(set(keys)) < 2:
            raise DataError(f"Fewer than two prompts have a label for {objective!r}, so no scorer can be fitted.")
        encode = encode or default_encoder()
        difference = _features(encode, keys, chosen) - _features(encode, keys, rejected)
        penalty = _choose(difference, keys, penalties, seed) if len(penalties) > 1 else penalties[0]
        return cls(objective, _solve(difference, penalty), penalty, len(chosen), encode)

    @property
    def about(self) -> About:
        """What the number means."""
        return self.origin or About(
            self.objective, f"Bradley–Terry on {self.encoder_name}, fitted on {self.pairs} pairs", name="encoder"
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return r(x, y) for each answer, (N,), in nats.

        Raises:
            ConfigError: the prompts are missing or are not as many as the answers.
        """
        asked = prompts_for(answers, prompts)
        if not len(answers):
            return np.zeros(0)
        return _features(self.encode, [_text_of(p) for p in asked], answers) @ self.weights

    def accuracy(self, comparisons: Sequence[Comparison]) -> float:
        """Return how often it prefers the preferred answer; equal scores count half.

        Raises:
            DataError: no comparison has a label for the objective.
        """
        return pair_accuracy(self, comparisons)


def default_encoder() -> Encode:
    """Return all-MiniLM-L6-v2."""
    from trimtab.evaluation.minilm import MiniLM

    return MiniLM()


def _text_of(prompt: Text) -> str:
    return response_text(prompt)


def _features(encode: Encode, prompts: Sequence[str], answers: Sequence[str]) -> Array:
    places = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
    own = encode(list(places))[[places[p] for p in prompts]]
    alone = encode(list(answers))
    together = encode([f"{p}\n{a}" for p, a in zip(prompts, answers, strict=True)])
    # e(x)⊙e(y) has length 1/√D or so; √D puts the three parts on one scale, which one penalty needs.
    return np.concatenate([together, alone, own * alone * np.sqrt(own.shape[1])], axis=1)


def _choose(difference: Array, keys: Sequence[str], penalties: Sequence[float], seed: int) -> float:
    """Return the penalty with the least held-out loss over folds of whole prompts."""
    unique = sorted(set(keys))
    folds = min(_FOLDS, len(unique))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_of = {unique[i]: rank % folds for rank, i in enumerate(order)}
    fold = np.array([fold_of[key] for key in keys])

    def loss(penalty: float) -> float:
        margins = np.concatenate([
            difference[fold == f] @ _solve(difference[fold != f], penalty) for f in range(folds)
        ])  # fmt: skip
        return float(np.logaddexp(0.0, -margins).mean())

    return min(penalties, key=loss)


def _solve(difference: Array, penalty: float) -> Array:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError('The encoder scorer needs scikit-learn: pip install "trimtab[eval]".') from error
    # Each pair stands in both orders, so that the two classes balance and no intercept is needed; C is halved for it.
    stacked = np.concatenate([difference, -difference])
    sides = np.repeat([1, 0], len(difference))
    model: Any = LogisticRegression(C=0.5 / penalty, fit_intercept=False, max_iter=2000)
    model.fit(stacked, sides)
    return cast("Array", model.coef_[0])
