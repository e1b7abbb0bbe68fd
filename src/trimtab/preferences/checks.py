"""What there is to know about preference data before training on it, as one pure function of the comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.models.chat import encode_prompt, encode_response, end_of_response_id, needs_leading_space
from trimtab.preferences.reading import objectives_of
from trimtab.preferences.records import Comparison, Label, Text, response_text
from trimtab.preferences.rows import BadRow

__all__ = [
    "DataReport",
    "Duplicates",
    "Lengths",
    "Measure",
    "ObjectiveReport",
    "Overlap",
    "Truncation",
    "check_comparisons",
    "first_user_message",
    "token_measure",
    "wilson_interval",
    "word_measure",
]

_Z95 = 1.959963984540054
_PERCENTILES = (50, 90, 95, 99)
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Measure:
    """How long a text is, and what of it remains when it is cut.

    Attributes:
        unit: ``"tokens"`` or ``"words"``.
        prompt: a prompt → its units.
        answer: ``(prompt, answer)`` → the answer's units, in tokens with the one that ends it.
    """

    unit: str
    prompt: Callable[[Text], Sequence[Hashable]]
    answer: Callable[[Text, Text], Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class ObjectiveReport:
    """One objective's labels, and how well the length of the answers alone foretells them.

    Attributes:
        name: of the objective.
        prefers_a: comparisons whose first answer is better (in TRL's form the chosen one).
        prefers_b: comparisons whose second answer is better.
        ties: judged, and equally good.
        missing: not judged.
        unequal: decided comparisons whose answers differ in length; the two accuracies are over these.
        equal: decided comparisons whose answers are equally long.
        shorter_wins: share of ``unequal`` in which the shorter answer is the better one, or ``None`` if there are none.
        shorter_interval: its Wilson 95 % interval.
        longer_wins: ``1 - shorter_wins``.
        longer_interval: its Wilson 95 % interval.
    """

    name: str
    prefers_a: int
    prefers_b: int
    ties: int
    missing: int
    unequal: int
    equal: int
    shorter_wins: float | None
    shorter_interval: tuple[float, float] | None
    longer_wins: float | None
    longer_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the prompts or the answers are, in the report's unit; percentiles are of the nearest rank."""

    what: str
    count: int
    minimum: int
    mean: float
    percentiles: Mapping[int, int]
    maximum: int


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows that repeat a pair met before.

    Attributes:
        repeated: rows with the prompt and the two answers of an earlier row, in either order.
        swapped: those of them in which the two answers stand the other way round.
        contradicting: those of them that prefer the other answer on some objective.
        examples: the first few, contradicting ones first, as ``"file:7 contradicts file:3"``.
    """

    repeated: int
    swapped: int
    contradicting: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What is shared with another file.

    Attributes:
        against: the other file.
        prompts: distinct prompts that are in both.
        rows: comparisons here whose prompt is in the other file.
        first_messages: distinct first user messages that are in both (a conversation may go on differently).
    """

    against: str
    prompts: int
    rows: int
    first_messages: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a length limit would do: prompts lose their beginning, answers their end.

    Attributes:
        max_length: prompt and answer together, in the report's unit.
        max_prompt_length: the prompt alone, or ``None`` for no limit of its own.
        prompts_cut: comparisons whose prompt is cut.
        pairs_cut: comparisons of which at least one answer is cut.
        pairs_equal: comparisons whose two answers are the same after the cut; training drops these.
    """

    max_length: int
    max_prompt_length: int | None
    prompts_cut: int
    pairs_cut: int
    pairs_equal: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything ``trimtab data check`` prints.

    Attributes:
        comparisons: how many good ones there are.
        prompts: distinct prompts among them.
        conversational: how many are chat turns (the others are plain text).
        bad_rows: rows that could not be used.
        objectives: one report each, in order of first appearance.
        unit: of all lengths, ``"tokens"`` or ``"words"``.
        lengths: of prompts and of answers (both of a pair counted).
        duplicates: repeated pairs.
        overlap: with another file, if one was given.
        truncation: by a limit, if one was given.
    """

    comparisons: int
    prompts: int
    conversational: int
    bad_rows: tuple[BadRow, ...]
    objectives: tuple[ObjectiveReport, ...]
    unit: str
    lengths: tuple[Lengths, ...]
    duplicates: Duplicates
    overlap: Overlap | None
    truncation: Truncation | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as what JSON can hold."""
        return asdict(self)


def wilson_interval(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Return Wilson's interval of a share ``p = successes / n``.

    ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` (Wilson 1927), which stays within [0, 1].

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` is not between 0 and ``n``.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share.")
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def word_measure() -> Measure:
    """Measure in words (white space divides them), for want of a tokenizer."""
    return Measure(
        "words", lambda prompt: response_text(prompt).split(), lambda _, answer: response_text(answer).split()
    )


def token_measure(tokenizer: Any, *, chat_template: str | None = None) -> Measure:
    """Measure in tokens, encoded as training encodes them: template around the prompt, end token after the answer."""
    ends: dict[bool, int] = {}

    def answer(prompt: Text, response: Text) -> Sequence[Hashable]:
        chat = not isinstance(prompt, str)
        if chat not in ends:
            ends[chat] = end_of_response_id(tokenizer, prompt, chat_template=chat_template)
        space = needs_leading_space(tokenizer, prompt, chat_template=chat_template)
        return [*encode_response(tokenizer, response, leading_space=space), ends[chat]]

    return Measure("tokens", lambda prompt: encode_prompt(tokenizer, prompt, chat_template=chat_template), answer)


def check_comparisons(
    comparisons: Sequence[Comparison],
    *,
    bad_rows: Sequence[BadRow] = (),
    measure: Measure | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    against: Sequence[Comparison] | None = None,
    against_name: str = "",
) -> DataReport:
    """Return counts, lengths, duplicates, overlap and what length alone foretells.

    Args:
        comparisons: the data.
        bad_rows: what could not be read; passed on into the report.
        measure: the unit of lengths; words if ``None``.
        max_length: also report what cutting at this length (prompt and answer, in that unit) does.
        max_prompt_length: limit of the prompt alone, with ``max_length``.
        against: other data, to find prompts that are in both.
        against_name: how the report names it.
    """
    measure = measure or word_measure()
    sizes: list[tuple[int, int, int]] = []
    cuts: list[tuple[bool, bool, bool]] = []
    for comparison in comparisons:
        prompt = measure.prompt(comparison.prompt)
        a = measure.answer(comparison.prompt, comparison.response_a)
        b = measure.answer(comparison.prompt, comparison.response_b)
        sizes.append((len(prompt), len(a), len(b)))
        if max_length is not None:
            cuts.append(_cut(len(prompt), a, b, max_length, max_prompt_length))
    keys = {prompt_key(comparison) for comparison in comparisons}
    return DataReport(
        comparisons=len(comparisons),
        prompts=len(keys),
        conversational=sum(c.is_conversational for c in comparisons),
        bad_rows=tuple(bad_rows),
        objectives=tuple(_objective(name, comparisons, sizes) for name in objectives_of(comparisons)),
        unit=measure.unit,
        lengths=(
            *_lengths("prompt", [p for p, _, _ in sizes]),
            *_lengths("answer", [n for _, a, b in sizes for n in (a, b)]),
        ),
        duplicates=_duplicates(comparisons),
        overlap=None if against is None else _overlap(comparisons, against, against_name),
        truncation=None if max_length is None else Truncation(max_length, max_prompt_length, *map(sum, _columns(cuts))),
    )


def prompt_key(comparison: Comparison) -> str:
    """Return a string that is equal for equal prompts."""
    prompt = comparison.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def first_user_message(comparison: Comparison) -> str:
    """Return what the user says first (plain text: the whole prompt); the unit that data should be split by."""
    if isinstance(comparison.prompt, str):
        return comparison.prompt
    return next((turn["content"] for turn in comparison.prompt if turn["role"] == "user"), prompt_key(comparison))


def _objective(name: str, comparisons: Sequence[Comparison], sizes: Sequence[tuple[int, int, int]]) -> ObjectiveReport:
    counts = {label: 0 for label in (Label.A, Label.B, Label.TIE, None)}
    shorter = equal = 0
    for comparison, (_, a, b) in zip(comparisons, sizes, strict=True):
        label = comparison.label(name)
        counts[label] += 1
        if label in (Label.A, Label.B):
            equal += a == b
            shorter += (a < b) if label is Label.A else (b < a)
    decided = counts[Label.A] + counts[Label.B]
    n = decided - equal
    return ObjectiveReport(
        name=name,
        prefers_a=counts[Label.A],
        prefers_b=counts[Label.B],
        ties=counts[Label.TIE],
        missing=counts[None],
        unequal=n,
        equal=equal,
        shorter_wins=shorter / n if n else None,
        shorter_interval=wilson_interval(shorter, n) if n else None,
        longer_wins=(n - shorter) / n if n else None,
        longer_interval=wilson_interval(n - shorter, n) if n else None,
    )


def _lengths(what: str, values: list[int]) -> tuple[Lengths, ...]:
    if not values:
        return ()
    ordered = sorted(values)
    ranks = {p: ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in _PERCENTILES}
    return (Lengths(what, len(ordered), ordered[0], sum(ordered) / len(ordered), ranks, ordered[-1]),)


def _cut(
    prompt: int, a: Sequence[Hashable], b: Sequence[Hashable], max_length: int, max_prompt_length: int | None
) -> tuple[bool, bool, bool]:
    """Return whether the prompt is cut, an answer is cut, and the answers are equal after that."""
    limit = max_length if max_prompt_length is None else min(max_prompt_length, max_length)
    room = max_length - min(prompt, limit)
    return prompt > limit, max(len(a), len(b)) > room, list(a[:room]) == list(b[:room])


def _columns(cuts: Sequence[tuple[bool, bool, bool]]) -> tuple[list[bool], list[bool], list[bool]]:
    return [c[0] for c in cuts], [c[1] for c in cuts], [c[2] for c in cuts]


def _duplicates(comparisons: Sequence[Comparison]) -> Duplicates:
    first: dict[tuple[str, str, str], Comparison] = {}
    contradicting: list[str] = []
    others: list[str] = []
    swapped = 0
    for comparison in comparisons:
        texts = (response_text(comparison.response_a), response_text(comparison.response_b))
        key = (prompt_key(comparison), min(texts), max(texts))
        earlier = first.setdefault(key, comparison)
        if earlier is comparison:
            continue
        turned = response_text(earlier.response_a) != texts[0]
        swapped += turned
        against = _contradicts(earlier, comparison.swapped() if turned else comparison)
        where = f"{comparison.source or comparison.id} {{}} {earlier.source or earlier.id}"
        (contradicting if against else others).append(where.format("contradicts" if against else "repeats"))
    examples = tuple([*contradicting, *others][:_EXAMPLES])
    return Duplicates(len(contradicting) + len(others), swapped, len(contradicting), examples)


def _contradicts(first: Comparison, second: Comparison) -> bool:
    return any(label * second.labels.get(name, Label.TIE) == -1 for name, label in first.labels.items())


def _overlap(comparisons: Sequence[Comparison], against: Iterable[Comparison], name: str) -> Overlap:
    others = list(against)
    prompts = {prompt_key(c) for c in others}
    messages = {first_user_message(c) for c in others}
    return Overlap(
        against=name,
        prompts=len(prompts & {prompt_key(c) for c in comparisons}),
        rows=sum(prompt_key(c) in prompts for c in comparisons),
        first_messages=len(messages & {first_user_message(c) for c in comparisons}),
    )
