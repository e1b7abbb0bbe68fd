"""What is said of each token: log-probabilities as OpenAI has them, and what base, guides and objectives think."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.engine.results import TokenScores
from trimtab.models.token_text import Offsets, TokenTexts

_LEAST = -9999.0  # what OpenAI writes for a token that cannot be; JSON has no −∞


class Scores:
    """Writes what was noted of tokens.

    Attributes:
        texts: the texts of tokens.
        top: how many of the likeliest tokens OpenAI's fields list; ``None``: those fields are ``null``.
        noted_top: how many ours list; ``None``: there are none.
    """

    def __init__(self, texts: TokenTexts, *, top: int | None, noted_top: int | None) -> None:
        self.texts, self.top, self.noted_top = texts, top, noted_top

    @property
    def wanted(self) -> bool:
        """Whether anything is said of tokens."""
        return self.top is not None or self.noted_top is not None

    def chat(self, noted: Sequence[TokenScores]) -> dict[str, Any] | None:
        """Return ``logprobs`` of a chat's choice."""
        if self.top is None:
            return None
        content = [
            {**self._token(n.token_id, n.log_prob), "top_logprobs": [self._token(*each) for each in n.top[: self.top]]}
            for n in noted
        ]
        return {"content": content, "refusal": None}

    def completion(self, noted: Sequence[TokenScores], offsets: Offsets) -> dict[str, list[Any]] | None:
        """Return ``logprobs`` of a completion's choice."""
        if self.top is None:
            return None
        return {
            "tokens": [self.texts.text(n.token_id) for n in noted],
            "token_logprobs": [_finite(n.log_prob) for n in noted],
            "top_logprobs": [self._by_text(n) for n in noted],
            "text_offset": offsets.next([n.token_id for n in noted]),
        }

    def ours(self, noted: Sequence[TokenScores]) -> dict[str, Any]:
        """Return what a choice has under ``guidance``: nothing where that was not asked for."""
        if self.noted_top is None:
            return {}
        return {"guidance": {"tokens": [self._note(n, self.noted_top) for n in noted]}}

    def _note(self, n: TokenScores, top: int) -> dict[str, Any]:
        base = n.base_log_prob
        return {
            "token": self.texts.text(n.token_id),
            "token_id": n.token_id,
            "logprob": _finite(n.log_prob),
            "base_logprob": None if base is None else _finite(base),
            "kl": None if n.kl is None else _finite(n.kl),
            "guides": {name: _finite(x) for name, x in n.guides.items()},
            "objectives": {
                name: {"logprob": None if name in n.policy_objectives else _finite(x), "log_ratio": _ratio(n, name)}
                for name, x in n.objectives.items()
            },
            "top": [self._numbered(*each) for each in n.top[:top]],
            "base_top": [self._numbered(*each) for each in n.base_top[:top]],
        }

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        return {"token": self.texts.text(token), "logprob": _finite(log_prob), "bytes": self.texts.bytes(token)}

    def _numbered(self, token: int, log_prob: float) -> dict[str, Any]:
        return {"token": self.texts.text(token), "token_id": token, "logprob": _finite(log_prob)}

    def _by_text(self, n: TokenScores) -> dict[str, float]:
        found: dict[str, float] = {}
        # Several tokens can have one text; the likeliest of them stays, so that the greatest value is the true one.
        for token, log_prob in [*n.top[: self.top], (n.token_id, n.log_prob)]:
            found.setdefault(self.texts.text(token), _finite(log_prob))
        return found


def _ratio(n: TokenScores, name: str) -> float | None:
    ratio = n.log_ratio(objective=name)
    return None if ratio is None else _finite(ratio)


def _finite(value: float) -> float:
    return max(value, _LEAST) + 0.0  # never a negative zero
