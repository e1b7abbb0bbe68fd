"""Whole training runs on tiny models: equivalences, resuming, bad input, what is written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
import trimtab
from training_runs import few_steps
from trimtab.errors import ConfigError, DataError, NumericalError, OutputError
from trimtab.models import load_base
from trimtab.preferences import read_comparisons
from trimtab.rewards import load_guide_model, read_manifest
from trimtab.rewards.encoding import encode_comparison
from trimtab.rewards.held_out import rank_guide
from trimtab.training import TrainConfig, train

SOURCE = {"PYTHONPATH": str(Path(trimtab.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
POLITE = ["please", "thank you", "happy to help", "of course"]
RUDE = ["no", "go away", "figure it out", "whatever"]


def _write(path: Path, count: int, *, flip: bool = False, offset: int = 0) -> str:
    with path.open("w") as file:
        for i in range(offset, offset + count):
            good, bad = POLITE[i % 4] + f" {i % 7}", RUDE[(i * 3 + 1) % 4] + f" {i % 5}"
            row = {
                "id": f"row-{i}",
                "prompt": [{"role": "user", "content": f"question {i} of many"}],
                "chosen": [{"role": "assistant", "content": bad if flip else good}],
                "rejected": [{"role": "assistant", "content": good if flip else bad}],
                "labels": {"polite": 1},
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return _write(tmp_path_factory.mktemp("data") / "train.jsonl", 12)


@pytest.fixture
def options(data, llama_folder, tmp_path):
    return few_steps(data, llama_folder, tmp_path / "guide")


def _weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def _losses(result) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def _assert_same_weights(first, second, **tolerance):
    a, b = _weights(first), _weights(second)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


def test_run_writes_a_guide_a_config_and_metrics(options, tmp_path):
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    result = train(**options, eval_data=[held_out], num_train_epochs=4)
    folder = result.output_dir
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.yaml",
        "guide.json",
        "metrics.jsonl",
    }
    manifest = read_manifest(folder)
    assert manifest.objective_names == ("polite",)
    assert (manifest.beta, manifest.base.architecture) == (0.05, "LlamaForCausalLM")
    assert manifest.eos_token_id == 2
    assert manifest.data is not None
    assert manifest.data.comparisons == 12
    assert result.report is not None
    assert result.report.guide.value == 1.0
    assert manifest.metrics["held_out"]["untrained"]["value"] == result.report.untrained.value
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    wanted = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    assert wanted | {"logps/rejected", "loss", "learning_rate", "grad_norm"} <= lines[0].keys()
    base = load_base(options["base"], dtype="float32")
    again, _ = rank_guide(folder, read_comparisons(held_out, objective="polite").comparisons, base=base)
    assert again.guide == result.report.guide
    assert again.untrained == result.report.untrained
    assert again.mean_margin == pytest.approx(result.report.mean_margin, abs=1e-4)


def test_first_loss_by_the_formula(options, data, llama_folder):
    """Before the first update the guide is the base: the first loss is the mean of −log σ(β·(log π_w − log π_l))."""
    base = load_base(str(llama_folder), dtype="float32")
    rows = read_comparisons(data, objective="polite").comparisons
    losses = []
    for row in rows:
        pair = encode_comparison(row, base.tokenizer, max_length=96, max_prompt_length=64)
        sums = []
        for answer in (pair.a_ids, pair.b_ids):
            logits = base.model(torch.tensor([pair.prompt_ids + answer])).logits[0].log_softmax(-1)
            start = len(pair.prompt_ids) - 1
            sums.append(sum(float(logits[start + i, t]) for i, t in enumerate(answer)))
        losses.append(math.log1p(math.exp(-0.05 * (sums[0] - sums[1]))))
    run = train(**{**options, "per_device_train_batch_size": 12})
    assert _losses(run)[0] == pytest.approx(sum(losses) / 12, rel=1e-4)


def test_accumulation_is_a_larger_batch(options, tmp_path):
    """12 pairs as 4×1, 1×4 and, with a last smaller update, 5 = 3 + 2: micro-batches weigh by their pairs."""
    base = {k: v for k, v in options.items() if k not in ("output_dir", "per_device_train_batch_size")}
    runs = {}
    for size, steps in ((4, 1), (1, 4), (2, 2), (3, 2), (6, 1)):
        runs[size, steps] = train(
            **base,
            output_dir=str(tmp_path / f"{size}x{steps}"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
    for same in ([(4, 1), (1, 4), (2, 2)], [(6, 1), (3, 2)]):
        for other in same[1:]:
            assert _losses(runs[other]) == pytest.approx(_losses(runs[same[0]]), rel=1e-4)
            _assert_same_weights(runs[same[0]].output_dir, runs[other].output_dir, rtol=2e-3, atol=2e-4)


def test_uneven_accumulation_weighs_pairs_equally(options, tmp_path):
    """7 pairs in one update, as 1×7 and as 2+2+2+1."""
    base = {**options, "limit": 7}
    del base["output_dir"], base["per_device_train_batch_size"]
    whole = train(**base, output_dir=str(tmp_path / "a"), per_device_train_batch_size=7)
    parts = train(
        **base, output_dir=str(tmp_path / "b"), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )  # fmt: skip
    assert _losses(parts) == pytest.approx(_losses(whole), rel=1e-5)


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(options, tmp_path):
    """Dropout on, so the random state must be restored too; 6 steps, checkpoint after step 2."""
    base = {**options, "lora_dropout": 0.2, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = train(**{**base, "output_dir": str(tmp_path / "whole")})
    assert len(_losses(whole)) == 6
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        _interrupt_after(3, **{**base, "output_dir": str(folder)})
    assert not (folder / "guide.json").exists()
    resumed = train(**{**base, "output_dir": str(folder)}, resume_from_checkpoint="last")
    _assert_same_weights(tmp_path / "whole", folder, rtol=0, atol=0)
    assert _losses(resumed) == _losses(whole)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4, 5, 6]


def _interrupt_after(step: int, **options):
    from trimtab.training import trainer

    original = trainer.GuideTrainer.training_step
    calls = []

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.GuideTrainer, "training_step", stop)
        train(**options)


def test_two_processes_equal_one(options, tmp_path):
    """12 pairs: two processes with 2 pairs each make the updates that one process with 4 makes."""
    one = train(**options)
    two = {**options, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "two")}
    script = tmp_path / "run.py"
    script.write_text(f"import torch; torch.set_num_threads(1)\nfrom trimtab.training import train\ntrain(**{two!r})\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **SOURCE})
    assert done.returncode == 0, done.stderr[-2000:]
    _assert_same_weights(one.output_dir, tmp_path / "two", rtol=2e-3, atol=2e-4)
    logs = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [x["loss"] for x in logs if "loss" in x] == pytest.approx(_losses(one), rel=1e-4)


def test_flipped_labels_mirror_the_first_margins(options, tmp_path):
    flipped = _write(tmp_path / "flipped.jsonl", 12, flip=True)
    first = train(**options).history[0]
    mirrored = train(**{**options, "data": [flipped], "output_dir": str(tmp_path / "m")}).history[0]
    assert mirrored["rewards/margins"] == pytest.approx(-first["rewards/margins"], abs=1e-4)
    assert mirrored["logps/chosen"] == pytest.approx(first["logps/rejected"], abs=1e-3)
    assert mirrored["rewards/accuracies"] == pytest.approx(1 - first["rewards/accuracies"])


def test_one_pair_is_learned_by_heart(options):
    result = train(**options, limit=1, num_train_epochs=30, loss_type="sigmoid", beta=0.5)
    assert _losses(result)[-1] < 0.01


@pytest.mark.parametrize("kind", ["full", "checkpointing", "separate", "gpt2", "bf16", "hinge"])
def test_other_ways_to_train(kind, options, gpt2_folder):
    extra = {
        "full": {"full_finetune": True, "learning_rate": 1e-3},
        "checkpointing": {"gradient_checkpointing": True},
        "separate": {"share_prompt": False},
        "gpt2": {"base": str(gpt2_folder)},
        "bf16": {"bf16": True},
        "hinge": {"loss_type": "hinge", "margin": 0.1},
    }[kind]
    result = train(**{**options, **extra}, num_train_epochs=6)
    losses = _losses(result)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    base = load_base(extra.get("base", options["base"]), dtype="float32")
    model = load_guide_model(result.output_dir, base)
    assert result.manifest.adapter == ("full" if kind == "full" else "lora")
    assert model is not None


def test_checkpointing_and_separate_rows_change_nothing(options, tmp_path):
    plain = train(**options)
    for name, extra in (("c", {"gradient_checkpointing": True}), ("s", {"share_prompt": False})):
        other = train(**{**options, "output_dir": str(tmp_path / name), **extra})
        assert _losses(other) == pytest.approx(_losses(plain), rel=1e-4)


def test_evaluation_during_training(options, data, tmp_path):
    held_out = _write(tmp_path / "val.jsonl", 6, offset=100)
    result = train(**options, eval_data=[held_out], eval_strategy="epoch", num_train_epochs=2)
    evaluations = [entry for entry in result.history if "eval_loss" in entry]
    assert [entry["epoch"] for entry in evaluations] == [1, 2]
    assert {"eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/chosen"} <= evaluations[0].keys()
    assert result.report is not None
    assert evaluations[-1]["eval_rewards/margins"] == pytest.approx(result.report.mean_margin, rel=1e-4)


def test_full_disk_is_one_line(options, monkeypatch):
    from trimtab.training.trainer import GuideTrainer

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GuideTrainer, "_save_checkpoint", full)
    with pytest.raises(OutputError, match=r"No space left on device.*free space"):
        train(**{**options, "save_strategy": "epoch"})


def test_trackers_are_reachable(options):
    pytest.importorskip("tensorboard")
    result = train(**options, report_to=["tensorboard"], max_steps=1)
    assert any(result.output_dir.rglob("events.out.tfevents.*"))


def test_config_file_of_a_run_repeats_it(options, tmp_path):
    first = train(**options)
    values = yaml.safe_load((first.output_dir / "config.yaml").read_text())
    second = train(TrainConfig(**values), output_dir=str(tmp_path / "again"))
    _assert_same_weights(first.output_dir, second.output_dir, rtol=0, atol=0)


def test_all_options_of_lora_and_trainer_are_reachable(options):
    result = train(**options, lora={"use_rslora": True}, trainer={"adam_beta2": 0.99})
    config = json.loads((result.output_dir / "adapter_config.json").read_text())
    assert config["use_rslora"] is True


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"learning_rat": 1}, "Unknown option 'learning_rat'. Did you mean 'learning_rate'"),
        ({"lora": {"use_rslor": True}}, "Unknown LoRA option 'use_rslor'. Did you mean 'use_rslora'"),
        ({"trainer": {"adam_beta3": 1}}, "Unknown Trainer option 'adam_beta3'. Did you mean"),
        ({"trainer": {"learning_rate": 1}}, "has its own flag: use --learning-rate"),
        ({"beta": -1}, "beta: Input should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"max_prompt_length": 96}, "must be less than max_length"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "belongs to loss_type 'sigmoid'"),
        ({"eval_strategy": "epoch"}, "needs eval_data"),
        ({"lora_target_modules": ["nothing"]}, "does not fit"),
        ({"resume_from_checkpoint": "last"}, "no checkpoint to continue from"),
        ({"lr_scheduler_type": "cosin"}, "Trainer refuses"),
    ],
)
def test_bad_options_are_one_line(extra, message, options):
    with pytest.raises(ConfigError) as caught:
        train(**{**options, **extra})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (Path(options["output_dir"]) / "guide.json").exists()


def test_output_folder_is_not_overwritten_unasked(options):
    folder = Path(options["output_dir"])
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        train(**options)
    train(**options, overwrite_output_dir=True)
    assert (folder / "mine.txt").read_text() == "keep"


def test_no_pair_left(options, tmp_path):
    path = tmp_path / "ties.jsonl"
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "labels": {"polite": 0}}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="No pair is left to train on"):
        train(**{**options, "data": [str(path)]}, objective="polite")


def test_shared_prompts_are_reported(options, data):
    lines: list[str] = []
    train(**options, eval_data=[data], notify=lines.append)
    assert "Warning: 12 held-out prompts are also trained on" in " ".join(lines)
    assert "Training on 12 of 12 pairs for 'polite'." in lines


def test_nan_stops_the_run_and_names_the_rows(options, tmp_path):
    model = tiny.make_llama(vocab_size=320)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    folder = tiny.save_base(tmp_path / "broken", model, tiny.make_tokenizer())
    with pytest.raises(NumericalError, match=r"rows 'row-\d+', "):
        train(**{**options, "base": str(folder)})
    assert not (Path(options["output_dir"]) / "guide.json").exists()
