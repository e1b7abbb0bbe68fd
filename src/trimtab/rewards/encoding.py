"""From a comparison to token ids: the prompt cut on the left, the answers on the right, EOS where an answer ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import ConfigError, DataError
from trimtab.models import encode_prompt, encode_response, end_of_response_id
from trimtab.models.chat import Text, needs_leading_space
from trimtab.preferences.records import Comparison


@dataclass(frozen=True)
class EncodedPair:
    """One prompt and two answers as token ids.

    Attributes:
        prompt_ids: the prompt's last ``max_prompt_length`` tokens.
        a_ids: first answer; ends with the end-of-response token unless it was truncated.
        b_ids: second answer, likewise. For training, ``a`` is the chosen and ``b`` the rejected answer.
        a_truncated: the first answer lost its end.
        b_truncated: the second answer lost its end.
        prompt_truncated: the prompt lost its beginning.
        id: the row's id, or where it was read from, for messages.
    """

    prompt_ids: list[int]
    a_ids: list[int]
    b_ids: list[int]
    a_truncated: bool = False
    b_truncated: bool = False
    prompt_truncated: bool = False
    id: str = ""

    @property
    def truncated(self) -> bool:
        """Whether anything was cut."""
        return self.a_truncated or self.b_truncated or self.prompt_truncated

    @property
    def equal(self) -> bool:
        """Whether both answers are the same tokens, so that nothing can be learned or ranked."""
        return self.a_ids == self.b_ids


@dataclass(frozen=True)
class PreparedPairs:
    """The pairs of one objective, oriented so that ``a`` is the chosen answer, and what was left out.

    Attributes:
        objective: which label orients the pairs.
        pairs: what is left.
        rows: how many comparisons came in.
        missing: rows that were not judged on the objective.
        ties: rows judged equal.
        equal: rows whose answers are equal, by themselves or after truncation.
        truncated: kept pairs that lost a part of prompt or answer.
    """

    objective: str
    pairs: list[EncodedPair]
    rows: int
    missing: int
    ties: int
    equal: int
    truncated: int

    @property
    def summary(self) -> str:
        """One line: what is used and what is not, and why."""
        left_out = [
            f"{count} {why}"
            for count, why in (
                (self.missing, "not judged"),
                (self.ties, "tied"),
                (self.equal, "with equal answers"),
            )
            if count
        ]
        line = f"{len(self.pairs)} of {self.rows} pairs for {self.objective!r}"
        line += f" (left out: {', '.join(left_out)})" if left_out else ""
        return line + (f"; {self.truncated} truncated" if self.truncated else "")


class PairEncoder:
    """Encodes comparisons with one tokenizer, template and set of limits."""

    def __init__(
        self, tokenizer: Any, *, chat_template: str | None = None, max_length: int, max_prompt_length: int
    ) -> None:
        if not 0 < max_prompt_length < max_length:
            raise ConfigError(
                f"max_prompt_length ({max_prompt_length}) must be at least 1 and less than max_length ({max_length}), "
                "so that there is room for an answer."
            )
        self._tokenizer = tokenizer
        self._template = chat_template
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self._ends: dict[bool, int] = {}

    def encode(self, prompt: Text, response_a: Text, response_b: Text, *, id: str = "") -> EncodedPair:
        """Return the pair's token ids (see :func:`encode_comparison`)."""
        prompt_ids = encode_prompt(self._tokenizer, prompt, chat_template=self._template)
        cut = prompt_ids[-self._max_prompt_length :]
        room = self._max_length - len(cut)
        a, b = self._answer(prompt, response_a), self._answer(prompt, response_b)
        return EncodedPair(
            cut, a[:room], b[:room], len(a) > room, len(b) > room, len(prompt_ids) > len(cut), id
        )  # fmt: skip

    def _answer(self, prompt: Text, response: Text) -> list[int]:
        space = needs_leading_space(self._tokenizer, prompt, chat_template=self._template)
        ids = encode_response(self._tokenizer, response, leading_space=space)
        return [*ids, self._end(prompt)]

    def _end(self, prompt: Text) -> int:
        plain = isinstance(prompt, str)
        if plain not in self._ends:  # reading it off the template is the same work for every row
            self._ends[plain] = end_of_response_id(self._tokenizer, prompt, chat_template=self._template)
        return self._ends[plain]


def encode_comparison(
    comparison: Comparison,
    tokenizer: Any,
    *,
    chat_template: str | None = None,
    max_length: int,
    max_prompt_length: int,
) -> EncodedPair:
    """Return a comparison's token ids, in the order its answers are written.

    The prompt is cut on the LEFT to ``max_prompt_length`` (its end is what the answer continues); the answers are cut
    at their END to ``max_length − len(prompt)``. An answer that was not cut ends with the end-of-response token.

    Raises:
        ConfigError: the limits leave no room.
        DataError: the prompt is empty.
    """
    encoder = PairEncoder(
        tokenizer, chat_template=chat_template, max_length=max_length, max_prompt_length=max_prompt_length
    )
    return encoder.encode(comparison.prompt, comparison.response_a, comparison.response_b, id=_name(comparison))


def prepare_pairs(comparisons: Iterable[Comparison], objective: str, encoder: PairEncoder) -> PreparedPairs:
    """Return the pairs that ``objective`` decides, chosen answer first, with a count of everything left out."""
    pairs: list[EncodedPair] = []
    counts = {"rows": 0, "missing": 0, "ties": 0, "equal": 0}
    for comparison in comparisons:
        counts["rows"] += 1
        oriented = comparison.oriented(objective)
        if oriented is None:
            counts["missing" if comparison.label(objective) is None else "ties"] += 1
            continue
        pair = encoder.encode(comparison.prompt, *oriented, id=_name(comparison))
        if pair.equal:
            counts["equal"] += 1
        else:
            pairs.append(pair)
    return PreparedPairs(objective, pairs, truncated=sum(p.truncated for p in pairs), **counts)


def choose_objective(comparisons: Sequence[Comparison], objective: str | None, *, source: str) -> str:
    """Return the objective to use: the one asked for, or the only one the data has.

    Raises:
        DataError: the data does not have it, or has several and none was asked for.
    """
    known = sorted({name for comparison in comparisons for name in comparison.labels})
    if not known:
        raise DataError(f"{source} has no labelled pair: nothing can be learned or ranked from it.")
    if objective is None and len(known) == 1:
        return known[0]
    if objective is None:
        raise DataError(f"{source} has several objectives ({', '.join(known)}): choose one with --objective.")
    if objective not in known:
        raise DataError(f"{source} has no labels for {objective!r}: it has {', '.join(known)}.")
    return objective


def _name(comparison: Comparison) -> str:
    return comparison.id or comparison.source
