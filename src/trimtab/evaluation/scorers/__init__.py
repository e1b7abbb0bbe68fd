"""Scorers that are not the guide: what says whether guided answers are better must not be what guided them.

Every scorer has ``about`` (objective, direction, range, licence) and ``score(answers, prompts)``, and a higher score is
always the better one.
"""

from trimtab.evaluation.scorers.common import About, Scorer, bootstrap_interval, pair_accuracy
from trimtab.evaluation.scorers.encoder import EncoderScorer
from trimtab.evaluation.scorers.rules import ConcisenessScorer, RefusalScorer, refuses
from trimtab.evaluation.scorers.words import BagOfWordsScorer

__all__ = [
    "About",
    "BagOfWordsScorer",
    "ConcisenessScorer",
    "EncoderScorer",
    "RefusalScorer",
    "Scorer",
    "bootstrap_interval",
    "pair_accuracy",
    "refuses",
]
