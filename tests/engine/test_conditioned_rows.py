"""One conditioned guide, a preference in each row: every row is what the oracle and its own single run say."""

from __future__ import annotations

import copy

import pytest
import torch

import guides
import tiny
import tiny_guides
from conditioned import METHODS, adapted, config_of
from engine.blends import At, alpha_of, make_blend, save_conditioned
from trimtab.decoding.oracle import OracleGuide, greedy, next_distribution, sequence_log_prob
from trimtab.engine import Guidance, load, sampler
from trimtab.engine.guidance import Pull
from trimtab.errors import GuideError
from trimtab.models import load_base
from trimtab.rewards import Objective, save_guide
from trimtab.rewards.conditioned import preference
from trimtab.rewards.export import export_lora

CHAT = [{"role": "user", "content": "hello"}]
PROMPTS = ["the quick", CHAT, "I would be", "a", "why?", [{"role": "user", "content": "why not?"}], "jump over", "dog"]
WEIGHTS = [
    {"helpful": 1.0},
    {"harmless": 1.0},
    {"concise": 2.0},
    {"helpful": 0.7, "harmless": 0.3},
    {"helpful": 0.2, "harmless": 0.5, "concise": 0.3},
    {"harmless": 0.4, "concise": 0.1},
    {"helpful": 1.0, "harmless": 1.0, "concise": 1.0},
    {"concise": 0.9, "helpful": 0.6},
]
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module", params=METHODS)
def blend(request, llama_folder, tmp_path_factory):
    return make_blend(llama_folder, tmp_path_factory.mktemp("blend"), request.param)


@pytest.fixture(scope="module", params=["moslora-text", "pblora"])
def few(request, llama_folder, tmp_path_factory):
    return make_blend(llama_folder, tmp_path_factory.mktemp("few"), request.param)


def _ids(generations):
    return [g.token_ids for g in generations]


def _guide_logits(engine, prompts, guidances):
    """The guide's logits for the first token of every answer, read in one forward."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        combine = sampler.combine

        def watched(base, guides, *rest, **options):
            found.extend(guides)
            return combine(base, guides, *rest, **options)

        patch.setattr(sampler, "combine", watched)
        engine.generate(prompts, guidance=guidances, temperature=0, max_tokens=1)
    (logits,) = found
    return logits


def test_one_batch_of_eight_preferences_is_eight_single_runs_and_the_oracle(blend):
    together = blend.engine.generate(PROMPTS, guidance=WEIGHTS, **GREEDY)
    assert len(blend.engine._core.backbones) == 1
    assert _ids(together) == [blend.greedy(p, w, 6) for p, w in zip(PROMPTS, WEIGHTS, strict=True)]
    for prompt, weights, answer in zip(PROMPTS, WEIGHTS, together, strict=True):
        assert blend.engine.generate(prompt, guidance=weights, **GREEDY)[0].token_ids == answer.token_ids
        assert answer.weights == {"uni": pytest.approx(sum(weights.values()))}
        assert list(answer.preferences["uni"].values()) == pytest.approx(alpha_of(weights))
    one = blend.engine.generate(PROMPTS, guidance=WEIGHTS[0], **GREEDY)
    assert _ids(one) != _ids(blend.engine.generate(PROMPTS, guidance=WEIGHTS[1], **GREEDY))  # preferences matter


def test_the_logits_of_a_batch_are_those_of_the_peft_model(blend):
    together = _guide_logits(blend.engine, PROMPTS, WEIGHTS)
    for i, (prompt, weights) in enumerate(zip(PROMPTS, WEIGHTS, strict=True)):
        alone = _guide_logits(blend.engine, [prompt], [weights])
        with torch.no_grad():
            ids = torch.tensor([blend.ids(prompt)])
            expected = At(blend.model, alpha_of(weights))(input_ids=ids).logits[0, -1]
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[i].double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["moslora-text", "moslora-learned-shared", "pblora"])
def test_absolute_positions_and_fused_layers(gpt2_folder, tmp_path, method):
    blend = make_blend(gpt2_folder, tmp_path, method)
    got = blend.engine.generate(PROMPTS[3:5] + PROMPTS[6:], guidance=[WEIGHTS[i] for i in (3, 4, 6, 7)], **GREEDY)
    assert _ids(got) == [blend.greedy(PROMPTS[i], WEIGHTS[i], 6) for i in (3, 4, 6, 7)]


def test_answers_that_end_take_their_conditions_along(few):
    """Rows leave at different times, and n answers share the reading of their prompt."""
    sampling = [{"max_tokens": m, "ignore_eos": True} for m in (3, 7, 1, 5)]
    several = few.engine.generate(PROMPTS[:4], guidance=WEIGHTS[:4], sampling=sampling, n=2, seed=5, max_batch_size=8)
    assert [len(g.token_ids) for g in several] == [3, 3, 7, 7, 1, 1, 5, 5]
    for i, answer in enumerate(several):
        j = answer.prompt_index
        alone = few.engine.generate(PROMPTS[j], guidance=WEIGHTS[j], sampling=sampling[j], seed=5 + i)[0]
        assert alone.token_ids == answer.token_ids


def test_no_preference_means_all_objectives_alike(few):
    default = few.engine.generate(PROMPTS, guidance=1.5, **GREEDY)
    even = Guidance(weights=dict.fromkeys(("helpful", "harmless", "concise"), 0.5))
    assert _ids(default) == _ids(few.engine.generate(PROMPTS, guidance=even, **GREEDY))
    assert _ids(default) == _ids(few.engine.generate(PROMPTS, guidance={"uni": 1.5}, **GREEDY))
    plain = few.engine.generate(PROMPTS, guidance={"helpful": 0}, **GREEDY)
    assert _ids(plain) == _ids(load(few.base).generate(PROMPTS, **GREEDY))


def test_a_preference_that_changes_between_tokens_is_exact(few, monkeypatch):
    """Each next-token distribution is the oracle's at the preference then in force, whatever was read before."""
    seen = []
    original = sampler.combined
    monkeypatch.setattr(sampler, "combined", lambda *state: (seen.append(original(*state)), seen[-1])[1])
    stream = few.engine.stream("the quick", guidance=WEIGHTS[0], seed=2, max_tokens=60, ignore_eos=True)
    asked = []
    for weights in (WEIGHTS[0], WEIGHTS[1], {"harmless": 0.4}, {"harmless": 0.0}, WEIGHTS[3], WEIGHTS[1]):
        stream.set_guidance(weights)
        before = len(seen)
        next(stream)
        asked += [weights] * (len(seen) - before)
    assert len(asked) == len(seen) >= 6
    tokens = stream.token_ids
    for t, (weights, z) in enumerate(zip(asked, seen, strict=True)):
        known = [few.guide("the quick", weights)] if sum(weights.values()) else []
        expected = torch.tensor(next_distribution(few.plain, few.ids("the quick"), known, tokens[:t]))
        torch.testing.assert_close(z[0].softmax(-1), expected.float(), atol=2e-4, rtol=1e-3)
    "".join(stream)
    assert stream.result.weights == {"uni": 1.0}
    assert stream.result.preferences == {"uni": {"helpful": 0.0, "harmless": 1.0, "concise": 0.0}}


def test_only_a_new_preference_reads_the_text_again(few, reads):
    """And only the guide's row does; a strength of 0 drops it, and what it read is found again where it fills pages."""
    stream = few.engine.stream("the quick", guidance={"helpful": 1}, seed=1, max_tokens=40, ignore_eos=True)
    changes = [{"helpful": 3}, 0, {"helpful": 1}, {"harmless": 1}, {"harmless": 2}]
    for guidance in changes:
        next(stream)
        stream.set_guidance(guidance)
        reads.clear()
        before = len(stream.token_ids)
        next(stream)
        read = len(few.ids("the quick")) + before
        if guidance == {"helpful": 3} or guidance == {"harmless": 2}:
            assert reads[0] == [(None, 1), (0, 1)]
        elif guidance == 0:
            assert reads[0] == [(None, 1)]
        elif guidance == {"harmless": 1}:
            assert reads[0] == [(None, 1), (0, read)]
        else:  # helpful again
            assert reads[0] == [(None, 1), (0, read - (before - 1) // 16 * 16)]


def test_a_step_costs_the_same_for_any_number_of_objectives(llama_folder, tmp_path):
    """What a forward reads of the preferences has the same shape for 1 objective and for 3."""
    base = load_base(str(llama_folder), dtype="float32")
    for method in ("moslora-text", "pblora"):
        found = []
        for k in (1, 3):
            save_conditioned(base, tmp_path / f"{method}{k}", method, k=k)
            engine = load(base, [tmp_path / f"{method}{k}"])
            guide = next(iter(engine.guides.values()))
            conditions = guide.conditions(Pull(1.0, (1.0,) + (0.0,) * (k - 1)))
            found.append(tuple(conditions.shape))
            assert guide.conditions(Pull(1.0, (1.0,) * k)) is guide.conditions(Pull(2.0, (1.0,) * k))
        assert found[0] == found[1]


@pytest.mark.parametrize("method", ["moslora-text", "moslora-learned", "moslora-alpha", "pblora"])
def test_the_order_of_objectives_does_not_matter(method, llama_folder, tmp_path):
    """A guide with its objectives in another order, its tensors permuted alike, answers the same names the same."""
    base = load_base(str(llama_folder), dtype="float32")
    config = config_of(method, base.tokenizer)
    order = [2, 0, 1]
    model = adapted(base.model, config)
    save_conditioned(base, tmp_path / "one", method)
    other = copy.deepcopy(model.peft_config["default"])
    other.objectives = [other.objectives[i] for i in order]
    if method == "moslora-text":
        other.descriptions = [other.descriptions[i] for i in order]
        other.description_token_ids = [other.description_token_ids[i] for i in order]
    model.peft_config["default"] = other
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "encoder.default.objectives" in name or "pblora_C" in name:
            tensor.data.copy_(tensor.data[order].clone())
        elif method == "moslora-alpha" and ("moslora_G" in name or "moslora_D" in name):
            tensor.data.copy_(tensor.data[:, order].clone())
    objectives = tuple(Objective(name=name) for name in other.objectives)
    save_guide(tmp_path / "two", model, guides.manifest(base, adapter=method.partition("-")[0], objectives=objectives))
    one, two = (load(base, [tmp_path / name]) for name in ("one", "two"))
    assert _ids(one.generate(PROMPTS, guidance=WEIGHTS, **GREEDY)) == _ids(
        two.generate(PROMPTS, guidance=WEIGHTS, **GREEDY)
    )
    scores = [engine.score("hi", "you", guidance=WEIGHTS[4], by_objective=True) for engine in (one, two)]
    assert scores[0].combined == pytest.approx(scores[1].combined, abs=1e-4)
    assert scores[0].objectives["one"]["concise"] == pytest.approx(scores[1].objectives["two"]["concise"], abs=1e-4)


def test_two_copies_at_half_weight_are_one(few):
    twice = load(few.base, {"x": few.folder, "y": few.folder})
    halves = [{f"{g}/{name}": w / 2 for g in "xy" for name, w in weights.items()} for weights in WEIGHTS]
    got = twice.generate(PROMPTS, guidance=halves, **GREEDY)
    assert _ids(got) == _ids(few.engine.generate(PROMPTS, guidance=WEIGHTS, **GREEDY))


def test_the_exported_lora_is_the_guide_at_that_preference(blend, tmp_path):
    export_lora(blend.folder, "helpful=0.2,harmless=0.5,concise=0.3", tmp_path / "fixed")
    engine = load(blend.base, [tmp_path / "fixed", blend.folder])
    asked = {"helpful": 0.2, "harmless": 0.5, "concise": 0.3}
    score = engine.score(CHAT, "happy to help", guidance=asked)
    assert score.guides["fixed"] == pytest.approx(score.guides["uni"], abs=1e-4)
    fixed = engine.generate(PROMPTS, guidance={"fixed": 1}, **GREEDY)
    assert _ids(fixed) == _ids(engine.generate(PROMPTS, guidance=asked, **GREEDY))


def test_scores_at_the_preference_and_by_objective(few, reads):
    weights = {"helpful": 0.7, "concise": 0.7}
    score = few.engine.score(CHAT, "happy to help", guidance=weights, by_objective=True)
    assert {len(spans) for spans in reads} == {5}  # base, guide, and three objectives, in one forward
    prompt = few.ids(CHAT)
    expected = sequence_log_prob(At(few.model, [0.5, 0.0, 0.5]), prompt, score.token_ids)
    assert score.guides["uni"] == pytest.approx(expected, abs=1e-3)
    assert score.contributions["uni"] == pytest.approx([1.4 * v for v in expected], abs=1e-3)
    for i, name in enumerate(("helpful", "harmless", "concise")):
        one_hot = [float(i == j) for j in range(3)]
        expected = sequence_log_prob(At(few.model, one_hot), prompt, score.token_ids)
        assert score.objectives["uni"][name] == pytest.approx(expected, abs=1e-3)
        alone = few.engine.score(CHAT, score.token_ids, guidance={name: 2})
        assert alone.guides["uni"] == pytest.approx(score.objectives["uni"][name], abs=1e-4)
        assert alone.objectives == {}
    assert score.preferences == {"uni": {"helpful": 0.5, "harmless": 0.0, "concise": 0.5}}
    assert score.to_dict()["objectives"]["uni"]["concise"] == score.objectives["uni"]["concise"]


def test_plain_conditioned_and_full_guides_in_one_load(few, tmp_path):
    arm = tiny_guides.random_lora(few.base.model, seed=3)
    tiny_guides.save_guide(tmp_path / "arm", arm, tiny_guides.manifest_for(few.base, "polite"))
    whole = tiny.make_llama(vocab_size=320, seed=7)
    manifest = tiny_guides.manifest_for(few.base, "whole", adapter="full")
    tiny_guides.save_guide(tmp_path / "full", whole, manifest, tokenizer=few.base.tokenizer)
    engine = load(few.base, [tmp_path / "arm", few.folder, tmp_path / "full"])
    assert [guide.backbone for guide in engine.guides.values()] == [0, 0, 1]
    guidance = [{"polite": 0.5, "whole": 0.2, **weights} for weights in WEIGHTS]
    got = engine.generate(PROMPTS, guidance=guidance, **GREEDY)
    arm, whole = arm.double(), whole.double()
    for prompt, weights, answer in zip(PROMPTS, WEIGHTS, got, strict=True):
        ids = few.ids(prompt)
        known = [OracleGuide(arm, ids, 0.5), few.guide(prompt, weights), OracleGuide(whole, ids, 0.2)]
        assert answer.token_ids == greedy(few.plain, ids, known, max_tokens=6, stop_ids=frozenset({2}))
    score = engine.score("hi", "you", guidance=guidance[0], by_objective=True)
    assert score.objectives["arm"] == {"polite": score.guides["arm"]}


@pytest.mark.parametrize("method", ["moslora-text", "pblora"])
def test_a_conditioned_guide_of_a_smaller_base(method, llama_folder, tmp_path):
    folder = tiny.save_base(
        tmp_path / "small", tiny.make_llama(300, seed=5, hidden=16, layers=1), tiny.make_tokenizer()
    )
    small = load_base(str(folder), dtype="float32")
    model = save_conditioned(small, tmp_path / "uni", method).double()
    engine = load(llama_folder, [tmp_path / "uni"], dtype="float32")
    assert engine.guides["uni"].backbone == 1
    plain = load_base(str(llama_folder), dtype="float32").model.double()
    got = engine.generate(PROMPTS[:1] + PROMPTS[2:5], guidance=WEIGHTS[3:7], **GREEDY)
    own = [v if v < 300 else -1 for v in range(320)]
    for prompt, weights, answer in zip(PROMPTS[:1] + PROMPTS[2:5], WEIGHTS[3:7], got, strict=True):
        ids = engine.base.tokenizer(prompt)["input_ids"]
        known = [OracleGuide(At(model, alpha_of(weights)), ids, sum(weights.values()), own)]
        assert answer.token_ids == greedy(plain, ids, known, max_tokens=6, stop_ids=frozenset({2}))


def test_in_bfloat16_a_preference_keeps_its_digits(llama_folder, tmp_path):
    """1 + G p is never rounded to bfloat16, where a small G would vanish."""
    base = load_base(str(llama_folder), dtype="bfloat16")
    save_conditioned(base, tmp_path / "g", "moslora-text")
    guide = load(base, [tmp_path / "g"]).guides["g"]
    assert guide.conditions(Pull(1.0, (1.0, 0.0, 0.0))).dtype == torch.float32
    exact = load(llama_folder, [tmp_path / "g"], dtype="float32", guide_bases={"g": str(llama_folder)})
    scores = [engine.score("hi", "you", guidance={"helpful": 1}) for engine in (load(base, [tmp_path / "g"]), exact)]
    assert scores[0].guides["g"] == pytest.approx(scores[1].guides["g"], abs=0.3)


def test_layers_that_cannot_be_sliced_are_refused(few, monkeypatch):
    class OwnLinear(torch.nn.Linear):
        pass

    base = load_base(str(few.base.folder), dtype="float32")
    base.model.model.layers[0].self_attn.q_proj.__class__ = OwnLinear
    with pytest.raises(GuideError, match=r"'uni'.*q_proj' is a OwnLinear.*'trimtab export'"):
        load(base, [few.folder])


def test_the_peft_model_is_not_needed(few):
    """The base stays as it was loaded: no layer is replaced, and closing takes the hooks off."""
    base = load_base(str(few.base.folder), dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    expected = base.model(input_ids=ids).logits
    with load(base, [few.folder]) as engine:
        engine.generate("x", guidance={"concise": 1}, **GREEDY)
        assert torch.equal(base.model(input_ids=ids).logits, expected)
    assert not any(m._forward_hooks for m in base.model.modules())
    with torch.no_grad(), preference(few.model, torch.tensor([1.0, 0.0, 0.0])):
        assert not torch.allclose(few.model(input_ids=ids).logits.float(), expected, atol=0.05)
