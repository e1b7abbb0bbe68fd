"""Training an aligned model: DPO's defaults, its runs on tiny models, and what is ranked by it afterwards."""

from __future__ import annotations

import math

import pytest
import torch

from test_training_conditioned import _write, data, options  # noqa: F401
from trimtab.errors import ConfigError
from trimtab.models import load_base
from trimtab.preferences import read_comparisons
from trimtab.rewards import read_manifest
from trimtab.rewards.held_out import rank_guide
from trimtab.rewards.mixed_ranking import rank_preferences
from trimtab.training import TrainConfig, train
from trimtab.validation import validated


def test_defaults_are_the_papers_unless_given():
    def beta(**given):
        return validated(TrainConfig, {"data": ["x"], "output_dir": "y", **given}).beta

    assert (beta(), beta(method="dpo"), beta(method="dpo", beta=0.3)) == (0.05, 0.1, 0.3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "decode-aware"}, "loss belongs to methods that train a reward"),
        ({"objectives": ["helpful"]}, "objectives belongs to the methods"),
        ({"condition": "alpha"}, "condition belongs to the methods"),
    ],
)
def test_options_of_other_methods_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        validated(TrainConfig, {"data": ["x"], "output_dir": "y", "method": "dpo", **given})


@pytest.mark.parametrize("whole", [False, True])
def test_run(whole, options, tmp_path):  # noqa: F811
    """The first loss is log 2, since the policy is the reference; it falls; ranking from the folder agrees."""
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    own = {"method": "dpo", "objective": "helpful", "num_train_epochs": 8, "eval_data": [held_out]}
    if whole:
        own |= {"full_finetune": True, "learning_rate": 1e-3}
    result = train(**{**options, **own})
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    manifest = read_manifest(result.output_dir)
    assert (manifest.kind, manifest.adapter) == ("policy", "full" if whole else "lora")
    assert (manifest.beta, manifest.weight, manifest.training["method"]) == (0.1, 1.0, "dpo")
    rows = read_comparisons(held_out).comparisons
    base = load_base(options["base"], dtype="float32")
    again, prepared = rank_guide(result.output_dir, rows, base=base)
    assert again.mean_margin == pytest.approx(result.report.mean_margin, abs=1e-3)
    assert again.untrained_margin == pytest.approx(result.report.untrained_margin, abs=1e-3)
    assert again.guide.value == result.report.guide.value == 1.0
    pair = prepared.pairs[0]
    base = load_base(options["base"], dtype="float32")  # the other carries the policy by now
    with torch.no_grad():  # what stands for "untrained" is the base's own log-probability
        ids = [torch.tensor([pair.prompt_ids + answer]) for answer in (pair.a_ids, pair.b_ids)]
        logps = [base.model(input_ids=i).logits[0].log_softmax(-1)[:-1].gather(1, i[0, 1:, None]) for i in ids]
    start = len(pair.prompt_ids) - 1
    margin = float(logps[0][start:].sum() - logps[1][start:].sum())
    one, _ = rank_guide(result.output_dir, rows[:1], base=load_base(options["base"], dtype="float32"))
    assert one.untrained_margin == pytest.approx(0.1 * margin, abs=1e-3)


def test_two_policies_are_ranked_over_preferences(options, tmp_path):  # noqa: F811
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    folders = []
    for name in ("helpful", "concise"):
        own = {"method": "dpo", "objective": name, "num_train_epochs": 6, "output_dir": str(tmp_path / name)}
        folders.append(train(**{**options, **own}).output_dir)
    rows = read_comparisons(held_out).comparisons
    ranked = rank_preferences(folders, rows, base=load_base(options["base"], dtype="float32"))
    ends = [ranking.report for ranking in ranked if max(ranking.preference.values()) == 1]
    assert [report.guide.value for report in ends] == [1.0, 1.0]
