"""Held-out pairs: how often guides, reward models and judges put the chosen answer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objectives.guides import cached
from single.guides import Pairs
from single.plan import DPO, GENARM, REWARD, DataSet
from trimtab.evaluation.scorers import Scorer, make_scorer, pair_accuracy
from trimtab.preferences import Comparison, read_comparisons
from trimtab.preferences.records import response_text
from trimtab.rewards.held_out import rank_guide

LIKE_LENGTH = 0.1


def rank_all(data: DataSet, options: Any, pairs: Pairs, trained: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return method → accuracy of each seed on all held-out pairs and on those of like length; and the controls."""
    rows = read_comparisons(pairs.val).comparisons
    alike = [row for row in rows if like_length(row)]
    out: dict[str, Any] = {"pairs": len(rows), "alike": len(alike)}
    for name in (GENARM, DPO):
        found = [_ranked(Path(folder), rows, pairs, options, work) for folder in trained[name]["folders"]]
        out[name] = {
            "all": [r["guide"]["value"] for r in found],
            "alike": [r["matched_guide"]["value"] if r["matched_guide"] else None for r in found],
            "n_alike": found[0]["matched_guide"]["n"] if found[0]["matched_guide"] else 0,
            "untrained": found[0]["untrained"],
            "length": found[0]["length"],
            "length_rule": found[0]["length_rule"],
            "interval": found[0]["guide"],
        }
    scores = [judged(f"reward:{folder}", data, rows, alike, pairs, work) for folder in trained[REWARD]["folders"]]
    out[REWARD] = {"all": [s["all"] for s in scores], "alike": [s["alike"] for s in scores]}
    return out


def _ranked(folder: Path, rows: Sequence[Comparison], pairs: Pairs, options: Any, work: Path) -> dict[str, Any]:
    path = work / "ranking" / f"{folder.name}-{pairs.val.stem}.json"
    return cached(path, lambda: rank_guide(folder, rows, base=options.base)[0].to_dict())


def judge_accuracy(data: DataSet, judges: Mapping[str, str], pairs: Pairs, work: Path) -> dict[str, Any]:
    """Return judge → how often it is right on held-out pairs, which none of them was fitted on."""
    rows = read_comparisons(pairs.val).comparisons
    alike = [row for row in rows if like_length(row)]
    return {name: judged(spec, data, rows, alike, pairs, work) for name, spec in judges.items()}


def judged(
    spec: str, data: DataSet, rows: Sequence[Comparison], alike: Sequence[Comparison], pairs: Pairs, work: Path
) -> dict[str, Any]:
    """Return a scorer's accuracy on all pairs and on those of like length, with what it says of itself."""

    def make() -> dict[str, Any]:
        scorer: Scorer = make_scorer(spec)
        return {
            "measures": scorer.about.measures,
            "all": pair_accuracy(scorer, rows, data.name),
            "n": len(rows),
            "alike": pair_accuracy(scorer, alike, data.name) if alike else None,
            "n_alike": len(alike),
        }

    name = "".join(c if c.isalnum() else "-" for c in spec.split("/")[0] + Path(spec).name)
    return cached(work / "ranking" / f"{name}-{pairs.val.stem}.json", make)


def like_length(row: Comparison) -> bool:
    """Return whether a pair's answers differ by 10 % of the longer at most, in characters."""
    a, b = len(response_text(row.response_a)), len(response_text(row.response_b))
    return abs(a - b) <= LIKE_LENGTH * max(a, b)


def mean(values: Sequence[float | None]) -> float:
    return float(np.mean([v for v in values if v is not None]))
