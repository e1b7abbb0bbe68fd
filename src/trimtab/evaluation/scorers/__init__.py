"""Scorers that are not the guide: what says whether guided answers are better must not be what guided them.

Every scorer has ``about`` (objective, direction, range, licence, what it was fitted on) and
``score(answers, prompts)``, and a higher score is always the better one. :func:`make_scorer` makes one from its name,
and :func:`dependence` says why one may not judge a guide.
"""

from trimtab.evaluation.scorers.common import About, Scorer, bootstrap_interval, notices_of, pair_accuracy
from trimtab.evaluation.scorers.encoder import EncoderScorer
from trimtab.evaluation.scorers.independence import GuideFacts, dependence, fingerprint, pair_hashes
from trimtab.evaluation.scorers.lexicons import SentimentScorer, ToxicityScorer
from trimtab.evaluation.scorers.registry import Known, known_scorers, make_scorer
from trimtab.evaluation.scorers.rules import RefusalScorer, refuses
from trimtab.evaluation.scorers.surface import (
    ConcisenessScorer,
    DistinctScorer,
    LengthScorer,
    RepetitionScorer,
    distinct_share,
)
from trimtab.evaluation.scorers.words import BagOfWordsScorer

__all__ = [
    "About",
    "BagOfWordsScorer",
    "ConcisenessScorer",
    "DistinctScorer",
    "EncoderScorer",
    "GuideFacts",
    "Known",
    "LengthScorer",
    "RefusalScorer",
    "RepetitionScorer",
    "Scorer",
    "SentimentScorer",
    "ToxicityScorer",
    "bootstrap_interval",
    "dependence",
    "distinct_share",
    "fingerprint",
    "known_scorers",
    "make_scorer",
    "notices_of",
    "pair_accuracy",
    "pair_hashes",
    "refuses",
]
