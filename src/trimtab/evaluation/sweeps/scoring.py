"""Scoring the answers, by scorers that may judge these guides; and the picks of best-of-n methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ConfigError, NumericalError
from trimtab.evaluation.scorers.common import Scorer, notices_of
from trimtab.evaluation.scorers.independence import dependence
from trimtab.evaluation.scorers.registry import make_scorer
from trimtab.evaluation.sweeps.store import Record
from trimtab.models import Base

_PIECE = 64


@dataclass(frozen=True)
class Column:
    """A scorer of the run.

    Attributes:
        spec: how it was asked for; the name of its column.
        scorer: what scores.
        dependent: why it is not independent of the guides, if it was forced; else ``None``.
    """

    spec: str
    scorer: Scorer = field(repr=False)
    dependent: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what the metrics say of it."""
        about = self.scorer.about.to_dict()
        return {"spec": self.spec, **about, "dependent": self.dependent, "notices": list(notices_of(self.scorer))}


def make_columns(
    specs: Sequence[str],
    guides: Sequence[Path],
    *,
    base: Base | str | None = None,
    device: str = "auto",
    force: bool = False,
) -> list[Column]:
    """Make the scorers, and refuse those that may not judge these guides.

    Args:
        specs: as :func:`~trimtab.evaluation.scorers.registry.make_scorer` takes them.
        guides: folders of the guides that are judged.
        base: what ``fluency`` reads with by default.
        device: for scorers that are models.
        force: score with dependent scorers too; their columns say so.

    Raises:
        ConfigError: a scorer that is unknown, or not independent of a guide and not forced.
    """
    columns: list[Column] = []
    for spec in specs:
        scorer = make_scorer(spec, device=device, base=base)
        reason = dependence(scorer, list(guides))
        columns.append(Column(spec, scorer, reason))
    refused = [column for column in columns if column.dependent is not None]
    if refused and not force:  # all of them at once: each try loads the models again
        others = [column.spec for column in columns if column.dependent is None]
        left = f"run with --scorers {','.join(others)}" if others else "name other scorers (--list-scorers)"
        raise ConfigError(
            f"{' '.join(str(column.dependent) for column in refused)} To judge by what is independent, {left}; to see "
            "these scores all the same, add --force, which marks them in the report."
        )
    return columns


def add_scores(
    records: Sequence[Record], columns: Sequence[Column], *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Put every column's score into every record, ``record["scores"]``.

    Answers that several settings share are scored once.

    Raises:
        NumericalError: a scorer gave NaN or infinity.
    """
    shared: dict[str, list[Record]] = {}
    for record in records:
        shared.setdefault(record["key"], []).append(record)
    groups = list(shared.values())
    for record in records:
        record["scores"] = {}
    for i, column in enumerate(columns):
        for start in range(0, len(groups), _PIECE):
            piece = groups[start : start + _PIECE]
            values = column.scorer.score([g[0]["response"] for g in piece], [g[0]["prompt"] for g in piece])
            for group, value in zip(piece, np.asarray(values, dtype=np.float64).tolist(), strict=True):
                if not np.isfinite(value):
                    raise NumericalError(
                        f"The scorer {column.spec!r} gave {value} for the answer to prompt {group[0]['id']!r} in "
                        f"{group[0]['setting']!r}: leave it out, or mend it."
                    )
                for record in group:
                    record["scores"][column.spec] = value
            if progress:
                progress(i * len(groups) + start + len(piece), len(columns) * len(groups))


def pick_best(candidates: Sequence[Record], scorer: Scorer, best_of: int, setting: str) -> list[Record]:
    """Return, for each prompt and sample, the candidate that a scorer likes best; of equals the first.

    Its KL is best-of-n's bound log n − (n − 1)/n (arXiv 2401.01879), over the answer's tokens.

    Args:
        candidates: answers by prompt, then by number; n · samples a prompt.
        scorer: what picks.
        best_of: n.
        setting: the name of the method.
    """
    scores = np.asarray(scorer.score([c["response"] for c in candidates], [c["prompt"] for c in candidates]))
    bound = float(np.log(best_of) - (best_of - 1) / best_of)
    picked: list[Record] = []
    for start in range(0, len(candidates), best_of):
        group = candidates[start : start + best_of]
        best = group[int(np.argmax(scores[start : start + best_of]))]
        found: Mapping[str, Any] = best["diagnostics"]
        kl = found["kl"] + bound / best["tokens"]
        picked.append(
            {
                **best,
                "setting": setting,
                "sample": group[0]["sample"] // best_of,
                "diagnostics": {**found, "kl": kl, "kl_estimator": "upper bound for best of n"},
                "picked_from": [candidate["key"] for candidate in group],
                "drawn": dict(found),
            }
        )
    return picked
