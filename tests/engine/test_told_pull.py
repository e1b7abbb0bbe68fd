"""A guide that is told its pull: the engine gives it log w, w its whole weight after strength."""

from __future__ import annotations

import math

import pytest
import torch

import guides
from conditioned import DESCRIPTIONS, adapted, config_of
from engine.blends import At
from trimtab.decoding.oracle import OracleGuide, greedy
from trimtab.engine import Guidance, load
from trimtab.errors import GuidanceError
from trimtab.models import encode_prompt, load_base
from trimtab.rewards import Objective, save_guide

GREEDY = {"temperature": 0, "max_tokens": 6}
PROMPT = "the quick"


@pytest.fixture(scope="module", params=["moslora-text", "moslora-alpha", "pblora"])
def told(request, llama_folder, tmp_path_factory):
    """(engine, the guide in float64, the base in float64)."""
    base = load_base(str(llama_folder), dtype="float32")
    model = adapted(base.model, config_of(request.param, base.tokenizer, k=2, conditions_on_strength=True), scale=0.5)
    described = tuple(Objective(name=name, description=DESCRIPTIONS[name]) for name in ("helpful", "harmless"))
    manifest = guides.manifest(
        base, adapter=request.param.partition("-")[0], objectives=described, conditions_on_strength=True
    )
    folder = tmp_path_factory.mktemp("told") / "uni"
    save_guide(folder, model, manifest)
    plain = load_base(str(llama_folder), dtype="float32").model.double()
    return load(base, [folder]), model.double(), plain


def _expected(told, alpha, weight):
    engine, model, plain = told
    ids = encode_prompt(engine.base.tokenizer, PROMPT, chat_template=None)
    guide = OracleGuide(At(model, [*alpha, math.log(weight)]), ids, weight)
    return greedy(plain, ids, [guide], max_tokens=6, stop_ids=frozenset({2}))


def test_each_row_is_told_its_own_weight(told):
    engine = told[0]
    asked = [{"helpful": 0.7, "harmless": 0.3}, {"helpful": 2.8, "harmless": 1.2}, {"helpful": 0.15, "harmless": 0.15}]
    together = engine.generate([PROMPT] * 3, guidance=asked, **GREEDY)
    alphas = [([0.7, 0.3], 1.0), ([0.7, 0.3], 4.0), ([0.5, 0.5], 0.3)]
    assert [g.token_ids for g in together] == [_expected(told, alpha, weight) for alpha, weight in alphas]


def test_strength_counts(told):
    engine = told[0]
    guidance = Guidance(weights={"helpful": 0.7, "harmless": 0.3}, strength=4.0)
    assert engine.generate(PROMPT, guidance=guidance, **GREEDY)[0].token_ids == _expected(told, [0.7, 0.3], 4.0)


def test_no_weight_is_the_base(told):
    engine, _, plain = told
    ids = encode_prompt(engine.base.tokenizer, PROMPT, chat_template=None)
    base = greedy(plain, ids, [], max_tokens=6, stop_ids=frozenset({2}))
    assert engine.generate(PROMPT, guidance=0, **GREEDY)[0].token_ids == base
    assert engine.score(PROMPT, "fox", guidance=0).combined == pytest.approx(engine.score(PROMPT, "fox").base)


def test_a_weight_without_logarithm_is_refused(told):
    with pytest.raises(GuidanceError, match="above 0"):
        told[0].generate(PROMPT, guidance=-1.0, **GREEDY)


def test_a_stream_is_told_of_a_new_weight(told):
    engine = told[0]
    stream = engine.stream(PROMPT, guidance={"helpful": 0.7, "harmless": 0.3}, **GREEDY)
    next(stream)
    stream.set_guidance({"helpful": 2.8, "harmless": 1.2})
    before = list(stream.token_ids)
    for _ in stream:
        pass
    engine_, model, plain = told
    ids = encode_prompt(engine_.base.tokenizer, PROMPT, chat_template=None)
    guide = OracleGuide(At(model, [0.7, 0.3, math.log(4.0)]), [*ids, *before], 4.0)
    rest = greedy(plain, [*ids, *before], [guide], max_tokens=6 - len(before), stop_ids=frozenset({2}))
    assert stream.token_ids == [*before, *rest]
    assert torch.isfinite(torch.tensor(engine.score(PROMPT, "fox", guidance=4.0).rewards["uni"]))
