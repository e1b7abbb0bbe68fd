"""Scorers by name: what is understood, what each number is by hand, and that their neighbours do not matter."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import tiny_guides
from trimtab.engine import load
from trimtab.errors import ConfigError, DataError, GuideError, ModelError, PromptTooLongError
from trimtab.evaluation.scorers import (
    Known,
    LengthScorer,
    dependence,
    distinct_share,
    known_scorers,
    lexicons,
    make_scorer,
)
from trimtab.models import load_base

PROMPT = [{"role": "user", "content": "how do I boil an egg?"}]
OTHER = [{"role": "user", "content": "the quick brown fox"}]


def _write(path: Path, count: int = 24) -> Path:
    rows = [
        {"prompt": f"question {i}", "chosen": f"please take {i % 5}", "rejected": f"just take {i % 5}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps({**row, "labels": {"polite": 1}}) + "\n" for row in rows))
    return path


def test_every_scorer_says_what_its_number_is():
    known = known_scorers()
    assert len({k.name for k in known}) == len(known)
    for each in known:
        assert isinstance(each, Known)
        assert each.usage.startswith(each.name)
        about = each.about
        assert about.name == each.name
        assert about.direction == "higher is better"
        assert about.low < about.high
        assert about.measures
        assert about.unit
        assert about.licence
        json.dumps(about.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sentimant", "no scorer 'sentimant'. Did you mean 'sentiment'"),
        ("sentiment:x", "takes nothing after a colon"),
        ("reward", "write reward:MODEL"),
        ("reward:", "write reward:MODEL"),
        ("fluency:", "write fluency"),
        ("fluency", "needs a model to read with"),
        ("implicit", "write implicit:GUIDE"),
    ],
)
def test_what_cannot_be_made_is_one_line(spec, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make_scorer(spec)
    assert "\n" not in str(caught.value)


def test_missing_files_and_models_are_named(tmp_path):
    with pytest.raises(DataError, match="no file"):
        make_scorer(f"words:{tmp_path / 'none.jsonl'}@polite")
    with pytest.raises(GuideError, match="no guide folder"):
        make_scorer(f"implicit:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="'kind'"):
        make_scorer(f"words:{_write(tmp_path / 'p.jsonl')}@kind")


def test_length_counts_words_or_tokens(llama_folder):
    assert make_scorer("length").score(["one two  three", ""]).tolist() == [3.0, 0.0]
    assert make_scorer("concise").score(["one two  three", ""]).tolist() == [-3.0, 0.0]
    tokens = make_scorer(f"length:{llama_folder}")
    expected = len(load_base(str(llama_folder)).tokenizer("the quick fox", add_special_tokens=False)["input_ids"])
    assert tokens.score(["the quick fox"]).tolist() == [expected]
    assert (tokens.about.unit, LengthScorer(shorter=True).about.high) == ("tokens", 0.0)


def test_distinct_and_repetition_by_hand():
    text = "a b a b a"  # bigrams: ab ba ab ba, two of four distinct
    assert make_scorer("distinct-1").score([text]).tolist() == [2 / 5]
    assert make_scorer("distinct-2").score([text, "A a"]).tolist() == [0.5, 1.0]
    assert make_scorer("distinct-3").score([text, "x"]).tolist() == [pytest.approx(2 / 3), 1.0]  # aba bab aba
    # 4-grams of nine words "a b a b a b a b a": abab baba ×3 each, so 4 of 6 stood before
    assert make_scorer("repetition").score(["a b a b a b a b a", "no such thing", ""]) == pytest.approx([-4 / 6, 0, 0])
    assert distinct_share(["a b", "a b"], 2) == 0.5  # pooled over samples: one kind of two
    assert distinct_share([], 2) == 1.0


def test_sentiment_has_the_sign_of_the_words():
    good, none, bad = make_scorer("sentiment").score(["I love this, thank you!", "", "I hate this awful thing."])
    assert good > 0.5
    assert none == 0
    assert bad < -0.5


def test_toxicity_is_a_cost():
    scores = make_scorer("toxicity").score(["Thank you very much.", "You stupid idiot."])
    assert -0.1 < scores[0] <= 0
    assert -1 <= scores[1] < -0.8
    assert make_scorer("toxicity").score([]).shape == (0,)


def test_a_toxicity_model_that_gives_nonsense_is_refused(monkeypatch):
    lexicons._profanity.cache_clear()
    monkeypatch.setattr("profanity_check.predict_prob", lambda texts: np.full(len(texts), 0.5))
    with pytest.raises(ConfigError, match=r"does not work with scikit-learn .* alt-profanity-check=="):
        make_scorer("toxicity").score(["x"])
    lexicons._profanity.cache_clear()


def test_refusal_and_compliance_are_opposites_with_a_measured_accuracy():
    refusal, compliance = make_scorer("refusal"), make_scorer("compliance")
    answers = ["I'm sorry, but I can't help with that.", "Sure! Heat the oven."]
    assert refusal.score(answers).tolist() == [1.0, 0.0]
    assert compliance.score(answers).tolist() == [0.0, 1.0]
    for scorer in (refusal, compliance):
        assert scorer.about.accuracy == 0.915
        assert "XSTest" in scorer.about.accuracy_on


def test_fitted_scorers_state_their_accuracy_on_pairs_left_out(tmp_path):
    path = _write(tmp_path / "pairs.jsonl")
    scorer = make_scorer(f"words:{path}@polite")
    about = scorer.about
    assert about.accuracy == 1.0
    assert about.accuracy_on == "5-fold cross-validation over the prompts of 24 pairs"
    assert len(about.fitted_on_pairs) == 24
    assert about.name == f"words:{path}@polite"
    assert scorer.score(["please", "just"])[0] > 0 > scorer.score(["please", "just"])[1]
    again = make_scorer(f"words:{path}")  # the only objective needs no name
    assert again.about == about
    zipped = tmp_path / "pairs.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert make_scorer(f"words:{zipped}").about.fitted_on == about.fitted_on  # the content counts, not the packing


def test_labels_that_contradict_each_other_are_predicted_no_better_than_by_chance(tmp_path):
    rows = [
        {"prompt": f"q{i}", "chosen": ("warm", "cold")[i % 2], "rejected": ("cold", "warm")[i % 2]} for i in range(40)
    ]
    path = tmp_path / "noise.jsonl"
    path.write_text("".join(json.dumps({**row, "labels": {"kind": 1}}) + "\n" for row in rows))
    assert make_scorer(f"words:{path}").about.accuracy <= 0.6


def test_fluency_is_the_mean_log_probability_under_the_unguided_model(llama_folder):
    scorer = make_scorer(f"fluency:{llama_folder}")
    answers = ["happy to help", "lazy dog", ""]
    found = scorer.score(answers, [PROMPT, OTHER, PROMPT])
    with load(llama_folder, dtype="float32") as engine:
        base = [
            engine.score(p, a, include_eos=not a).base for p, a in zip([PROMPT, OTHER, PROMPT], answers, strict=True)
        ]
    assert found == pytest.approx([sum(b) / len(b) for b in base], abs=1e-4)
    assert scorer.score(answers[:1], [PROMPT]) == pytest.approx(found[:1], abs=1e-4)  # whatever its neighbours are
    with pytest.raises(ConfigError, match="reads prompts"):
        scorer.score(answers)
    with pytest.raises(PromptTooLongError, match="Answer 1 cannot be scored"):
        scorer.score(["dog " * 600], [PROMPT])
    evaluated = make_scorer("fluency", base=llama_folder)
    assert "the base of the comparison itself, unguided" in evaluated.about.measures


def test_implicit_reward_is_guide_minus_its_own_base(llama_folder, tmp_path):
    folder = tiny_guides.save_lora_guide(tmp_path / "polite", llama_folder)
    scorer = make_scorer(f"implicit:{folder}")
    found = scorer.score(["happy to help", ""], [PROMPT, PROMPT])
    with load(llama_folder, [folder], dtype="float32") as engine:
        scores = [engine.score(PROMPT, a) for a in ("happy to help", "")]
    assert found == pytest.approx([s.rewards["polite"] - s.base_log_prob for s in scores], abs=1e-4)
    assert abs(found[0]) > 1e-2  # the adapter does something
    assert scorer.about.objective == "polite"
    reason = dependence(scorer, [folder])
    assert reason is not None
    assert "is the guide 'polite' itself" in reason
    with pytest.raises(ConfigError, match=r"no objective 'polit'\. Did you mean 'polite'"):
        make_scorer(f"implicit:{folder}@polit")


def test_the_implicit_reward_of_a_policy_is_that_of_the_same_weights_as_an_arm(llama_folder, tmp_path):
    found = []
    for kind in ("arm", "policy"):
        folder = tiny_guides.save_lora_guide(tmp_path / kind, llama_folder, manifest={"kind": kind})
        found.append(make_scorer(f"implicit:{folder}").score(["happy to help", ""], [PROMPT, PROMPT]))
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_a_causal_model_is_no_reward_model(llama_folder):
    with pytest.raises(ModelError, match=r"has no weights for score\.weight"):
        make_scorer(f"reward:{llama_folder}")


def test_ranges_hold_the_scores():
    texts = ["I hate you, stupid.", "thank you thank you thank you thank you thank you", "", "x"]
    for each in known_scorers():
        if (each.takes and not each.optional) or each.name == "fluency":
            continue
        scores = make_scorer(each.name).score(texts)
        assert scores.shape == (4,)
        assert all(math.isfinite(s) and each.about.low <= s <= each.about.high for s in scores)
