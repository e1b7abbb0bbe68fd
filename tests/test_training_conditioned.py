"""Training one guide for several objectives: draws, packed preferences, whole runs on tiny models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from conditioned import METHODS, adapted, config_of
from training_runs import few_steps
from trimtab.errors import ConfigError, DataError
from trimtab.models import load_base
from trimtab.preferences import Comparison, Label, read_comparisons
from trimtab.rewards import load_guide_model, read_manifest
from trimtab.rewards.conditioned import condition_input, preference
from trimtab.rewards.encoding import EncodedPair, PairEncoder, prepare_pairs
from trimtab.rewards.held_out import rank_guide
from trimtab.rewards.labelled import LabelledPair, choose_objectives, prepare_labelled
from trimtab.rewards.mixed_ranking import rank_preferences
from trimtab.rewards.scoring import PairScorer
from trimtab.training import TrainConfig, train
from trimtab.training.drawing import at_fixed_preferences, draw_preferences, draw_weights, fixed_preferences

TOKENIZER = tiny.make_tokenizer()
LONG = ["a long and friendly answer with many words", "another answer that goes on and on for long"]
SHORT = ["yes", "no thanks"]


def _write(path: Path, count: int, *, offset: int = 0, **extra: int) -> str:
    """Long answers are 'helpful', short ones 'concise', so the objectives always disagree."""
    with path.open("w") as file:
        for i in range(offset, offset + count):
            pair = [LONG[i % 2] + f" {i % 7}", SHORT[(i // 2) % 2] + f" {i % 5}"]
            first = i % 3 == 0
            row = {
                "id": f"row-{i}",
                "prompt": [{"role": "user", "content": f"question {i} of many"}],
                "chosen": [{"role": "assistant", "content": pair[not first]}],
                "rejected": [{"role": "assistant", "content": pair[first]}],
                "labels": {"helpful": 1 if first else -1, "concise": -1 if first else 1, **extra},
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return _write(tmp_path_factory.mktemp("data") / "train.jsonl", 16)


@pytest.fixture
def options(data, llama_folder, tmp_path):
    return few_steps(data, llama_folder, tmp_path / "guide")


PAIRS = [
    EncodedPair([3, 4, 5, 6], [7, 8, 9, 2], [10, 2]),
    EncodedPair([3, 4, 11], [12, 13, 14], [12, 13, 15, 16, 2]),
    EncodedPair([3, 4, 5, 17], [7, 2], [18, 19, 20, 21, 2]),
    EncodedPair([3, 22], [5, 2], [6, 2]),
]
ALPHAS = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("branched", [True, False])
def test_packed_pairs_are_read_under_their_own_preferences(method, branched):
    model = adapted(tiny.make_llama(), config_of(method, TOKENIZER))
    with torch.no_grad(), preference(model, ALPHAS[0]):
        scorer = PairScorer(model, max_length=32, share_prompt=branched)
    assert scorer.branched is branched
    batch = scorer.layout(PAIRS, share_root=False)
    assert not branched or batch["input_ids"].shape[0] < len(PAIRS), "nothing is packed, so nothing is tested"
    with torch.no_grad(), preference(model, ALPHAS, index=batch["pair_of"]):
        together = torch.stack(scorer(model, batch))
    for i, pair in enumerate(PAIRS):
        with torch.no_grad(), preference(model, ALPHAS[i]):
            alone = torch.stack(scorer(model, scorer.layout([pair])))
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-4, rtol=1e-5)


def test_index_that_does_not_fit_is_refused():
    model = adapted(tiny.make_llama(), config_of("pblora", TOKENIZER))
    ids = torch.arange(3, 9)[None]
    with pytest.raises(Exception, match="does not say which"), preference(model, ALPHAS[0], index=ids):
        pass
    index = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(Exception, match="per-token preference"), preference(model, ALPHAS, index=index):
        model(input_ids=ids)


def _config(**options) -> TrainConfig:
    return TrainConfig(data=["x"], output_dir="y", **{"method": "uniarm", **options})


def test_a_draw_depends_on_seed_epoch_and_pair_only():
    config = _config()
    together = draw_preferences(config, 3, [5, 9, 2], 1)
    assert torch.equal(together[1:2], draw_preferences(config, 3, [9], 1))
    assert not torch.equal(together[1:2], draw_preferences(config, 3, [9], 2))
    assert not torch.equal(together[1:2], draw_preferences(_config(seed=7), 3, [9], 1))
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    assert len({tuple(row) for row in together.tolist()}) == 3


def test_one_draw_a_batch_for_parm():
    drawn = draw_preferences(_config(method="parm"), 2, [4, 1, 3], 0)
    assert torch.equal(drawn, drawn[:1].expand(3, 2))
    assert torch.equal(drawn, draw_preferences(_config(method="parm"), 2, [4, 2, 9], 0))
    assert not torch.equal(drawn, draw_preferences(_config(method="parm", alpha_per="example"), 2, [4, 1, 3], 0))


def test_draws_follow_the_dirichlet_distribution():
    """Dirichlet(c, c): mean ½, variance 1/(4·(2c + 1)) = 1/8 for c = 0.5."""
    drawn = draw_preferences(_config(), 2, range(4000), 0)[:, 0]
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.var()) == pytest.approx(0.125, abs=0.01)


def test_weights_are_fixed_or_log_uniform():
    assert draw_weights(_config(loss="decode-aware", weight=1.5), [1, 2], 0).tolist() == [1.5, 1.5]
    config = _config(loss="decode-aware", decode_weights="drawn", decode_weight_range=[0.25, 4.0])
    drawn = draw_weights(config, range(2000), 0)
    assert 0.25 <= float(drawn.min()) < 0.3
    assert 3.5 < float(drawn.max()) <= 4.0
    assert float(drawn.log().mean()) == pytest.approx(0.0, abs=0.06)


def test_evaluation_is_at_fixed_preferences():
    assert fixed_preferences(1) == [(1.0,)]
    assert fixed_preferences(2) == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    both = LabelledPair(PAIRS[0], (1.0, -1.0), 0)
    second = LabelledPair(PAIRS[1], (0.0, 1.0), 1)
    made = at_fixed_preferences([both, second], 2)
    assert Counter(item.alpha for item in made) == {(1.0, 0.0): 1, (0.0, 1.0): 2, (0.5, 0.5): 2}


def _comparison(labels, strengths=None, answer="yes") -> Comparison:
    turns = [{"role": "assistant", "content": answer}], [{"role": "assistant", "content": "no"}]
    named = {name: Label(label) for name, label in labels.items()}
    return Comparison([{"role": "user", "content": "well"}], *turns, named, strengths or {})


def test_pairs_with_their_labels():
    encoder = PairEncoder(TOKENIZER, max_length=64, max_prompt_length=32)
    rows = [
        _comparison({"helpful": 1, "concise": -1}),
        _comparison({"helpful": -1}),
        _comparison({"concise": 0}),
        _comparison({"concise": 1, "helpful": 1}, answer="no"),
        _comparison({"other": 1}),
    ]
    made = prepare_labelled(rows, ["helpful", "concise"], encoder)
    assert [item.strengths[0] for item in made.pairs] == [1.0, -1.0]
    assert made.pairs[0].strengths[1] == -1.0
    assert made.pairs[1].strengths[1] != made.pairs[1].strengths[1]
    assert (made.judged, made.ties, made.conflicting, made.undecided, made.equal) == ((2, 1), (0, 0), 1, 2, 1)
    assert made.summary == (
        "2 of 5 pairs; decided by objective: helpful 2, concise 1; objectives disagree in 1 "
        "(left out: 2 decided by none, 1 with equal answers)"
    )
    assert len(prepare_labelled(rows, ["helpful", "concise"], encoder, ties="half").pairs) == 3


def test_strengths_are_in_units_of_their_mean():
    """Gaps 2 and 6 have the mean 4: 0.5 and 1.5; an objective without a gap in each row counts ±1."""
    encoder = PairEncoder(TOKENIZER, max_length=64, max_prompt_length=32)
    rows = [
        _comparison({"helpful": 1, "concise": -1}, {"helpful": 2, "concise": 9}),
        _comparison({"helpful": -1, "concise": 1}, {"helpful": 6}),
    ]
    made = prepare_labelled(rows, ["helpful", "concise"], encoder)
    assert [item.strengths for item in made.pairs] == [(0.5, -1.0), (-1.5, 1.0)]


def test_objectives_are_chosen_by_name_or_all():
    rows = [_comparison({"helpful": 1, "concise": -1}), _comparison({"harmless": 1})]
    assert choose_objectives(rows, [], source="f") == ("helpful", "concise", "harmless")
    assert choose_objectives(rows, ["harmless", "helpful"], source="f") == ("harmless", "helpful")
    with pytest.raises(DataError, match=r"no labels for 'helpfull'.*Did you mean 'helpful'"):
        choose_objectives(rows, ["helpfull"], source="f")
    with pytest.raises(DataError, match="at least two"):
        choose_objectives(rows, ["helpful"], source="f")


RUNS = {
    "parm": {"method": "parm", "per_device_train_batch_size": 4},
    "uniarm-text": {"method": "uniarm", "condition": "text"},
    "uniarm": {"method": "uniarm", "lora": {"condition_scale": 5.0}},
}


@pytest.mark.parametrize("name", RUNS)
def test_one_guide_learns_objectives_that_disagree(name, options, tmp_path):
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    said: list[str] = []
    own = {"data": [_write(tmp_path / "train.jsonl", 32)], "per_device_train_batch_size": 8, "learning_rate": 3e-2}
    result = train(
        **{**options, **own, **RUNS[name]}, eval_data=[held_out], objectives=["helpful", "concise"],
        num_train_epochs=35, eval_strategy="steps", eval_steps=280 if name == "parm" else 140, notify=said.append,
    )  # fmt: skip
    assert result.objectives == ("helpful", "concise")
    assert sum(report.untrained.value for report in result.reports.values()) == pytest.approx(1.0)
    found = {name: report.guide.value for name, report in result.reports.items()}
    assert sum(found.values()) >= 1.5, "labels always disagree, so a guide that ignores α gets 1 in sum"
    manifest = read_manifest(result.output_dir)
    assert manifest.adapter == {"parm": "pblora"}.get(name, "moslora")
    assert manifest.objective_names == ("helpful", "concise")
    assert [o.description for o in manifest.objectives] == ["The answer is helpful.", "The answer is concise."]
    assert set(manifest.metrics["held_out"]) == {"helpful", "concise"}
    assert "objectives disagree in 32" in " ".join(said)
    last = [entry for entry in result.history if "eval_loss" in entry][-1]
    assert {name: last[f"eval_rewards/accuracies/{name}"] for name in found} == pytest.approx(found)
    logged = next(entry for entry in result.history if "loss" in entry)
    assert {"rewards/accuracies", "rewards/margins", "rewards/accuracies/helpful"} <= logged.keys()
    assert "rewards/chosen" not in logged
    card = (result.output_dir / "README.md").read_text()
    assert "concise" in card
    _check_loaded(result.output_dir, held_out, options["base"], found)


def _check_loaded(folder, held_out, base_folder, found):
    """The folder alone gives the same rankings."""
    base = load_base(base_folder, dtype="float32")
    encoder = PairEncoder(base.tokenizer, max_length=96, max_prompt_length=64)
    rows = read_comparisons(held_out).comparisons
    model = load_guide_model(folder, base)
    pairs = [encoder.encode(c.prompt, c.response_a, c.response_b) for c in rows]
    for i, objective in enumerate(("helpful", "concise")):
        alpha = torch.eye(2)[i]
        with torch.no_grad(), preference(model, alpha):
            scorer = PairScorer(model, max_length=96)
            a, b = scorer(model, scorer.layout(pairs))
        right = [bool(m > 0) == (row.labels[objective] > 0) for m, row in zip(a - b, rows, strict=True)]
        assert sum(right) / len(right) == pytest.approx(found[objective])


def test_first_loss_by_the_formula(options):
    """Before the first update the guide is the base at any α: Σ_i α_i·log(1 + exp(∓m)) with the α's that are drawn."""
    result = train(**options, method="uniarm", beta=0.1, max_steps=1, num_train_epochs=1, global_loss_weight=0.0)
    first = next(entry["loss"] for entry in result.history if "loss" in entry)
    base = load_base(options["base"], dtype="float32")
    encoder = PairEncoder(base.tokenizer, max_length=96, max_prompt_length=64)
    rows = read_comparisons(options["data"][0]).comparisons
    pairs = [encoder.encode(c.prompt, c.response_a, c.response_b) for c in rows]
    scorer = PairScorer(base.model, max_length=96)
    with torch.no_grad():
        a, b = scorer(base.model, scorer.layout(pairs))
    config = TrainConfig(**{**options, "method": "uniarm"})
    order = _order_of_first_batch(options)
    alpha = draw_preferences(config, 2, order, 0)
    labels = torch.tensor([[float(rows[i].labels[o]) for o in ("helpful", "concise")] for i in order])
    margin = 0.1 * (a - b)[torch.tensor(order)]
    expected = (alpha * -torch.nn.functional.logsigmoid(labels * margin[:, None])).sum(1).mean()
    assert first == pytest.approx(float(expected), abs=1e-4)


def _order_of_first_batch(options) -> list[int]:
    """Trainer's sampler draws with a seed of its own: take the order from a run that records it."""
    from trimtab.training import trainer as module

    seen: list[list[int]] = []
    drawn = module.GuideTrainer._drawn

    def spy(self, batch):
        seen.append(batch["number"].tolist())
        return drawn(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.GuideTrainer, "_drawn", spy)
        train(**{**options, "output_dir": options["output_dir"] + "-order"}, method="uniarm", max_steps=1)
    return seen[0]


def test_resuming_gives_the_same_guide(options, tmp_path):
    common = {**options, "method": "uniarm", "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = train(**{**common, "output_dir": str(tmp_path / "whole")})
    train(**{**common, "output_dir": str(tmp_path / "parts")})
    parts = tmp_path / "parts"
    for path in (parts / "checkpoints").glob("checkpoint-6"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    resumed = train(**{**common, "output_dir": str(parts), "resume_from_checkpoint": "last"})
    first = load_file(whole.output_dir / "adapter_model.safetensors")
    second = load_file(resumed.output_dir / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key])


def test_gradient_checkpointing_gives_the_same_guide(options, tmp_path):
    common = {**options, "method": "uniarm", "max_steps": 2}
    results = [
        train(**{**common, "output_dir": str(tmp_path / str(on)), "gradient_checkpointing": on}) for on in (False, True)
    ]
    first, second = (load_file(r.output_dir / "adapter_model.safetensors") for r in results)
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_bfloat16(name, options):
    result = train(**{**options, **RUNS[name], "bf16": True}, max_steps=2)
    tensors = load_file(result.output_dir / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"objectives": "a,b"}, "objectives belongs to the methods 'parm' and 'uniarm'"),
        ({"condition": "alpha"}, "condition belongs to the methods 'parm' and 'uniarm'"),
        ({"method": "parm", "condition": "alpha"}, "condition belongs to the method 'uniarm'"),
        ({"method": "parm", "global_loss_weight": 0.1}, "global_loss_weight belongs to the method 'uniarm'"),
        ({"method": "parm", "objective": "a"}, "'parm' takes objectives"),
        ({"method": "uniarm", "full_finetune": True}, "trains an adapter"),
        ({"method": "uniarm", "betas": {"a": 0.0}}, "betas must be positive"),
        ({"decode_weights": "drawn"}, "decode_weights belongs to loss 'decode-aware'"),
        ({"loss": "decode-aware", "decode_weights": "conditioned"}, "plain LoRA cannot be told"),
        ({"loss": "decode-aware", "decode_weight_range": [2, 1]}, "the smaller first"),
        ({"loss": "decode-aware", "weight": 0}, "positive weight"),
    ],
)
def test_options_that_do_not_fit_the_method_are_refused(extra, message, options):
    with pytest.raises(ConfigError) as caught:
        train(**{**options, **extra})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"betas": {"helpfull": 0.1}}, "Unknown objective in betas 'helpfull'. Did you mean 'helpful'?"),
        ({"lora": {"rr": 1}}, "Unknown MoSLoRA option 'rr'"),
        ({"method": "parm", "lora_r": 1}, "divides the rank into two parts"),
        ({"objectives": ["helpful", "kind"]}, "no labels for 'kind'"),
    ],
)
def test_mistakes_about_objectives_and_adapters_are_clear(extra, message, options):
    with pytest.raises((ConfigError, DataError)) as caught:
        train(**{**options, "method": "uniarm", **extra})
    assert message in str(caught.value)


def test_objectives_may_be_written_with_commas():
    assert _config(objectives=["helpful, concise", "safe"]).objectives == ["helpful", "concise", "safe"]
    assert _config(objectives="helpful,concise").objectives == ["helpful", "concise"]


DECODED = {
    "genarm": {"method": "genarm", "objective": "helpful"},
    "genarm-drawn": {"method": "genarm", "objective": "helpful", "decode_weights": "drawn"},
    "genarm-full": {"method": "genarm", "objective": "helpful", "full_finetune": True, "learning_rate": 1e-3},
    "parm": {"method": "parm", "decode_weights": "conditioned"},
    "uniarm": {"method": "uniarm", "decode_weights": "conditioned", "weight": 2.0},
    "uniarm-drawn": {"method": "uniarm", "decode_weights": "drawn", "condition": "text"},
}


@pytest.mark.parametrize("name", DECODED)
def test_decode_aware_training(name, options, tmp_path):
    """The loss falls, and a guide that is told its pull says so in its manifest and reads it when it is loaded.

    Held-out pairs are ranked by the reward that was trained, in the run and later from the folder alone.
    """
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    own = {"loss": "decode-aware", "num_train_epochs": 8, "eval_data": [held_out], **DECODED[name]}
    result = train(**{**options, **own})
    rows = read_comparisons(held_out).comparisons
    base = load_base(options["base"], dtype="float32")
    if "objective" in own:
        again, _ = rank_guide(result.output_dir, rows, base=base)
        assert again.mean_margin == pytest.approx(result.report.mean_margin, abs=1e-3)
    else:
        ranked = rank_preferences([result.output_dir], rows, base=base)
        for ranking, report in zip(ranked, result.reports.values(), strict=True):
            assert ranking.report.mean_margin == pytest.approx(report.mean_margin, abs=1e-3)
            assert ranking.report.untrained_margin == pytest.approx(report.untrained_margin, abs=1e-3)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert sum(losses[-4:]) < sum(losses[:4])
    told = DECODED[name].get("decode_weights") == "conditioned"
    manifest = read_manifest(result.output_dir)
    assert manifest.conditions_on_strength is told
    assert manifest.training["loss"] == "decode-aware"
    if told:
        model = load_guide_model(result.output_dir, load_base(options["base"], dtype="float32"))
        ids = torch.tensor([[3, 4, 5, 6]])
        logits = []
        for weight in (1.0, 4.0):
            told_input = condition_input(model.active_peft_config, torch.tensor([0.5, 0.5]), weight)
            with torch.no_grad(), preference(model, told_input):
                logits.append(model(input_ids=ids).logits)
        assert not torch.equal(*logits)


def test_first_decode_aware_loss_by_the_formula(options):
    """Before the first update π_r = π_b, so with w = 2 a token's h is log π − ½·log Σ_v π(v)³: by a naive forward."""
    result = train(**options, method="genarm", objective="helpful", loss="decode-aware", weight=2.0, max_steps=1)
    first = next(entry["loss"] for entry in result.history if "loss" in entry)
    base = load_base(options["base"], dtype="float32")
    encoder = PairEncoder(base.tokenizer, max_length=96, max_prompt_length=64)
    pairs = prepare_pairs(read_comparisons(options["data"][0]).comparisons, "helpful", encoder).pairs

    def reward(prompt, answer):
        with torch.no_grad():
            logp = base.model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        steps = logp[len(prompt) - 1 : -1]
        taken = steps.gather(1, torch.tensor(answer)[:, None]).sum()
        return taken - 0.5 * torch.logsumexp(3 * steps, -1).sum()

    order = _order_of_first_batch(options)
    margins = torch.stack([
        reward(pairs[i].prompt_ids, pairs[i].a_ids) - reward(pairs[i].prompt_ids, pairs[i].b_ids) for i in order
    ])  # fmt: skip
    assert first == pytest.approx(float(torch.nn.functional.softplus(-0.05 * margins).mean()), abs=1e-4)
