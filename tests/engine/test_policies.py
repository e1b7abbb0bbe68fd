"""Aligned models as guides: exactly the model at weight 1, exactly the base at 0, and the oracle's mixtures between."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import tiny
import tiny_guides
import trimtab
from engine.blends import At, save_conditioned
from engine.compiler import needs_compiler
from trimtab.decoding.oracle import OracleGuide, combined_logits, greedy, next_logits
from trimtab.engine import Engine, load
from trimtab.engine.results import Watch
from trimtab.errors import GuideError
from trimtab.evaluation.attribution import attribute
from trimtab.models import Base, load_base
from trimtab.models.token_text import TokenTexts
from trimtab.serving.api.scores import Scores

PROMPTS = ["I would be happy to", "the lazy dog", "q"]
KERNELS = ["generic", "torch", pytest.param("native", marks=needs_compiler)]


@dataclass
class Aligned:
    """A base, two policies p and q and an ARM r on it, on disk and as float64 models for the oracle."""

    base: Base
    folders: dict[str, Path]
    models: dict[str, Any]

    def load(self, *names: str, kernels: str = "torch", **options: Any) -> Engine:
        config = {"kernels": kernels, "kv_cache_memory_gib": 0.1, **options}
        return load(self.base, [self.folders[name] for name in names], config=config)

    def ids(self, prompt: str) -> list[int]:
        return self.base.tokenizer(prompt)["input_ids"]

    def oracle(self, prompt: str, weights: dict[str, float], tokens: int = 12) -> list[int]:
        ids = self.ids(prompt)
        guides = [OracleGuide(self.models[n], ids, w, is_policy=n != "r") for n, w in weights.items()]
        return greedy(self.models["base"], ids, guides, max_tokens=tokens, stop_ids=frozenset({2}))

    def logs(self, name: str, ids: list[int]) -> torch.Tensor:
        return torch.tensor(next_logits(self.models[name], ids), dtype=torch.float64).log_softmax(-1)


@pytest.fixture(scope="module")
def aligned(llama_folder, tmp_path_factory) -> Aligned:
    root = tmp_path_factory.mktemp("aligned")
    base = load_base(str(llama_folder), dtype="float32")
    models: dict[str, Any] = {"base": load_base(str(llama_folder), dtype="float32").model.double()}
    for seed, name in enumerate("pqr", start=1):
        lora = tiny_guides.random_lora(base.model, seed=seed, r=2 + seed)
        kind = "arm" if name == "r" else "policy"
        tiny_guides.save_guide(root / name, lora, tiny_guides.manifest_for(base, f"{name}-ness", kind=kind))
        models[name] = lora.double()
    return Aligned(base, {name: root / name for name in "pqr"}, models)


def merged(aligned: Aligned, name: str) -> Any:
    return copy.deepcopy(aligned.models[name]).float().merge_and_unload()


@pytest.mark.parametrize("kernels", KERNELS)
def test_at_weight_one_a_policy_is_the_model_itself_token_for_token(aligned, kernels):
    model = merged(aligned, "p")
    with aligned.load("p", kernels=kernels) as engine:
        for prompt, answer in zip(PROMPTS, engine.generate(PROMPTS, temperature=0, max_tokens=16), strict=True):
            ids = torch.tensor([aligned.ids(prompt)])
            config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=2, pad_token_id=0)
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            assert answer.token_ids == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kernels", KERNELS)
def test_at_weight_one_the_distribution_is_the_policys_own(aligned, kernels):
    with aligned.load("p", "q", kernels=kernels) as engine:
        score = engine.score(PROMPTS[0], "thank you", guidance={"q": 1.0})
    ids = aligned.ids(PROMPTS[0])
    for t, token in enumerate(score.token_ids):
        assert score.combined[t] == pytest.approx(float(aligned.logs("q", ids + score.token_ids[:t])[token]), abs=2e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_at_weight_zero_it_is_the_base_bit_for_bit(aligned, kernels):
    options = {"temperature": 0.9, "seed": 3, "max_tokens": 16}
    with aligned.load(kernels=kernels) as alone:
        plain = alone.generate(PROMPTS, **options)
        numbers = alone.score(PROMPTS[0], "thank you")
    with aligned.load("p", "q", kernels=kernels) as engine:
        found = engine.generate(PROMPTS, guidance=0.0, **options)
        assert [a.token_ids for a in found] == [a.token_ids for a in plain]
        score = engine.score(PROMPTS[0], "thank you", guidance=0.0)
    assert score.combined == score.base
    assert score.base == pytest.approx(numbers.base, abs=0 if kernels == "native" else 1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "weights",
    [
        {"p": 0.3, "q": 0.7},  # MOD: the base's coefficient is 0
        {"p": 0.5},  # DeRa, between
        {"p": 2.5},  # and beyond
        {"p": -1.0},
        {"p": 1.0, "q": 1.0},  # the base's coefficient is −1
        {"p": 0.8, "q": -0.4, "r": 0.7},  # an ARM beside them
        {"p": 1.0, "r": 0.5},
    ],
)
def test_mixtures_are_the_oracles(aligned, weights, kernels):
    with aligned.load("p", "q", "r", kernels=kernels) as engine:
        (answer,) = engine.generate(PROMPTS[1], guidance=weights, temperature=0, max_tokens=12)
    assert answer.token_ids == aligned.oracle(PROMPTS[1], weights)


def test_weights_that_sum_to_one_decode_from_the_geometric_mean_of_the_policies(aligned):
    with aligned.load("p", "q") as engine:
        score = engine.score(PROMPTS[0], "you and me", guidance={"p": 0.25, "q": 0.75})
    ids = aligned.ids(PROMPTS[0])
    for t, token in enumerate(score.token_ids):
        text = ids + score.token_ids[:t]
        mean = (0.25 * aligned.logs("p", text) + 0.75 * aligned.logs("q", text)).log_softmax(-1)
        assert score.combined[t] == pytest.approx(float(mean[token]), abs=2e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_of_one_batch_have_weights_of_their_own(aligned, kernels):
    asked = [{"p": 1.0}, {}, {"q": 0.4}, {"p": 1.5, "q": 0.5}, {"r": 1.0}, {"p": 0.5, "q": 0.5}]
    guidance = [weights or 0.0 for weights in asked]
    with aligned.load("p", "q", "r", kernels=kernels) as engine:
        answers = engine.generate([PROMPTS[2]] * len(asked), guidance=guidance, temperature=0, max_tokens=10)
    for weights, answer in zip(asked, answers, strict=True):
        assert answer.token_ids == aligned.oracle(PROMPTS[2], weights, 10)


def test_scores_are_log_ratios_and_base_and_contributions_sum_to_what_is_decoded_from(aligned):
    weights = {"p": 0.75, "q": -0.5, "r": 0.3}
    with aligned.load("p", "q", "r") as engine:
        score = engine.score(PROMPTS[0], "happy", guidance=weights, by_objective=True)
    ids = aligned.ids(PROMPTS[0])
    for t, token in enumerate(score.token_ids):
        logs = {name: aligned.logs(name, ids + score.token_ids[:t]) for name in ("base", *weights)}
        s = {"p": logs["p"] - logs["base"], "q": logs["q"] - logs["base"], "r": logs["r"]}
        for name in weights:
            assert score.guides[name][t] == pytest.approx(float(s[name][token]), abs=3e-4)
            assert score.objectives[name][f"{name}-ness"][t] == score.guides[name][t]
        z = logs["base"] + sum(w * s[name] for name, w in weights.items())
        summed = score.base[t] + sum(values[t] for values in score.contributions.values())
        assert summed == pytest.approx(float(z[token]), abs=5e-4)
        assert score.combined[t] == pytest.approx(summed - float(z.logsumexp(-1)), abs=5e-4)
    assert score.rewards["p"] == pytest.approx(sum(score.guides["p"]))


def test_what_is_noted_while_writing_is_what_a_reading_and_a_score_say(aligned):
    watch = Watch(top=2, base=True, objectives=True)
    weights = {"p": 1.0, "r": 0.5}  # q only watches
    with aligned.load("p", "q", "r") as engine:
        _, driver = engine.parts
        (answer,) = engine.answers(
            PROMPTS[0], guidance=weights, sampling={"temperature": 0, "max_tokens": 6}, watch=watch
        )
        driver.add(answer, tokens=answer.limit)
        driver.drive([answer])
        written = list(answer.noted)
        reading = engine.reading(PROMPTS[0], answer.tokens, guidance=weights, watch=watch)
        driver.add(reading, tokens=len(answer.tokens))
        driver.drive([reading])
        score = engine.score(PROMPTS[0], answer.tokens, guidance=weights)
    for t, (a, b) in enumerate(zip(written, reading.noted, strict=True)):
        for note in (a, b):
            assert note.guides == pytest.approx({name: score.guides[name][t] for name in "pqr"}, abs=1e-4)
            assert note.objectives["q-ness"] == note.guides["q"]
            assert (note.policies, note.policy_objectives) == ({"p", "q"}, {"p-ness", "q-ness"})
            assert note.log_ratio(objective="p-ness") == note.log_ratio(guide="p") == note.guides["p"]
            assert note.log_ratio(guide="r") == note.log_ratio(objective="r-ness")
            assert note.log_ratio(objective="r-ness") == pytest.approx(note.guides["r"] - score.base[t], abs=1e-4)


def test_attribution_and_server_show_a_policys_score_as_the_log_ratio_that_it_is(aligned):
    with aligned.load("p", "r") as engine:
        (found,) = attribute(engine, [(PROMPTS[0], "happy")], guidance={"p": 0.5})
        score = engine.score(PROMPTS[0], "happy", guidance={"p": 0.5})
        texts = TokenTexts(engine.base.tokenizer)
    assert found.rows["p-ness"] == pytest.approx(score.guides["p"], abs=1e-4)
    assert found.rows["r-ness"] == pytest.approx(
        [r - b for r, b in zip(score.guides["r"], score.base, strict=True)], abs=1e-4
    )
    served = Scores(texts, top=None, noted_top=0).ours(found.scores)["guidance"]["tokens"]
    for shown in (found.to_dict()["tokens"][0], served[0]):
        assert shown["objectives"]["p-ness"] == {"logprob": None, "log_ratio": pytest.approx(shown["guides"]["p"])}
        assert shown["objectives"]["r-ness"]["logprob"] == pytest.approx(shown["guides"]["r"])


def test_guidance_that_changes_acts_from_the_next_token_on(aligned):
    with aligned.load("p", "q") as engine:
        stream = engine.stream(PROMPTS[0], guidance={"p": 1.0}, temperature=0, max_tokens=12)
        for _ in range(3):
            next(stream)
        before = stream.token_ids
        stream.set_guidance({"p": 0.4, "q": 0.6})
        list(stream)
        found = stream.token_ids
    ids = aligned.ids(PROMPTS[0])
    for t in range(len(before), len(found)):
        mean = 0.4 * aligned.logs("p", ids + found[:t]) + 0.6 * aligned.logs("q", ids + found[:t])
        assert found[t] == int(mean.argmax())


def test_a_conditioned_policy_takes_its_whole_pull_off_the_base(aligned, tmp_path):
    model = save_conditioned(aligned.base, tmp_path / "soup", "moslora-text", kind="policy").double()
    config = {"kernels": "torch", "kv_cache_memory_gib": 0.1}
    ids = aligned.ids(PROMPTS[0])
    with load(aligned.base, [tmp_path / "soup", aligned.folders["r"]], config=config) as engine:
        first, second, third = engine.guides["soup"].objectives
        asked = [{first: 0.25, second: 0.75}, {second: 0.5, third: 1.0, "r": 0.4}, {first: 0.2}]
        answers = engine.generate([PROMPTS[0]] * 3, guidance=asked, temperature=0, max_tokens=8)
    for weights, answer in zip(asked, answers, strict=True):
        own = [weights.get(name, 0.0) for name in (first, second, third)]
        policy = OracleGuide(At(model, [w / sum(own) for w in own]), ids, sum(own), is_policy=True)
        arm = OracleGuide(aligned.models["r"], ids, weights.get("r", 0.0))
        expected = greedy(aligned.models["base"], ids, [policy, arm], max_tokens=8, stop_ids=frozenset({2}))
        assert answer.token_ids == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A smaller base with its own policies ``proxy`` and ``proxy2``; the float64 models by name."""
    root = tmp_path_factory.mktemp("small")
    tiny.save_base(root / "base", tiny.make_llama(300, seed=5, hidden=16, layers=1), tiny.make_tokenizer())
    base = load_base(str(root / "base"), dtype="float32")
    models: dict[str, Any] = {"base": load_base(str(root / "base"), dtype="float32").model.double()}
    for seed, name in enumerate(["proxy", "proxy2"], start=7):
        lora = tiny_guides.random_lora(base.model, seed=seed)
        tiny_guides.save_guide(root / name, lora, tiny_guides.manifest_for(base, name, kind="policy"))
        models[name] = lora.double()
    return root, models


def proxies(aligned, small, prompt, weights) -> list[OracleGuide]:
    ids = [v if v < 300 else -1 for v in range(320)]
    own = {n: OracleGuide(small[1][n], aligned.ids(prompt), w, ids, True, small[1]["base"])
           for n, w in weights.items() if n.startswith("proxy")}  # fmt: skip
    return [own.get(n) or OracleGuide(aligned.models[n], aligned.ids(prompt), w, is_policy=n != "r")
            for n, w in weights.items()]  # fmt: skip


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "weights", [{"proxy": 1.0}, {"proxy": 0.5, "p": 0.75}, {"proxy": 1.5, "proxy2": -0.5, "r": 0.3}]
)
def test_a_policy_on_another_model_adds_its_ratio_to_that_model(aligned, small, weights, kernels):
    root, _ = small
    folders = [root / "proxy", root / "proxy2", *(aligned.folders[name] for name in "pr")]
    config = {"kernels": kernels, "kv_cache_memory_gib": 0.1, "speculation": "off"}
    with load(aligned.base, folders, config=config) as engine:
        assert list(engine.guides) == ["proxy", "proxy2", "p", "r"]
        core, _ = engine.parts
        assert len(core.references) == 1  # of both
        assert len(engine.memory.pages) == 2
        (answer,) = engine.generate(PROMPTS[0], guidance=weights, temperature=0, max_tokens=10)
        score = engine.score(PROMPTS[0], answer.token_ids, guidance=weights)
        mixed = engine.generate([PROMPTS[0]] * 2, guidance=[0.0, weights], temperature=0, max_tokens=10)
    ids = aligned.ids(PROMPTS[0])
    found = proxies(aligned, small, PROMPTS[0], weights)
    assert answer.token_ids == greedy(aligned.models["base"], ids, found, max_tokens=10, stop_ids=frozenset({2}))
    assert mixed[1].token_ids == answer.token_ids
    assert mixed[0].token_ids == aligned.oracle(PROMPTS[0], {}, 10)
    for t, token in enumerate(answer.token_ids):
        text = ids + answer.token_ids[:t]
        logs = [torch.tensor(next_logits(small[1][n], text)).log_softmax(-1)[token] for n in ("proxy", "base")]
        assert score.guides["proxy"][t] == pytest.approx(float(logs[0] - logs[1]), abs=3e-4)
    assert score.contributions["proxy"] == pytest.approx([weights["proxy"] * s for s in score.guides["proxy"]])
    assert list(score.guides) == list(engine.guides) and list(answer.weights) == list(engine.guides)


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_the_model_of_a_policy_drafts_and_changes_nothing(aligned, small, acceptance):
    root, _ = small
    folders = [root / "proxy", aligned.folders["p"]]
    texts = []
    for speculation in ("off", "small"):
        config = {"kernels": "torch", "kv_cache_memory_gib": 0.1, "speculation": speculation, "acceptance": acceptance}
        with load(aligned.base, folders, config=config) as engine:
            asked = [{"proxy": 4.0, "p": 0.5}, {"p": 1.0}, {"proxy": -1.0}, 0.0]
            temperature = 0.0 if acceptance == "rejection" else 0.8
            answers = engine.generate(
                [PROMPTS[0]] * 4, guidance=asked, temperature=temperature, seed=1, max_tokens=24, ignore_eos=True
            )
            texts.append([answer.token_ids for answer in answers])
            drafted = engine.statistics.drafted
    assert texts[0] == texts[1]
    assert drafted > 0


def test_what_a_policy_says_of_a_token_is_noted_also_while_it_only_watches(aligned, small):
    root, _ = small
    watch = Watch(base=True, objectives=True)
    config = {"kernels": "torch", "kv_cache_memory_gib": 0.1, "speculation": "small"}
    with load(aligned.base, [root / "proxy", aligned.folders["p"]], config=config) as engine:
        _, driver = engine.parts
        sampling = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
        (answer,) = engine.answers(PROMPTS[0], guidance={"p": 1.0}, sampling=sampling, watch=watch)
        driver.add(answer, tokens=answer.limit)
        driver.drive([answer])
        score = engine.score(PROMPTS[0], answer.tokens, guidance={"p": 1.0})
        stream = engine.stream(PROMPTS[0], guidance={"p": 1.0}, **sampling)
        next(stream)
        stream.set_guidance({"proxy": 1.0})  # it joins, and its reference with it
        list(stream)
    for t, note in enumerate(answer.noted):
        assert note.guides == pytest.approx({name: values[t] for name, values in score.guides.items()}, abs=1e-4)
    found, ids = stream.token_ids, aligned.ids(PROMPTS[0])
    (guide,) = proxies(aligned, small, PROMPTS[0], {"proxy": 1.0})
    for t in range(len(found) - 3, len(found)):
        z = combined_logits(aligned.models["base"], ids, [guide], found[:t])
        assert found[t] == max(range(len(z)), key=lambda v: z[v])


@pytest.mark.parametrize("where", ["base", "small"])
def test_a_fully_fine_tuned_policy_is_compared_with_the_model_it_names(aligned, small, tmp_path, where):
    root, models = small
    own = aligned.base if where == "base" else load_base(str(root / "base"), dtype="float32")
    width = own.vocabulary_size
    tuned = tiny.make_llama(width, seed=9, hidden=16, layers=1)
    manifest = tiny_guides.manifest_for(own, "tuned", kind="policy", adapter="full")
    tiny_guides.save_guide(tmp_path / "tuned", tuned, manifest, tokenizer=own.tokenizer)
    ids = None if where == "base" else [v if v < 300 else -1 for v in range(320)]
    reference = None if where == "base" else models["base"]
    prompt = aligned.ids(PROMPTS[0])
    guide = OracleGuide(copy.deepcopy(tuned).double(), prompt, 0.7, ids, True, reference)
    with load(aligned.base, [tmp_path / "tuned"], config={"kernels": "torch", "kv_cache_memory_gib": 0.1}) as engine:
        (answer,) = engine.generate(PROMPTS[0], guidance=0.7, temperature=0, max_tokens=10)
        assert len(engine.memory.pages) == (2 if where == "base" else 3)
    expected = greedy(aligned.models["base"], prompt, [guide], max_tokens=10, stop_ids=frozenset({2}))
    assert answer.token_ids == expected


def test_a_fully_fine_tuned_policy_needs_the_model_that_it_names(aligned, small, tmp_path):
    own = load_base(str(small[0] / "base"), dtype="float32")
    manifest = tiny_guides.manifest_for(own, "tuned", kind="policy", adapter="full")
    model = tiny.make_llama(300, seed=9, hidden=16, layers=1)
    tiny_guides.save_guide(tmp_path / "tuned", model, manifest, tokenizer=own.tokenizer)
    other = tiny.save_base(tmp_path / "other", tiny.make_llama(300, seed=6), tiny.make_tokenizer())
    with pytest.raises(GuideError, match="trained from"):
        load(aligned.base, [tmp_path / "tuned"], guide_bases={"tuned": str(other)})


def test_int8_weights_serve_a_policy_and_its_reference_alike(aligned):
    pytest.importorskip("torchao")
    base = load_base(str(aligned.base.folder), dtype="float32", quantization="int8")
    with load(base, [aligned.folders["p"]], config={"kernels": "torch", "kv_cache_memory_gib": 0.1}) as engine:
        zero = engine.score(PROMPTS[0], "happy", guidance=0.0)
        one = engine.score(PROMPTS[0], "happy", guidance=1.0)
    assert zero.combined == zero.base
    own = [b + s for b, s in zip(one.base, one.guides["p"], strict=True)]
    assert one.combined == pytest.approx(own, abs=1e-4)


def test_transformers_own_loop_gives_the_merged_model(aligned):
    model = load_base(str(aligned.base.folder), dtype="float32").model
    steer = trimtab.custom_generate(
        [aligned.folders["p"], aligned.folders["q"]],
        tokenizer=aligned.base.tokenizer,
        config={"kv_cache_memory_gib": 0.1},
    )
    ids = torch.tensor([aligned.ids(PROMPTS[0])])
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = merged(aligned, "p").generate(ids, **options)
    assert model.generate(ids, custom_generate=steer, guidance={"p": 1.0}, **options).tolist() == expected.tolist()
    batch = {"attention_mask": torch.ones(2, ids.shape[1], dtype=torch.long), "max_new_tokens": 10, "do_sample": False}
    asked = [{"p": 0.5, "q": 0.5}, {"q": 2.0}]
    found = model.generate(ids.repeat(2, 1), custom_generate=steer, guidance=asked, **batch)
    for weights, row in zip(asked, found, strict=True):
        oracle = aligned.oracle(PROMPTS[0], weights, 10)
        assert row[ids.shape[1] :].tolist()[: len(oracle)] == oracle
    steer.close()
