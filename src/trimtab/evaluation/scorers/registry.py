"""Scorers by name: what ``--scorers a,b,c`` understands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ConfigError, did_you_mean
from trimtab.evaluation.scorers.common import About, Scorer, pair_accuracy, scoring_dtype
from trimtab.evaluation.scorers.encoder import EncoderScorer, default_encoder
from trimtab.evaluation.scorers.independence import GuideFacts, pair_hashes
from trimtab.evaluation.scorers.lexicons import SentimentScorer, ToxicityScorer
from trimtab.evaluation.scorers.rules import RefusalScorer
from trimtab.evaluation.scorers.surface import ConcisenessScorer, DistinctScorer, LengthScorer, RepetitionScorer
from trimtab.evaluation.scorers.words import BagOfWordsScorer
from trimtab.models import Base
from trimtab.preferences.records import Comparison
from trimtab.preferences.splitting import prompt_key

_FOLDS = 5


@dataclass(frozen=True)
class Known:
    """A scorer that the registry can make.

    Attributes:
        name: what comes before the colon.
        takes: what comes after it; ``""`` for nothing.
        optional: whether it may be left out.
        about: what its number means.
    """

    name: str
    takes: str
    optional: bool
    about: About

    @property
    def usage(self) -> str:
        """How it is written, such as ``reward:MODEL``."""
        if not self.takes:
            return self.name
        return f"{self.name}[:{self.takes}]" if self.optional else f"{self.name}:{self.takes}"


@dataclass(frozen=True)
class _Context:
    """What the makers may need beside their argument."""

    device: str
    base: str | Base | None


_Make = Callable[[str, _Context], Scorer]


def make_scorer(spec: str, *, device: str = "auto", base: str | Path | Base | None = None) -> Scorer:
    """Return the scorer that ``NAME`` or ``NAME:ARGUMENT`` means.

    Args:
        spec: one of :func:`known_scorers`, such as ``"sentiment"`` or ``"reward:my-reward"``.
        device: for scorers that are models: ``"auto"`` (CUDA if there is one), or a torch device.
        base: the base that is evaluated; ``fluency`` without a model of its own reads with it.

    Raises:
        ConfigError: an unknown name (the nearest is named), an argument too many or missing, or a package that is not
            installed.
        DataError: the pairs to fit a scorer on cannot be read, or decide nothing.
        ModelError: a model cannot be loaded.
        GuideError: a guide cannot be loaded.
    """
    name, colon, argument = spec.strip().partition(":")
    entry = _ENTRIES.get(name)
    if entry is None:
        raise ConfigError(f"There is no scorer {name!r}.{did_you_mean(name, _ENTRIES)}")
    known, make = entry
    if argument and not known.takes:
        raise ConfigError(f"The scorer {name!r} takes nothing after a colon, got {argument!r}.")
    if known.takes and not argument and (not known.optional or colon):
        raise ConfigError(f"The scorer {name!r} needs {known.takes}: write {known.usage}.")
    return make(argument, _Context(device, str(base) if isinstance(base, Path) else base))


def known_scorers() -> list[Known]:
    """Return every scorer that the registry can make, in the order they are listed."""
    return [known for known, _ in _ENTRIES.values()]


def _length(argument: str, context: _Context) -> Scorer:
    return LengthScorer(**_tokens(argument))


def _concise(argument: str, context: _Context) -> Scorer:
    return ConcisenessScorer(**_tokens(argument))


def _tokens(model: str) -> dict[str, Any]:
    if not model:
        return {}
    from trimtab.models import load_tokenizer

    return {"tokenizer": load_tokenizer(model), "tokenizer_name": model}


def _fluency(argument: str, context: _Context) -> Scorer:
    from trimtab.engine import load
    from trimtab.evaluation.scorers.likelihood import FluencyScorer

    model = argument or context.base
    if model is None:
        raise ConfigError("The scorer 'fluency' needs a model to read with: write fluency:MODEL.")
    engine = load(model, device=context.device, dtype=scoring_dtype(context.device))
    return FluencyScorer(engine, engine.base.id, is_base=not argument)


def _implicit(argument: str, context: _Context) -> Scorer:
    from trimtab.engine import load
    from trimtab.evaluation.scorers.likelihood import ImplicitScorer
    from trimtab.rewards.manifest import read_manifest

    path, objective = _parted(argument)
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    facts = GuideFacts.of(folder)
    if objective and objective not in manifest.objective_names:
        raise ConfigError(
            f"The guide {path!r} has no objective {objective!r}.{did_you_mean(objective, manifest.objective_names)}"
        )
    alone = bool(objective) and len(manifest.objective_names) > 1
    return ImplicitScorer(
        load(
            manifest.base.id,
            [folder],
            revision=manifest.base.revision,
            device=context.device,
            dtype=scoring_dtype(context.device),
        ),
        objective or "+".join(manifest.objective_names),
        facts.fingerprint,
        path,
        fitted_on=(manifest.data.sha256,) if manifest.data else (),
        fitted_on_pairs=facts.pairs,
        labelled_by=manifest.data.labelled_by if manifest.data else None,
        licence=manifest.license or "",
        weights={objective: 1.0} if alone else {},
    )


def _reward(argument: str, context: _Context) -> Scorer:
    from trimtab.evaluation.scorers.reward import load_reward

    return load_reward(argument, device=context.device)


def _words(argument: str, context: _Context) -> Scorer:
    return _fitted(argument, "words", BagOfWordsScorer.fit)


def _encoder(argument: str, context: _Context) -> Scorer:
    encode = _remembered(default_encoder())

    def fit(comparisons: Sequence[Comparison], objective: str) -> EncoderScorer:
        return EncoderScorer.fit(comparisons, objective, encode=encode)

    return _fitted(argument, "encoder", fit)


def _remembered(encode: Any) -> Any:
    """Return the encoder with a memory: five folds read the same texts again and again."""
    known: dict[str, Any] = {}

    def remembering(texts: Sequence[str]) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, encode(new), strict=True))
        return np.array([known[text] for text in texts])

    return remembering


def _fitted(argument: str, name: str, fit: Callable[[Sequence[Comparison], str], Any]) -> Scorer:
    """Fit a scorer on a file's pairs, with its accuracy on pairs left out in turn."""
    from trimtab.preferences import read_comparisons
    from trimtab.rewards.encoding import choose_objective

    path, objective = _parted(argument)
    read = read_comparisons(path, objective=objective or None)
    chosen = choose_objective(read.comparisons, objective or None, source=path)
    rows = [c for c in read.comparisons if c.oriented(chosen) is not None]
    scorer = fit(rows, chosen)
    accuracy, folds = _cross_validated(rows, chosen, fit)
    measured = "" if accuracy is None else f"{folds}-fold cross-validation over the prompts of {len(rows)} pairs"
    return replace(
        scorer,
        origin=replace(
            scorer.about,
            name=f"{name}:{path}@{chosen}",
            fitted_on=(read.sha256,),
            fitted_on_pairs=pair_hashes(rows),
            accuracy=accuracy,
            accuracy_on=measured,
        ),
    )


def _cross_validated(
    rows: Sequence[Comparison], objective: str, fit: Callable[[Sequence[Comparison], str], Any]
) -> tuple[float | None, int]:
    """Return the accuracy on left-out pairs, equal prompts left out together, and the number of folds."""
    prompts = sorted({prompt_key(row) for row in rows})
    folds = min(_FOLDS, len(prompts) // 2)
    if folds < 2:
        return None, 0
    order = np.random.default_rng(0).permutation(len(prompts))
    fold_of = {prompts[i]: rank % folds for rank, i in enumerate(order)}
    right = 0.0
    for fold in range(folds):
        tested = [row for row in rows if fold_of[prompt_key(row)] == fold]
        fitted = fit([row for row in rows if fold_of[prompt_key(row)] != fold], objective)
        right += len(tested) * pair_accuracy(fitted, tested, objective)
    return right / len(rows), folds


def _parted(argument: str) -> tuple[str, str]:
    """Part ``PATH@OBJECTIVE``; the objective may be left out."""
    path, at, objective = argument.rpartition("@")
    return (path, objective.strip()) if at else (argument, "")


def _distinct(n: int) -> tuple[Known, _Make]:
    return Known(f"distinct-{n}", "", False, DistinctScorer(n).about), lambda argument, context: DistinctScorer(n)


def _plain(about: About, make: Callable[[], Scorer]) -> tuple[Known, _Make]:
    return Known(about.name, "", False, about), lambda argument, context: make()


def _taking(name: str, takes: str, about: About, make: _Make, *, optional: bool = False) -> tuple[Known, _Make]:
    return Known(name, takes, optional, replace(about, name=name)), make


_PAIRS = "PAIRS.jsonl@OBJECTIVE"
_TABLE: tuple[tuple[Known, _Make], ...] = (
    _taking("length", "MODEL", LengthScorer().about, _length, optional=True),
    _taking("concise", "MODEL", ConcisenessScorer().about, _concise, optional=True),
    _distinct(1),
    _distinct(2),
    _distinct(3),
    _plain(RepetitionScorer().about, RepetitionScorer),
    _plain(SentimentScorer().about, SentimentScorer),
    _plain(ToxicityScorer().about, ToxicityScorer),
    _plain(RefusalScorer("refusal").about, lambda: RefusalScorer("refusal")),
    _plain(
        RefusalScorer("compliance", wants_refusal=False).about,
        lambda: RefusalScorer("compliance", wants_refusal=False),
    ),
    _taking(
        "fluency",
        "MODEL",
        About(
            "fluency",
            "mean log-probability of the answer's tokens under MODEL, which nothing guides; default: the base",
            high=0.0,
            unit="nats a token",
            licence="the model's",
        ),
        _fluency,
        optional=True,
    ),
    _taking(
        "reward",
        "MODEL",
        About("reward", "the reward of a scalar reward model: ours, or any sequence classifier", licence="the model's"),
        _reward,
    ),
    _taking(
        "implicit",
        "GUIDE",
        About("reward", "log π_r − log π_ref of the answer, π_ref the guide's base", licence="the guide's"),
        _implicit,
    ),
    _taking(
        "words", _PAIRS, About("OBJECTIVE", "Bradley–Terry over words and word pairs, fitted on PAIRS"), _words
    ),
    _taking(
        "encoder", _PAIRS, About("OBJECTIVE", "Bradley–Terry on a frozen sentence encoder, fitted on PAIRS"), _encoder
    ),
)  # fmt: skip
_ENTRIES: dict[str, tuple[Known, _Make]] = {known.name: (known, make) for known, make in _TABLE}
