"""Which token owes what to which objective: base, guides and objectives read one text, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.engine.results import TokenScores, Watch

if TYPE_CHECKING:
    from trimtab.engine import Engine
    from trimtab.engine.guidance import GuidanceLike
    from trimtab.models import Text


@dataclass(frozen=True)
class Attribution:
    """A text's tokens, with what each objective adds to or takes from each; log-probabilities in nats.

    Attributes:
        prompt: what the text answers.
        response: the text; ``None`` if it was given as token ids.
        tokens: text of each of the T tokens.
        scores: what was noted of each.
        names: token id → its text, of every token that is named as an alternative.
        weights: guide name → w as applied, strength included.
        preferences: for each guide that takes a preference, objective → α.
    """

    prompt: Text
    response: Text | None
    tokens: Sequence[str]
    scores: Sequence[TokenScores]
    names: Mapping[int, str]
    weights: Mapping[str, float]
    preferences: Mapping[str, Mapping[str, float]]

    @property
    def rows(self) -> dict[str, list[float]]:
        """Objective → T log-ratios log π_r − log π_base; a guide that has no objective alone stands under its name.

        A token that a guide does not know, and those after it, are NaN.
        """
        names = list(dict.fromkeys(name for score in self.scores for name in score.objectives))
        rows = {name: [_ratio(score.objectives.get(name), score) for score in self.scores] for name in names}
        for guide in dict.fromkeys(name for score in self.scores for name in score.guides):
            values = [_ratio(score.guides.get(guide), score) for score in self.scores]
            # A plain guide of one objective is that objective: it is not shown twice.
            if guide in self.preferences or not any(_same(values, row) for row in rows.values()):
                label = guide if guide not in rows else f"{guide} (guide)"
                rows |= {label: values} if not (guide in self.preferences and _has_all(self, guide, rows)) else {}
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; ``tokens`` as the server's ``guidance.tokens``."""
        totals: dict[str, Any] = {
            "logprob": sum(score.log_prob for score in self.scores),
            "base_logprob": sum(score.base_log_prob or 0.0 for score in self.scores),
            "kl": sum(score.kl or 0.0 for score in self.scores),
            "log_ratio": {name: sum(values) if values == values else None for name, values in self.rows.items()},
        }
        return {
            "prompt": self.prompt,
            "response": self.response,
            "weights": dict(self.weights),
            "preferences": {name: dict(value) for name, value in self.preferences.items()},
            "tokens": [self._token(text, score) for text, score in zip(self.tokens, self.scores, strict=True)],
            "totals": totals,
        }

    def _token(self, text: str, score: TokenScores) -> dict[str, Any]:
        return {
            "token": text,
            "token_id": score.token_id,
            "logprob": score.log_prob,
            "base_logprob": score.base_log_prob,
            "kl": score.kl,
            "guides": dict(score.guides),
            "objectives": {
                name: {"logprob": value, "log_ratio": _ratio(value, score)} for name, value in score.objectives.items()
            },
            "top": self._named(score.top),
            "base_top": self._named(score.base_top),
        }

    def _named(self, top: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": self.names[token], "token_id": token, "logprob": value} for token, value in top]
