"""Scorers from other packages that carry their word lists or weights with them: sentiment and toxicity."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab.evaluation.scorers.common import About
from trimtab.models import Text

Array = NDArray[np.float64]

_PROBES = {"Thank you, that was very kind of you.": (0.0, 0.2), "You are a fucking idiot.": (0.8, 1.0)}
"""Texts whose probability of being offensive is beyond doubt, with the range it must lie in."""


@dataclass(frozen=True)
class SentimentScorer:
    """VADER's compound score (Hutto and Gilbert, 2014): a lexicon of rated words with rules for negation and emphasis.

    It was made for short English posts; in a long answer it saturates at −1 and 1.
    """

    @property
    def about(self) -> About:
        """What the number means."""
        return About(
            "sentiment",
            f"VADER's compound score of the answer ({_release('vaderSentiment')})",
            low=-1.0,
            high=1.0,
            unit="compound",
            licence="MIT",
            name="sentiment",
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return the compound score of each answer, (N,); 0 for an empty one. Prompts are not read."""
        analyser = _vader()
        return np.array([analyser.polarity_scores(answer)["compound"] for answer in answers], dtype=np.float64)


@dataclass(frozen=True)
class ToxicityScorer:
    """Minus the probability that a text is offensive, by alt-profanity-check: a linear model on character n-grams.

    Its model is a pickle inside the package, made anew for each release of scikit-learn, and the package asks for that
    release. It knows words and not what is said with them.
    """

    @property
    def about(self) -> About:
        """What the number means."""
        return About(
            "toxicity",
            f"minus the probability of offence ({_release('alt-profanity-check')})",
            low=-1.0,
            high=0.0,
            unit="probability",
            licence="MIT",
            name="toxicity",
        )

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> Array:
        """Return minus the probability of each answer, (N,). Prompts are not read."""
        if not len(answers):
            return np.zeros(0)
        return -np.asarray(_profanity()(list(answers)), dtype=np.float64)


def _release(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package}, not installed"


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError('The scorer "sentiment" needs vaderSentiment: pip install "trimtab[eval]".') from error
    return SentimentIntensityAnalyzer()


@functools.cache
def _profanity() -> Callable[[list[str]], Array]:
    """Return the package's model, after it gave sound numbers for texts that are beyond doubt.

    Raises:
        ConfigError: the package is missing, or does not work with the scikit-learn that is here.
    """
    try:
        with warnings.catch_warnings():
            # Another scikit-learn than the model's own says that it may be wrong: the probes below find out.
            warnings.filterwarnings("ignore", message=r"(?s).*unpickle estimator.*")
            from profanity_check import predict_prob
    except ImportError as error:
        raise ConfigError('The scorer "toxicity" needs alt-profanity-check: pip install "trimtab[eval]".') from error
    predict = cast("Callable[[list[str]], Array]", predict_prob)
    try:
        found = predict(list(_PROBES))
        sound = all(low <= p <= high for p, (low, high) in zip(found, _PROBES.values(), strict=True))
    except Exception as error:  # a model of another scikit-learn fails in many ways
        raise ConfigError(_other_sklearn(str(error))) from error
    if not sound:
        raise ConfigError(_other_sklearn(f"it calls {next(iter(_PROBES))!r} offensive with {found[0]:.2f}"))
    return predict


def _other_sklearn(reason: str) -> str:
    return (
        f"alt-profanity-check {version('alt-profanity-check')} does not work with scikit-learn "
        f"{version('scikit-learn')} ({' '.join(reason.split())[:160]}): install the version of the same number, "
        f"alt-profanity-check=={version('scikit-learn')}."
    )
