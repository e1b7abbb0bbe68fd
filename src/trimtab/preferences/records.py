"""The one internal record: two answers to one prompt, judged on any number of objectives.

Everything that trains, ranks or converts works on :class:`Comparison`; every file format is read into it
and written from it. A *label* is given per objective, so one row can prefer answer ``a`` on "concise",
answer ``b`` on "helpful", be tied on a third and unjudged on a fourth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from trimtab.models.chat import Message, Text

__all__ = ["Comparison", "Label", "Message", "Text", "response_text"]


class Label(IntEnum):
    """Which answer an objective prefers. An objective that was not judged is absent from ``labels``."""

    B = -1
    TIE = 0
    A = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, with a label for each judged objective.

    Attributes:
        prompt: the text or chat turns that both answers continue; never contains an answer.
        response_a: first answer: ``str`` if ``prompt`` is plain text, else a list of (usually one) assistant turns.
        response_b: second answer, same form.
        labels: objective name → which answer it prefers; a missing objective was not judged.
        strengths: objective name → how much the better answer is better, ≥ 0, in the source's own unit
            (a score gap, a judge's confidence); absent where the source gives none.
        id: the source's row id, or ``""``.
        extra: the source's other columns, kept so that conversion loses nothing.
        source: ``"file:line"`` for messages, or ``""``.
    """

    prompt: Text
    response_a: Text
    response_b: Text
    labels: Mapping[str, Label]
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    source: str = ""

    @property
    def is_conversational(self) -> bool:
        """Whether prompt and answers are chat turns."""
        return not isinstance(self.prompt, str)

    def label(self, objective: str) -> Label | None:
        """Return the label for ``objective``, or ``None`` if the row was not judged on it."""
        return self.labels.get(objective)

    def oriented(self, objective: str) -> tuple[Text, Text] | None:
        """Return ``(chosen, rejected)`` for ``objective``, or ``None`` where it is tied or missing."""
        label = self.labels.get(objective)
        if label is None or label is Label.TIE:
            return None
        pair = (self.response_a, self.response_b)
        return pair if label is Label.A else (pair[1], pair[0])

    def swapped(self) -> Comparison:
        """Return the same judgement with the two answers in the other order, every label turned round."""
        labels = {name: Label(-label) for name, label in self.labels.items()}
        return replace(self, response_a=self.response_b, response_b=self.response_a, labels=labels)


def response_text(response: Text) -> str:
    """Return an answer as one string (its turns' contents joined by a newline)."""
    if isinstance(response, str):
        return response
    return "\n".join(turn["content"] for turn in response)
