r"""The formats preference data comes in: how each is told from its columns, and how a row becomes comparisons.

=============  ==========================================================================================
name           columns
=============  ==========================================================================================
canonical      ``prompt``, ``response_a``, ``response_b``, ``labels`` {objective: 1 a, -1 b, 0 tie, null}
labels         TRL's ``chosen``, ``rejected`` (and ``prompt``), with ``labels`` {objective: 1 chosen, …}
trl            TRL's preference type: ``chosen``, ``rejected``, ``prompt`` explicit or contained in both
hh             HH-RLHF: ``chosen``, ``rejected`` as transcripts ``"\n\nHuman: …\n\nAssistant: …"``
pku            PKU-SafeRLHF: ``prompt``, ``response_0``, ``response_1``, ``better_response_id``, ``safer_response_id``
ultrafeedback  ``instruction``, ``completions`` (each with ``annotations`` → attribute → ``Rating``)
scores         HelpSteer: ``prompt``, ``response``, one number per attribute; rows with equal prompts are paired
=============  ==========================================================================================

Where a source holds instructions and answers as plain strings by its nature (hh, pku, ultrafeedback, scores),
they become chat turns; in TRL's format a string is plain text, as TRL has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.preferences.records import Comparison, Label, Text
from trimtab.preferences.rows import RowProblem
from trimtab.preferences.texts import assistant, check_pair, parse_transcript, read_text, split_pair, user

__all__ = [
    "EXTRA_COLUMN",
    "FORMATS",
    "SIDE_COLUMN",
    "Format",
    "Options",
    "check_columns",
    "derive_label",
    "detect_format",
    "make_comparison",
    "pair_scores",
    "read_score",
    "score_columns",
]

SIDE_COLUMN = "trimtab_side"
"""Which answer stands under ``chosen`` ("a" or "b"), so that a row turned round for TRL can be turned back."""

EXTRA_COLUMN = "trimtab_extra"
"""Further columns whose own names would collide with those of the format."""

_PKU_LABELS = {"better_response_id": "helpful", "safer_response_id": "harmless"}
_MISSING_SCORES = frozenset({"", "n/a", "na", "none", "null"})
_NOT_SCORES = frozenset({"id", "index", "idx", "row", "row_id", "turn", "seed", "annotator", "timestamp", "label"})


@dataclass(frozen=True, slots=True)
class Options:
    """What a converter needs to know beyond the row.

    Attributes:
        objective: name of the single, unnamed judgement of ``trl`` and ``hh`` rows.
        margin: two scores that differ by at most this are a tie.
        attributes: the attributes to read scores for, or ``None`` for all.
    """

    objective: str = "preferred"
    margin: float = 0.0
    attributes: tuple[str, ...] | None = None


Converter = Callable[[dict[str, Any], Options], Iterator[Comparison | RowProblem]]


@dataclass(frozen=True, slots=True)
class Format:
    """One format: its name, the columns it cannot do without, and what turns a row into comparisons.

    ``convert`` is ``None`` for ``scores``, whose rows make comparisons only together.
    """

    name: str
    needs: frozenset[str]
    convert: Converter | None


def detect_format(rows: list[dict[str, Any]], source: str) -> str:
    """Return the name of the format that the columns of the first rows show.

    Raises:
        DataError: no known format; the columns found and the formats known are named.
    """
    columns = {name for row in rows for name, value in row.items() if value is not None}
    if {"response_a", "response_b"} <= columns:
        return "canonical"
    if {"chosen", "rejected"} <= columns:
        return _detect_trl(rows, columns)
    if {"response_0", "response_1"} <= columns and columns & set(_PKU_LABELS):
        return "pku"
    if {"instruction", "completions"} <= columns:
        return "ultrafeedback"
    if {"prompt", "response"} <= columns and score_columns(rows):
        return "scores"
    raise DataError(_unknown(columns, source))


def check_columns(format: str, rows: list[dict[str, Any]], source: str) -> None:
    """Refuse a format that these rows cannot be in.

    Raises:
        ConfigError: there is no such format.
        DataError: a column that the format needs is in none of the rows.
    """
    if format not in FORMATS:
        raise ConfigError(f"Unknown data format {format!r}.{did_you_mean(format, [*FORMATS, 'auto'])}")
    columns = {name for row in rows for name in row}
    missing = sorted(FORMATS[format].needs - columns)
    if missing:
        raise DataError(
            f"{source} is not in the format {format!r}: column {', '.join(map(repr, missing))} is missing, "
            f"it has {_listed(columns)}."
        )


def score_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the columns that hold nothing but numbers (or nothing), in the rows' order."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.lower() not in _NOT_SCORES and _all_numbers([r.get(name) for r in rows])]


def read_score(value: Any, name: str) -> float | None:
    """Return a score, or ``None`` where it is missing (null, empty, "N/A").

    Raises:
        RowProblem: it is NaN, infinite, or no number.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_SCORES):
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowProblem(f"the score of {name!r} is {_shown(value)}, not a finite number")
    return score


def derive_label(a: float, b: float, margin: float) -> tuple[Label, float]:
    """Return the label and strength that two scores give: a tie where ``|a - b| ≤ margin``, strength ``|a - b|``."""
    gap = a - b
    label = Label.TIE if abs(gap) <= margin else (Label.A if gap > 0 else Label.B)
    return label, abs(gap)


def pair_scores(
    a: Mapping[str, float | None], b: Mapping[str, float | None], margin: float
) -> tuple[dict[str, Label], dict[str, float]]:
    """Return labels and strengths of every attribute that both answers have a score for."""
    labels: dict[str, Label] = {}
    strengths: dict[str, float] = {}
    for name, score in a.items():
        other = b.get(name)
        if score is not None and other is not None:
            labels[name], strengths[name] = derive_label(score, other, margin)
    return labels, strengths


def make_comparison(
    prompt: Text,
    a: Text,
    b: Text,
    *,
    labels: Mapping[str, Label],
    row: Mapping[str, Any],
    used: Iterable[str],
    strengths: Mapping[str, float] | None = None,
) -> Comparison:
    """Return the record, with every column of ``row`` that is not ``used`` kept in ``extra``.

    Raises:
        RowProblem: the pair is unusable (see :func:`~trimtab.preferences.texts.check_pair`).
    """
    check_pair(prompt, a, b)
    known = {*used, "id", EXTRA_COLUMN}
    extra = {name: value for name, value in row.items() if name not in known}
    packed = row.get(EXTRA_COLUMN)
    if isinstance(packed, dict):
        extra.update(cast("dict[str, Any]", packed))
    identity = row.get("id")
    return Comparison(prompt, a, b, labels, strengths or {}, "" if identity is None else str(identity), extra)


def _from_canonical(row: dict[str, Any], _: Options) -> Iterator[Comparison | RowProblem]:
    prompt, a, b = (read_text(row.get(name), name) for name in ("prompt", "response_a", "response_b"))
    prompt, a, b = split_pair(prompt, a, b)
    used = ("prompt", "response_a", "response_b", "labels", "strengths")
    yield make_comparison(prompt, a, b, labels=_labels(row), strengths=_strengths(row), row=row, used=used)


def _from_labels(row: dict[str, Any], _: Options) -> Iterator[Comparison | RowProblem]:
    prompt, chosen, rejected = _trl_texts(row)
    used = ("prompt", "chosen", "rejected", "labels", "strengths", SIDE_COLUMN)
    comparison = make_comparison(
        prompt, chosen, rejected, labels=_labels(row), strengths=_strengths(row), row=row, used=used
    )
    yield _turned_back(comparison, row)


def _from_trl(row: dict[str, Any], options: Options) -> Iterator[Comparison | RowProblem]:
    prompt, chosen, rejected = _trl_texts(row)
    used = ("prompt", "chosen", "rejected", SIDE_COLUMN)
    comparison = make_comparison(prompt, chosen, rejected, labels={options.objective: Label.A}, row=row, used=used)
    yield _turned_back(comparison, row)


def _from_hh(row: dict[str, Any], options: Options) -> Iterator[Comparison | RowProblem]:
    prompt, chosen = parse_transcript(row.get("chosen"), "chosen")
    other, rejected = parse_transcript(row.get("rejected"), "rejected")
    if prompt != other:
        raise RowProblem("the two dialogues differ before their last answer, so they share no prompt")
    yield make_comparison(
        prompt, chosen, rejected, labels={options.objective: Label.A}, row=row, used=("chosen", "rejected")
    )


def _from_pku(row: dict[str, Any], _: Options) -> Iterator[Comparison | RowProblem]:
    texts = [read_text(row.get(name), name) for name in ("prompt", "response_0", "response_1")]
    prompt, a, b = (
        role(t) if isinstance(t, str) else t for role, t in zip((user, assistant, assistant), texts, strict=True)
    )
    labels: dict[str, Label] = {}
    for column, objective in _PKU_LABELS.items():
        value = row.get(column)
        if value is None or value == -1:
            continue
        if str(value) not in ("0", "1", "0.0", "1.0"):
            raise RowProblem(f"{column!r} is {_shown(value)}, where 0 or 1 names a response (null: not judged)")
        labels[objective] = Label.A if float(value) == 0 else Label.B
    yield make_comparison(
        prompt, a, b, labels=labels, row=row, used=("prompt", "response_0", "response_1", *_PKU_LABELS)
    )


def _from_ultrafeedback(row: dict[str, Any], options: Options) -> Iterator[Comparison | RowProblem]:
    """Every two of a row's completions, in their order; critiques and rationales are left behind."""
    instruction = read_text(row.get("instruction"), "instruction")
    prompt = user(instruction) if isinstance(instruction, str) else instruction
    completions = row.get("completions")
    if not isinstance(completions, list) or len(cast("list[Any]", completions)) < 2:
        raise RowProblem("'completions' is not a list of two or more")
    answers = [_completion(item, i, options) for i, item in enumerate(cast("list[Any]", completions), start=1)]
    for i, (text_a, scores_a, model_a) in enumerate(answers):
        for j, (text_b, scores_b, model_b) in enumerate(answers[i + 1 :], start=i + 1):
            labels, strengths = pair_scores(scores_a, scores_b, options.margin)
            pair = {"scores_a": scores_a, "scores_b": scores_b, "model_a": model_a, "model_b": model_b}
            pair = {**row, **{name: value for name, value in pair.items() if value is not None}}
            used = ("instruction", "completions")
            try:
                yield make_comparison(prompt, text_a, text_b, labels=labels, strengths=strengths, row=pair, used=used)
            except RowProblem as problem:
                yield RowProblem(f"completions {i + 1} and {j + 1}: {problem}")


def _completion(item: Any, number: int, options: Options) -> tuple[Text, dict[str, float | None], Any]:
    if not isinstance(item, dict) or "response" not in item:
        raise RowProblem(f"completion {number} has no 'response'")
    text = read_text(item["response"], "response")
    annotations = item.get("annotations")
    if not isinstance(annotations, dict):
        raise RowProblem(f"completion {number} has no 'annotations'")
    scores: dict[str, float | None] = {}
    for name, annotation in cast("dict[str, Any]", annotations).items():
        if options.attributes is None or name in options.attributes:
            rating = annotation.get("Rating") if isinstance(annotation, dict) else annotation
            scores[name] = read_score(rating, name)
    return assistant(text) if isinstance(text, str) else text, scores, item.get("model")


def _trl_texts(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = (read_text(row.get(name), name) for name in ("chosen", "rejected"))
    prompt = row.get("prompt")
    return split_pair(None if prompt is None else read_text(prompt, "prompt"), chosen, rejected)


def _turned_back(comparison: Comparison, row: Mapping[str, Any]) -> Comparison:
    side = row.get(SIDE_COLUMN)
    if side not in (None, "a", "b"):
        raise RowProblem(f"{SIDE_COLUMN!r} is {_shown(side)}, where 'a' or 'b' can stand")
    return comparison.swapped() if side == "b" else comparison


def _labels(row: Mapping[str, Any]) -> dict[str, Label]:
    given = row.get("labels")
    if not isinstance(given, dict):
        raise RowProblem("'labels' is missing" if given is None else "'labels' is not an object {objective: label}")
    labels: dict[str, Label] = {}
    for name, value in cast("dict[str, Any]", given).items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool) or value not in (-1, 0, 1):
            raise RowProblem(f"the label of {name!r} is {_shown(value)}, where 1, 0, -1 or null can stand")
        labels[name] = Label(int(value))
    return labels


def _strengths(row: Mapping[str, Any]) -> dict[str, float]:
    given = row.get("strengths")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RowProblem("'strengths' is not an object {objective: number}")
    strengths: dict[str, float] = {}
    for name, value in cast("dict[str, Any]", given).items():
        strength = read_score(value, name)
        if strength is not None and strength < 0:
            raise RowProblem(f"the strength of {name!r} is {_shown(value)}, but a strength is at least 0")
        if strength is not None:
            strengths[name] = strength
    return strengths


def _detect_trl(rows: list[dict[str, Any]], columns: set[str]) -> str:
    if any(isinstance(row.get("labels"), dict) for row in rows):
        return "labels"
    texts = [row[name] for row in rows for name in ("chosen", "rejected") if row.get(name) is not None]
    transcripts = sum(isinstance(t, str) and t.lstrip("\n").startswith(("Human:", "Assistant:")) for t in texts)
    return "hh" if "prompt" not in columns and 2 * transcripts > len(texts) else "trl"


def _all_numbers(values: list[Any]) -> bool:
    try:
        return any([read_score(value, "") is not None for value in values])
    except RowProblem:
        return False


def _unknown(columns: set[str], source: str) -> str:
    known = "; ".join(f"{f.name} ({', '.join(sorted(f.needs))})" for f in FORMATS.values())
    found = f"{source} has the columns {_listed(columns)}"
    if {"completion", "label"} <= columns:
        return f"{found}: these rows are unpaired (one answer each), and two are compared. Known formats: {known}."
    if columns <= {"id", "prompt", "source", "category"} or columns in ({"text"}, {"messages"}):
        return f"{found}: there are no two answers to compare. Known formats: {known}."
    return f"{found}, which is no preference format trimtab knows: {known}. Rename the columns to one of these."


def _listed(columns: Iterable[str]) -> str:
    names = sorted(columns)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "(none)"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("canonical", frozenset({"prompt", "response_a", "response_b", "labels"}), _from_canonical),
        Format("labels", frozenset({"chosen", "rejected", "labels"}), _from_labels),
        Format("trl", frozenset({"chosen", "rejected"}), _from_trl),
        Format("hh", frozenset({"chosen", "rejected"}), _from_hh),
        Format("pku", frozenset({"prompt", "response_0", "response_1"}), _from_pku),
        Format("ultrafeedback", frozenset({"instruction", "completions"}), _from_ultrafeedback),
        Format("scores", frozenset({"prompt", "response"}), None),
    )
}
"""Every format by name."""
