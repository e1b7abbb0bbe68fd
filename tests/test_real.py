"""The packaged SmolLM2-135M-Instruct, for real: a few tests of seconds each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trimtab
from trimtab.cli.demo import load_sample
from trimtab.models import load_base
from trimtab.preferences import write_comparisons

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real"), pytest.mark.timeout(600)]

PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guide trained for four steps: enough to move every layer, not enough to be good."""
    folder = tmp_path_factory.mktemp("real")
    train, held_out = load_sample()
    write_comparisons(folder / "train.jsonl", train[:16])
    write_comparisons(folder / "held_out.jsonl", held_out[:8])
    result = trimtab.train(
        data=[str(folder / "train.jsonl")],
        eval_data=[str(folder / "held_out.jsonl")],
        objective="polite",
        output_dir=str(folder / "guide"),
        per_device_train_batch_size=4,
        save_strategy="no",
        bf16=False,
    )
    assert result.report is not None
    assert result.pairs == 16
    return folder / "guide"


@pytest.fixture(scope="module")
def engine(guide: Path):
    with trimtab.load("smollm2", guides=[guide], dtype="float32") as engine:
        yield engine


def test_the_packaged_base_knows_something(engine):
    (answer,) = engine.generate([PROMPT], guidance=0.0, temperature=0, max_tokens=12)
    assert "Paris" in answer.text


def test_strength_zero_is_what_transformers_generates(engine):
    base = engine.base
    ids = base.tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = base.model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    (answer,) = engine.generate([PROMPT], guidance=0.0, temperature=0, max_tokens=16)
    assert answer.token_ids == expected


def test_guided_decoding_is_the_sum_of_two_full_models(engine, guide):
    """One forward with row slices against stock PEFT's two separate, uncached forwards, float32."""
    from peft import PeftModel

    separate = PeftModel.from_pretrained(load_base("smollm2", dtype="float32").model, guide)
    (answer,) = engine.generate([PROMPT], guidance=1.5, temperature=0, max_tokens=8)
    ids = engine.base.tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
    for token in answer.token_ids:
        row = torch.tensor([ids])
        with torch.inference_mode():
            guided = separate(row).logits[0, -1].log_softmax(-1)
            with separate.disable_adapter():
                base = separate(row).logits[0, -1].log_softmax(-1)
        z = base + 1.5 * guided
        # The chosen token is the best one, or as good as the best up to rounding.
        assert float(z.max() - z[token]) < 1e-3
        ids = [*ids, token]


def test_score_adds_up(engine):
    score = engine.score(PROMPT, "The capital of France is Paris.", guidance=2.0)
    (name,) = engine.guides
    assert score.rewards[name] == pytest.approx(sum(score.guides[name]))
    assert len(score.base) == len(score.token_ids)
    assert all(value <= 0 for value in score.combined)
