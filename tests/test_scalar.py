"""Scalar reward models: what they read, the loss by hand, whole runs, the folder, and plain transformers on it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

import tiny
from test_training import _interrupt_after, _write
from training_runs import few_steps
from trimtab.errors import ConfigError, DataError, GuideError, ModelError
from trimtab.evaluation.scorers import dependence, make_scorer, notices_of
from trimtab.models import load_base
from trimtab.preferences import read_comparisons
from trimtab.rewards.encoding import prepare_pairs
from trimtab.rewards.scalar.artifact import load_scalar
from trimtab.rewards.scalar.manifest import read_scalar
from trimtab.rewards.scalar.model import ScalarEncoder, load_backbone, uses_segments
from trimtab.rewards.scalar.sequences import TokenSequence, padded, reward_of
from trimtab.training import train
from trimtab.training.scalar import ScalarPairScorer, margins_of

PROMPT = [{"role": "user", "content": "question 0 of many"}]


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A tiny encoder with [CLS] and [SEP], token types, and a pooler."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789:?!,.",
             *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]  # fmt: skip
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return tiny.save_base(tmp_path_factory.mktemp("bert"), BertModel(config), tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return _write(tmp_path_factory.mktemp("data") / "train.jsonl", 24)


@pytest.fixture
def options(data, llama_folder, tmp_path):
    return few_steps(data, llama_folder, tmp_path / "reward", method="scalar", learning_rate=5e-3)


def _encoder(folder, *, longest=96, prompt=64):
    base, fresh = load_backbone(str(folder), dtype="float32")
    torch.manual_seed(3)
    for name in fresh:  # a head that has an opinion
        torch.nn.init.normal_(base.model.get_submodule(name).weight)
    encoder = ScalarEncoder(
        base, chat_template=None, segments=uses_segments(base), max_length=longest, max_prompt_length=prompt
    )
    return base, encoder


def _pairs(data, encoder):
    return prepare_pairs(read_comparisons(data).comparisons, "polite", encoder).pairs


@pytest.fixture(params=["llama", "gpt2", "bert"])
def any_folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


def test_margins_of_a_batch_are_those_of_lone_sequences(any_folder, data):
    """Whatever the padding, the answer is read at its own end: against one unpadded forward a sequence."""
    base, encoder = _encoder(any_folder)
    pairs = _pairs(data, encoder)
    alone = []
    for pair in pairs:
        first, second = (
            base.model(**padded([sequence], base.model.config.pad_token_id)).logits[0, 0].item()
            for sequence in encoder.sequences(pair)
        )
        alone.append(first - second)
    assert margins_of(base.model, encoder, pairs) == pytest.approx(alone, abs=1e-4)
    scorer = ScalarPairScorer(encoder, base.model.config.pad_token_id)
    a, b = scorer(base.model, scorer.layout(pairs))
    assert (a - b).tolist() == pytest.approx(alone, abs=1e-4)
    assert max(map(abs, alone)) > 0.1


def test_a_causal_answer_is_read_at_its_end_token(llama_folder):
    """The reward is head · state at the end-of-answer token; padding with that token would read one token earlier."""
    base, encoder = _encoder(llama_folder)
    sequence = encoder(PROMPT, "happy to help")
    tokenizer = load_base(str(llama_folder)).tokenizer
    assert sequence.ids[-1] == tokenizer.eos_token_id != base.model.config.pad_token_id
    states = base.model.model(torch.tensor([sequence.ids])).last_hidden_state[0, -1]
    batch = padded([sequence, encoder(PROMPT, "no " * 9)], base.model.config.pad_token_id)
    assert base.model(**batch).logits[0, 0].item() == pytest.approx((base.model.score.weight @ states).item(), abs=1e-4)


def test_an_encoder_reads_what_its_tokenizer_makes_of_two_texts(bert_folder):
    _, encoder = _encoder(bert_folder)
    sequence = encoder("who are you", "a fox")
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    expected = tokenizer("who are you", "a fox")
    assert (sequence.ids, sequence.types) == (expected["input_ids"], expected["token_type_ids"])
    assert not sequence.cut
    _, short = _encoder(bert_folder, longest=24, prompt=8)
    cut = short("who are you and why are you here", "a fox " * 20)
    assert cut.cut
    assert len(cut.ids) == 24
    assert cut.ids[0] == tokenizer.cls_token_id
    assert cut.types == [0] * 8 + [1] * 16


def test_an_untrained_head_has_no_opinion(any_folder):
    base, fresh = load_backbone(str(any_folder), dtype="float32")
    assert fresh
    sequences = [TokenSequence([5, 6, 7], [0, 0, 1] if uses_segments(base) else None)]
    assert base.model(**padded(sequences, base.model.config.pad_token_id)).logits.abs().max() == 0


def test_reward_of_logits():
    assert reward_of(torch.tensor([[2.0], [-1.0]])).tolist() == [2.0, -1.0]
    # P = softmax(1, 3): log P₂ − log P₁ = 3 − 1
    assert reward_of(torch.tensor([[1.0, 3.0]])).tolist() == [2.0]
    with pytest.raises(ModelError, match="3 outputs"):
        reward_of(torch.zeros(1, 3))


def test_first_loss_is_log_two_and_the_gradient_is_the_naive_one(options, data, llama_folder):
    """At a zero head every margin is 0: the loss is log 2, and ∂L/∂w = −½·mean(h_chosen − h_rejected)."""
    result = train(**{**options, "per_device_train_batch_size": 24, "max_steps": 1, "max_grad_norm": 0.0})
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    base, _ = load_backbone(str(llama_folder), dtype="float32")
    encoder = ScalarEncoder(base, chat_template=None, segments=False, max_length=96, max_prompt_length=64)
    differences = []
    for pair in _pairs(data, encoder):
        a, b = (
            base.model.model(torch.tensor([sequence.ids])).last_hidden_state[0, -1]
            for sequence in encoder.sequences(pair)
        )
        differences.append(a - b)
    naive = -0.5 * torch.stack(differences).mean(0)
    assert result.history[0]["grad_norm"] == pytest.approx(naive.norm().item(), rel=1e-3)
    # (at the start the adapters get no gradient, because the head that they work through is zero)


@pytest.mark.parametrize("kind", ["lora", "full", "encoder", "encoder-full", "gpt2"])
def test_what_can_be_told_apart_is_told_apart(kind, options, tmp_path, request):
    """Separable pairs are learned by heart; scorer and plain transformers then give the saved model's numbers."""
    folder = "bert_folder" if "encoder" in kind else "gpt2_folder" if kind == "gpt2" else "llama_folder"
    base_folder = request.getfixturevalue(folder)
    run = {
        **options,
        "base": str(base_folder),
        "full_finetune": "full" in kind,
        "max_length": 64,
        "max_prompt_length": 40,
    }
    result = train(**run, eval_data=options["data"], num_train_epochs=6, labelled_by="people")
    report = result.reports["polite"]
    assert report.guide.value == 1.0
    assert report.untrained.value == 0.5
    manifest = read_scalar(result.output_dir)
    assert manifest == result.manifest
    assert manifest.accuracy["value"] == 1.0
    assert manifest.data.labelled_by == "people"
    assert manifest.metrics["held_out"]["length"]["n"] == 24
    scorer = make_scorer(f"reward:{result.output_dir}")
    assert (scorer.about.objective, scorer.about.accuracy) == ("polite", 1.0)
    assert "24 held-out pairs" in scorer.about.accuracy_on
    good, bad = scorer.score(["please 0", "go away 0"], [PROMPT, PROMPT])
    assert good > bad
    assert _plainly(result.output_dir, base_folder, manifest, "please 0") == pytest.approx(good, abs=1e-4)


def _plainly(folder, base_folder, manifest, answer) -> float:
    """Return the reward by transformers and PEFT alone, as the model card says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if manifest.adapter == "full":
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(
            base_folder, num_labels=1, pad_token_id=manifest.pad_token_id
        )
        model = PeftModel.from_pretrained(base, folder)
    if manifest.segments:
        inputs = tokenizer(f"User: {PROMPT[0]['content']}\n\nAssistant:", answer, return_tensors="pt")
    elif manifest.chat_template:
        text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True) + answer
        text += tokenizer.convert_ids_to_tokens(manifest.end_token_id)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        ids = tokenizer(f"User: {PROMPT[0]['content']}\n\nAssistant:")["input_ids"]
        ids += [*tokenizer(f" {answer}")["input_ids"], manifest.end_token_id]
        inputs = {"input_ids": torch.tensor([ids])}
    with torch.inference_mode():
        return model.eval()(**inputs).logits[0, 0].item()


def test_the_folder_is_whole(options, tmp_path):
    result = train(**options, max_steps=2, descriptions={"polite": "The answer is kind."})
    names = {path.name for path in result.output_dir.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "scalar.json", "README.md", "config.yaml"} <= names
    assert not any(name.startswith(".") for name in names)
    card = (result.output_dir / "README.md").read_text()
    assert "pad_token_id=0" in card
    assert "The answer is kind." in card
    assert "Not measured" in card
    assert set(json.loads((result.output_dir / "metrics.jsonl").read_text().splitlines()[0])) >= {
        "loss", "rewards/accuracies", "rewards/chosen", "rewards/margins"
    }  # fmt: skip
    assert not any("logps" in key for entry in result.history for key in entry)


def test_a_resumed_run_equals_an_uninterrupted_one(options, tmp_path):
    base = {**options, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    whole = train(**{**base, "output_dir": str(tmp_path / "whole")})
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        _interrupt_after(3, **{**base, "output_dir": str(folder)})
    resumed = train(**{**base, "output_dir": str(folder)}, resume_from_checkpoint="last")
    a, b = (load_scalar(r.output_dir)[0].model.state_dict() for r in (whole, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_seed_decides_the_weights(options, tmp_path):
    first = train(**options, max_steps=2)
    second = train(**{**options, "output_dir": str(tmp_path / "again")}, max_steps=2)
    assert first.manifest.weights_sha256 == second.manifest.weights_sha256


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"beta": 0.5}, "beta belongs to methods that train a guide"),
        ({"weight": 2.0}, "weight belongs to methods that train a guide"),
        ({"loss": "decode-aware"}, "loss belongs to methods that train a guide"),
        ({"objectives": ["polite"]}, "objectives belongs to"),
        ({"lora": {"rank": 3}}, "Unknown LoRA option 'rank'"),
    ],
)
def test_options_of_guides_are_refused(extra, message, options):
    with pytest.raises(ConfigError, match=message):
        train(**{**options, **extra})


def test_wrong_data_is_refused(options, tmp_path):
    with pytest.raises(DataError, match="no labels for 'kind'"):
        train(**options, objective="kind")
    path = tmp_path / "equal.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "labels": {"polite": 0}}) + "\n")
    with pytest.raises(DataError, match="No pair is left to train on"):
        train(**{**options, "data": [str(path)]})


def test_damage_and_another_base_are_refused(options, tmp_path):
    result = train(**options, max_steps=1)
    other = tiny.save_base(tmp_path / "other", tiny.make_llama(vocab_size=320, seed=9), tiny.make_tokenizer())
    path = result.output_dir / "scalar.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"base": {**content["base"], "id": str(other)}}, "was trained on"),
        ({"tokenizer_hash": "x"}, "another tokenizer"),
        ({"colour": "red"}, "colour"),
        ({"schema_version": 99}, "newer trimtab"),
        ({"weights_sha256": {"adapter_model.safetensors": "0"}}, "SHA-256 differs"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(GuideError, match=message):
            load_scalar(result.output_dir)


def test_it_cannot_guide_and_says_so(options, llama_folder):
    from trimtab.engine import load

    result = train(**options, max_steps=1)
    with pytest.raises(GuideError, match="is a scalar reward model: it judges"):
        load(llama_folder, [result.output_dir])


def test_a_reward_model_of_the_guides_own_pairs_is_not_independent(options, data, tmp_path):
    reward = train(**options, max_steps=1)
    guide = train(**{**options, "method": "genarm", "output_dir": str(tmp_path / "guide")}, max_steps=1)
    reason = dependence(make_scorer(f"reward:{reward.output_dir}"), [guide.output_dir])
    assert reason is not None
    assert "was fitted on the pairs that the guide 'guide' was trained on" in reason
    fewer = train(
        **{**options, "output_dir": str(tmp_path / "fewer"), "data": [_write(tmp_path / "x.jsonl", 5)]}, max_steps=1
    )
    reason = dependence(make_scorer(f"reward:{fewer.output_dir}"), [guide.output_dir])
    assert reason is not None
    assert "on 5 of the 24 pairs" in reason


def test_what_is_cut_is_said(options):
    scorer = make_scorer(f"reward:{train(**options, max_steps=1).output_dir}")
    scorer.score(["ok"], [PROMPT])
    assert notices_of(scorer) == ()
    scorer.score(["ok", "dog " * 300], [PROMPT, PROMPT])
    (notice,) = notices_of(scorer)
    assert notice.startswith("1 of 3 texts were longer")


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_any_sequence_classifier_is_a_reward_model(labels, bert_folder, tmp_path):
    """A foreign encoder: one output is the reward, of two the log-odds; more are refused."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=labels)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    folder = tiny.save_base(tmp_path / "foreign", model, tokenizer)
    if labels == 3:
        with pytest.raises(ModelError, match="3 outputs"):
            make_scorer(f"reward:{folder}")
        return
    scorer = make_scorer(f"reward:{folder}")
    answers = ["a fox", "the quick brown fox jumps"]
    found = scorer.score(answers, [PROMPT, "who are you"])
    for text, answer, reward in zip([PROMPT[0]["content"], "who are you"], answers, found, strict=True):
        logits = model.eval()(**tokenizer(text, answer, return_tensors="pt")).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        assert reward == pytest.approx(expected.item(), abs=1e-4)
    assert "not recorded" in scorer.about.measures
    scorer.score(["fox " * 90], ["who are you " * 30])
    assert notices_of(scorer)[0].startswith("1 of 3 texts")


def test_a_foreign_causal_reward_model_reads_through_its_chat_template(llama_folder, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(llama_folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    folder = tiny.save_base(tmp_path / "foreign", model, tokenizer)
    scorer = make_scorer(f"reward:{folder}")
    answers = ["happy to help", "no"]
    found = scorer.score(answers, [PROMPT, "who are you"])
    for turns, answer, reward in zip(
        [PROMPT, [{"role": "user", "content": "who are you"}]], answers, found, strict=True
    ):
        text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert reward == pytest.approx(model.eval()(ids).logits[0, 0].item(), abs=1e-4)
