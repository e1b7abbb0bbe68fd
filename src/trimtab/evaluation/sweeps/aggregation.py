"""From scored answers to ``metrics.json``: every number of the report, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import ConfigError, did_you_mean
from trimtab.evaluation.fronts import default_reference, pareto_mask, summarise_fronts
from trimtab.evaluation.sweeps.config import SweepConfig
from trimtab.evaluation.sweeps.scoring import Column
from trimtab.evaluation.sweeps.settings import Setting
from trimtab.evaluation.sweeps.statistics import (
    Answers,
    Array,
    interval,
    like_length,
    ratio_interval,
    resample_weights,
    spearman,
)
from trimtab.evaluation.sweeps.verdicts import adjust_p, against, at_equal_kl, verdict

SCHEMA = "trimtab-evaluation"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Table:
    """What is aggregated.

    Attributes:
        settings: the base first, controls last.
        answers: setting → its answers.
        columns: the scorers.
    """

    settings: Sequence[Setting]
    answers: Mapping[str, Answers]
    columns: Sequence[Column]

    @property
    def base(self) -> Setting:
        """The base."""
        return self.settings[0]

    def controls_of(self, name: str) -> dict[str, Setting]:
        """Return role → control of a setting."""
        return {role.kind: s for s in self.settings for role in s.roles if role.of == name}

    def base_curve(self, system: str | None) -> list[Setting]:
        """Return the base and its temperature controls, by KL."""
        curve = [s for s in self.settings if not s.weights and s.kind in ("base", "control") and s.system == system]
        return sorted(curve, key=lambda s: self.answers[s.name].mean_kl())


def aggregate(table: Table, config: SweepConfig, objectives: Sequence[str]) -> dict[str, Any]:
    """Return the part of ``metrics.json`` that follows from answers and scores.

    Args:
        table: settings, answers and scorers.
        config: of the run; what measures an objective, and the reference point.
        objectives: of the guides.
    """
    prompts = len(table.answers[table.base.name].records)
    weights = resample_weights(prompts, config.number % 2**32)
    settings = [_setting(table, setting, weights) for setting in table.settings]
    comparisons = [
        row for s in table.settings if s.kind in ("guided", "method") for row in _comparisons(table, s, weights)
    ]
    adjust_p(comparisons)
    fronts, notes = _fronts(table, config, objectives)
    return {
        "settings": settings,
        "comparisons": comparisons,
        "verdicts": _verdicts(table, comparisons),
        "length": {column.spec: _length(table, column) for column in table.columns},
        "fronts": fronts,
        "reward_kl_front": _reward_kl(table),
        "notes": notes,
    }


def _setting(table: Table, setting: Setting, weights: Array) -> dict[str, Any]:
    own = table.answers[setting.name]
    tokens = own.tokens.sum(1)
    found: dict[str, Any] = {
        **setting.to_dict(),
        "label": setting.label,
        "controls": {role: control.name for role, control in table.controls_of(setting.name).items()},
        "answers": int(own.tokens.size),
        "scores": {c.spec: interval(own.scores(c.spec).mean(1), weights) for c in table.columns},
        "kl": ratio_interval((own.kl * own.tokens).sum(1), tokens, weights),
        "kl_answer": interval((own.kl * own.tokens).mean(1), weights),
        "kl_estimator": own.records[0][0]["diagnostics"]["kl_estimator"],
        "top_changed": ratio_interval((own.diagnostic("top_changed") * own.tokens).sum(1), tokens, weights),
        "fluency": ratio_interval(own.diagnostic("base_logprob").sum(1), tokens, weights),
        "tokens": interval(own.tokens.mean(1), weights),
        "words": interval(
            np.array([[len(r["response"].split()) for r in row] for row in own.records]).mean(1), weights
        ),
        "stopped": own.stopped(),
    }
    return found


def _comparisons(table: Table, setting: Setting, weights: Array) -> list[dict[str, Any]]:
    """Compare a setting with the base and with its controls, on every scorer."""
    own = table.answers[setting.name]
    others = {"base": table.base, **table.controls_of(setting.name)}
    rows: list[dict[str, Any]] = []
    for column in table.columns:
        scores = own.scores(column.spec)
        for role, other in others.items():
            theirs = table.answers[other.name]
            pair = (scores, theirs.scores(column.spec))
            rows.append(
                {
                    "setting": setting.name,
                    "against": other.name,
                    "role": role,
                    "scorer": column.spec,
                    **against(pair, (own.tokens, theirs.tokens), weights),
                    "like_length": like_length(own, theirs, pair),
                }
            )
        curve = table.base_curve(setting.system)
        if len(curve) > 1 and setting.weights:
            points = [(table.answers[s.name].mean_kl(), table.answers[s.name].scores(column.spec)) for s in curve]
            rows.append(
                {
                    "setting": setting.name,
                    "against": "base at equal KL",
                    "role": "equal_kl",
                    "scorer": column.spec,
                    **at_equal_kl(own.mean_kl(), scores, points, weights),
                }
            )
    return rows


def _verdicts(table: Table, comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say of every setting and scorer what its comparisons come to."""
    found: list[dict[str, Any]] = []
    for setting in table.settings:
        if setting.kind not in ("guided", "method"):
            continue
        for column in table.columns:
            rows = {
                row["role"]: row for row in comparisons
                if row["setting"] == setting.name and row["scorer"] == column.spec
            }  # fmt: skip
            word, why = verdict(rows, dependent=column.dependent is not None or setting.scorer == column.spec)
            found.append({"setting": setting.name, "scorer": column.spec, "verdict": word, "why": why})
    return found


def _length(table: Table, column: Column) -> dict[str, Any]:
    """Return how far a scorer's numbers follow the length: over all answers, and within the base's."""
    everything = [(table.answers[s.name].tokens, table.answers[s.name].scores(column.spec)) for s in table.settings]
    tokens, scores = (np.concatenate([pair[i] for pair in everything]) for i in (0, 1))
    return {"spearman": spearman(tokens, scores), "spearman_base": spearman(*everything[0])}


def _reward_kl(table: Table) -> dict[str, Any]:
    """Return, for each scorer, which settings are on the front of reward against KL."""
    names = [setting.name for setting in table.settings]
    kl = np.array([table.answers[name].mean_kl() for name in names])
    found: dict[str, Any] = {}
    for column in table.columns:
        reward = np.array([table.answers[name].scores(column.spec).mean() for name in names])
        mask = pareto_mask(np.stack([reward, -kl], axis=1))
        found[column.spec] = [name for name, kept in zip(names, mask, strict=True) if kept]
    return found


def measured_by(config: SweepConfig, columns: Sequence[Column], objectives: Sequence[str]) -> dict[str, str]:
    """Return objective → scorer, as ``front`` says or by the scorers' own objectives.

    Raises:
        ConfigError: ``front`` names an unknown objective or a scorer that is not asked for.
    """
    specs = [column.spec for column in columns]
    for objective, spec in config.front.items():
        if objective not in objectives:
            raise ConfigError(
                f"front: the guides have no objective {objective!r}.{did_you_mean(objective, objectives)}"
            )
        if spec not in specs:
            raise ConfigError(f"front: {spec!r} is not among the scorers.{did_you_mean(spec, specs)}")
    for objective in config.reference:
        if objective not in objectives:
            raise ConfigError(
                f"reference: the guides have no objective {objective!r}.{did_you_mean(objective, objectives)}"
            )
    by_objective = {column.scorer.about.objective: column.spec for column in reversed(columns)}
    return {o: config.front.get(o) or by_objective[o] for o in objectives if o in config.front or o in by_objective}


def _fronts(table: Table, config: SweepConfig, objectives: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return hypervolume, MIP and friends of every family that covers one and the same grid."""
    families: dict[str, list[Setting]] = {}
    for setting in table.settings:
        if setting.alpha is not None:
            families.setdefault(setting.family, []).append(setting)
    if not families:
        return None, []
    measures = measured_by(config, table.columns, objectives)
    names = list(next(iter(families.values()))[0].alpha or {})
    unmeasured = [name for name in names if name not in measures]
    if unmeasured or len(names) not in (2, 3):
        return None, [
            f"No hypervolume: {', '.join(map(repr, unmeasured))} has no scorer (--front OBJECTIVE=SCORER)."
            if unmeasured
            else f"No hypervolume: it is exact for 2 or 3 objectives, and the grid has {len(names)}."
        ]
    families = {f"{name}, strength {s:g}" if len(_strengths(rows)) > 1 else name: [r for r in rows if r.strength == s]
                for name, rows in families.items() for s in _strengths(rows)}  # fmt: skip
    first = next(iter(families))
    grid = np.array([[(s.alpha or {})[n] for n in names] for s in families[first]])
    same = {
        name: rows for name, rows in families.items()
        if [dict(s.alpha or {}) for s in rows] == [dict(s.alpha or {}) for s in families[first]]
    }  # fmt: skip
    notes = [f"{name!r} covers another grid than {first!r}: its front is drawn, not summed up."
             for name in families if name not in same]  # fmt: skip
    rewards = {
        name: np.stack([np.stack([table.answers[s.name].scores(measures[n]).mean(1) for n in names], -1) for s in rows])
        for name, rows in same.items()
    }
    found = default_reference([cube.mean(1) for cube in rewards.values()])
    reference = np.array([config.reference.get(name, float(found[i])) for i, name in enumerate(names)])
    summaries = summarise_fronts(grid, rewards, reference=reference, resamples=1000, seed=config.number % 2**32)
    return {
        "objectives": names,
        "measured_by": {name: measures[name] for name in names},
        "reference": dict(zip(names, reference.tolist(), strict=True)),
        "families": {
            name: {
                "settings": [s.name for s in same[name]],
                "points": summary.front.tolist(),
                "pareto": pareto_mask(summary.front).tolist(),
                "hypervolume": vars(summary.hypervolume),
                "mip": vars(summary.mip),
                "mip_rescaled": vars(summary.mip_rescaled),
                "spread": dict(zip(names, summary.spread.tolist(), strict=True)),
                "monotonicity": {n: _number(v) for n, v in zip(names, summary.monotonicity.tolist(), strict=True)},
            }
            for name, summary in summaries.items()
        },
    }, notes


def _strengths(rows: Sequence[Setting]) -> list[float]:
    return list(dict.fromkeys(setting.strength for setting in rows))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
