"""The parts of the weak-to-strong study that are arithmetic: splits, shares of the gap, equal KL, verdicts."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest

from trimtab.evaluation.resampling import prompt_weights
from trimtab.preferences import read_comparisons
from trimtab.preferences.splitting import first_user_message
from weak_to_strong import plan
from weak_to_strong.answers import prompts_of
from weak_to_strong.judging import at_equal_kl, gaps, recovered
from weak_to_strong.training import read_pairs
from weak_to_strong.verdicts import CONFIRMED, NOT, verdicts


def _options(tmp_path: Path, *arguments: str):
    parser = ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args(["--work-dir", str(tmp_path), *arguments])


def test_no_prompt_has_two_uses(tmp_path):
    pairs = read_pairs(_options(tmp_path))
    uses = [read_comparisons(path).comparisons for path in (pairs.train, pairs.dev)] + [pairs.scorer, pairs.val]
    prompts = [{first_user_message(row) for row in rows} for rows in uses]
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    tuned = {row.id for row in read_comparisons(pairs.tune).comparisons}
    assert tuned < {row.id for row in uses[0]}


def test_equal_prompts_are_answered_once(tmp_path):
    val = read_pairs(_options(tmp_path)).val
    asked = [json.dumps(prompt.content) for prompt in prompts_of(val + val, 2 * len(val))]
    assert len(asked) == len(set(asked)) == len({json.dumps(list(row.prompt)) for row in val})


def test_large_models_are_trained_from_the_first_seed_only(tmp_path):
    names = [guide.name for guide in plan.guides(_options(tmp_path, "--seeds", "3", "4"))]
    assert names == ["genarm-small-3", "genarm-large-3", "dpo-small-3", "dpo-large-3", "genarm-small-4", "dpo-small-4"]


def test_share_of_the_gap_by_hand():
    base, ceiling = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    draws = prompt_weights(2, 50, 0)
    # Mean gains are 1 and 2; the way gains 0 on one prompt and 2 on the other, so resamples lie between 0 and 1.
    share = recovered(np.array([0.0, 3.0]), base, ceiling, draws)
    assert share == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_seeds_are_averaged_by_prompt():
    rewards = {"base": [0.0, 0.0], "0.5B ARM, w = 1": [1.0, 0.0], "0.5B ARM, seed 1, w = 1": [0.0, 1.0]}
    rewards = {name: np.array(values) for name, values in rewards.items()} | {"1.5B DPO, w = 1": np.array([1.0, 1.0])}
    records = {name: [{"family": name.split(", w")[0]}] for name in rewards}
    found = gaps(records, rewards, prompt_weights(2, 50, 0))["1.5B DPO"]
    assert found["0.5B ARM, w = 1, mean of 2 seeds"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["0.5B ARM, w = 1"]["low"] == 0.0


def test_equal_kl_goes_along_the_curves():
    zero, draws = np.zeros(2), prompt_weights(2, 20, 0)
    ways = [(zero, zero), (zero + 1.0, zero + 2.0)]
    ceilings = [(zero, zero), (zero + 0.25, zero + 1.0), (zero + 0.75, zero + 3.0)]
    found = at_equal_kl(ways, ceilings, 0.5, draws)
    assert found["way"]["mean"] == pytest.approx(1.0)
    assert found["ceiling"]["mean"] == pytest.approx(2.0)
    assert found["share"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert np.isnan(at_equal_kl(ways, ceilings, 0.8, draws)["ceiling"]["mean"])


def _result(low: float, top: float):
    def value(mean: float, below: float) -> dict[str, float]:
        return {"mean": mean, "low": below, "high": mean + 1}

    control = value(1.0, low)
    against = {"base": control, "untrained": control, "equal_kl": control, "kl": 0.5, "kl_of_control": 0.5}
    return {
        "over_controls": {"words": {"0.5B ARM, w = 1": against}},
        "gaps": {"words": {"1.5B ARM": {"0.5B ARM, w = 1": value(0.9, 0.6)}}},
        "settings": {"1.5B ARM, w = 1": {"gain": {"words": value(2.0, top)}}},
        "equal_kl": {"words": {"1.5B ARM": {"0.5B ARM": {"share": value(0.8, 0.55), "level": 0.3}}}},
        "trained": {"genarm-small-0": {"cpu_seconds": 60, "peak_gib": 3}},
        "content_against": {"1.5B ARM": {"mean": -0.2, "low": -0.3, "high": -0.1}},
        "speed": None,
    }


@pytest.mark.parametrize(
    ("low", "top", "steers", "recovers"),
    [
        (0.2, 1.0, CONFIRMED, CONFIRMED),
        (-0.1, 1.0, NOT, CONFIRMED),
        (0.2, -0.5, CONFIRMED, f"{NOT}: the ceiling itself does not gain"),
    ],
)
def test_verdicts_follow_the_intervals(low, top, steers, recovers):
    found = verdicts(json.loads(json.dumps(_result(low, top))))
    assert [row[2] for row in found[:3]] == [steers, recovers, NOT]
