"""Every invariant of guided decoding, against the oracle, on a Llama and on a GPT-2 with absolute positions."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import chisquare

import tiny_guides
from engine.worlds import CHAT
from trimtab.decoding.oracle import OracleSampling, combined_logits, next_distribution, sequence_log_prob
from trimtab.engine import Guidance, load

PROMPTS = ["the quick", CHAT, "I would be happy to help you, thank you", [{"role": "user", "content": "why not?"}]]


def _ids(generations):
    return [g.token_ids for g in generations]


def test_guides_share_the_bases_weights(world):
    assert len(world.engine._core.backbones) == 1
    assert [g.slot for g in world.engine.guides.values()] == [0, 1]


@pytest.mark.parametrize("guidance", [0, {"a": 0, "b": 0}, Guidance(weights={"a": 3}, strength=0)])
def test_strength_zero_is_the_base_and_what_generate_gives(world, guidance):
    model, tokenizer = world.base.model, world.base.tokenizer
    plain = load(world.base)
    ours = world.engine.generate(PROMPTS, guidance=guidance, temperature=0, max_tokens=12)
    assert _ids(ours) == _ids(plain.generate(PROMPTS, temperature=0, max_tokens=12))
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([world.prompt_ids("base", prompt)])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert answer.token_ids == expected[0, ids.shape[1] :].tolist()
    sampled = world.engine.generate(PROMPTS, guidance=guidance, seed=3, max_tokens=12)
    assert _ids(sampled) == _ids(plain.generate(PROMPTS, seed=3, max_tokens=12))


def test_strength_zero_runs_no_guide(world, reads):
    world.engine.generate("x", guidance=0, max_tokens=1)
    world.engine.generate("x", guidance={"a": 1, "b": 0}, max_tokens=1)
    assert reads == [[(None, 1)], [(None, 1), (0, 1)]]


def test_repetition_penalty_at_strength_zero_is_what_generate_does(world):
    ids = torch.tensor([world.prompt_ids("base", "the quick")])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.8}
    expected = world.base.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[
        0, ids.shape[1] :
    ].tolist()
    got = world.engine.generate("the quick", guidance=0, temperature=0, max_tokens=12, repetition_penalty=1.8)
    assert got[0].token_ids == expected
    assert expected != world.greedy("the quick", {}, 12)  # the penalty changes this answer, so the test can fail


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 2.5, "b": 0.0}, {"a": -1.0, "b": 0.7}])
def test_cached_batched_padded_shared_greedy_is_the_oracles(world, weights):
    got = world.engine.generate(PROMPTS, guidance=weights, temperature=0, max_tokens=8)
    expected = [world.greedy(prompt, weights, 8) for prompt in PROMPTS]
    assert _ids(got) == expected
    assert expected != [world.greedy(prompt, {}, 8) for prompt in PROMPTS]


def test_repetition_penalty_under_guidance_is_the_oracles(world):
    weights = {"a": 1.0, "b": 0.5}
    got = world.engine.generate(PROMPTS[:2], guidance=weights, temperature=0, max_tokens=8, repetition_penalty=1.5)
    assert _ids(got) == [world.greedy(p, weights, 8, repetition_penalty=1.5) for p in PROMPTS[:2]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6, "top_k": 9},
        {"temperature": 1.5, "top_p": 0.8},
        {"min_p": 0.1, "repetition_penalty": 1.3},
    ],
)
def test_sampled_frequencies_are_the_oracles_distribution(world, options):
    weights = {"a": 0.6, "b": 0.4}
    n = 3000
    answers = world.engine.generate(
        CHAT, guidance=weights, seed=11, n=n, max_tokens=1, max_batch_size=n, ignore_eos=True, **options
    )
    expected = next_distribution(
        world.models["base"],
        world.prompt_ids("base", CHAT),
        world.oracle_guides(CHAT, weights),
        sampling=OracleSampling(**options),
    )
    counts = [0] * len(expected)
    for answer in answers:
        counts[answer.token_ids[0]] += 1
    assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0)
    # χ² wants at least 5 expected counts in a cell, so rare tokens are counted together
    common = [v for v, p in enumerate(expected) if n * p >= 5]
    observed = [*(counts[v] for v in common), n - sum(counts[v] for v in common)]
    wanted = [*(n * expected[v] for v in common), n * (1 - sum(expected[v] for v in common))]
    cells = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 1e-6]
    assert len(cells) > 3
    scale = sum(o for o, _ in cells) / sum(w for _, w in cells)
    assert chisquare([o for o, _ in cells], [w * scale for _, w in cells]).pvalue > 1e-3


def test_second_token_is_drawn_from_the_oracles_distribution_too(world):
    weights = {"a": 1.0, "b": 1.0}
    n = 1500
    sampling = OracleSampling(temperature=0.7, top_k=4)
    answers = world.engine.generate(
        "hi", guidance=weights, seed=5, n=n, max_tokens=2, temperature=0.7, top_k=4, max_batch_size=n, ignore_eos=True
    )
    first = max(set(a.token_ids[0] for a in answers), key=[a.token_ids[0] for a in answers].count)
    following = [a.token_ids[1] for a in answers if a.token_ids[0] == first]
    expected = next_distribution(
        world.models["base"],
        world.prompt_ids("base", "hi"),
        world.oracle_guides("hi", weights),
        [first],
        sampling,
    )
    support = [v for v, p in enumerate(expected) if p > 0]
    assert set(following) <= set(support)
    assert len(following) > 100
    observed = [following.count(v) for v in support]
    assert chisquare(observed, [len(following) * expected[v] for v in support]).pvalue > 1e-3


def test_merged_is_unmerged(world, tmp_path):
    merged = copy.deepcopy(world.models["a"]).float().merge_and_unload()
    manifest = tiny_guides.manifest_for(world.base, "objective-a", adapter="full")
    tiny_guides.save_guide(tmp_path / "merged", merged, manifest, tokenizer=world.base.tokenizer)
    engine = load(world.base, [tmp_path / "merged"])
    assert len(engine._core.backbones) == 2
    one = world.engine.generate(PROMPTS, guidance={"a": 1.3, "b": 0}, temperature=0, max_tokens=8)
    assert _ids(engine.generate(PROMPTS, guidance=1.3, temperature=0, max_tokens=8)) == _ids(one)


def test_two_copies_at_half_weight_are_one(world):
    folder = world.folders["a"]
    twice = load(world.base, [folder, folder])
    assert list(twice.guides) == ["a", "a-2"]
    got = twice.generate(PROMPTS, guidance={"a": 0.8, "a-2": 0.8}, temperature=0, max_tokens=8)
    one = world.engine.generate(PROMPTS, guidance={"a": 1.6, "b": 0}, temperature=0, max_tokens=8)
    assert _ids(got) == _ids(one)
    score = twice.score("hi", "you", guidance={"a": 0.8, "a-2": 0.8})
    assert score.combined == pytest.approx(
        world.engine.score("hi", "you", guidance={"a": 1.6, "b": 0}).combined, abs=1e-4
    )


def test_one_guide_alone_is_that_guide_among_others_at_zero(world):
    alone = load(world.base, [world.folders["b"]])
    got = world.engine.generate(PROMPTS, guidance={"a": 0, "b": 1.5}, temperature=0, max_tokens=8)
    assert _ids(alone.generate(PROMPTS, guidance=1.5, temperature=0, max_tokens=8)) == _ids(got)
    one_hot = world.engine.generate(PROMPTS, guidance={"objective-b": 1.5}, temperature=0, max_tokens=8)
    assert _ids(one_hot) == _ids(got)


def test_permuting_guides_with_their_weights_changes_nothing(world):
    other = load(world.base, [world.folders["b"], world.folders["a"]])
    weights = {"objective-a": 0.4, "b": 1.7}
    for options in ({"temperature": 0}, {"seed": 7}):
        one = world.engine.generate(PROMPTS, guidance=weights, max_tokens=8, **options)
        assert _ids(one) == _ids(other.generate(PROMPTS, guidance=weights, max_tokens=8, **options))


@pytest.mark.parametrize("size", [1, 2, 16])
def test_an_answer_does_not_depend_on_its_neighbours(world, size):
    guidance = [1.0, {"a": 0, "b": 0}, {"a": 2.0, "b": 0}, {"a": -0.5, "b": 1.0}]
    sampling = [{"temperature": 0.8}, {"top_k": 5}, {"temperature": 0}, {"top_p": 0.7, "repetition_penalty": 1.2}]
    crowd = world.engine.generate(
        PROMPTS, guidance=guidance, sampling=sampling, seed=20, max_tokens=9, max_batch_size=size
    )
    for i, prompt in enumerate(PROMPTS):
        alone = world.engine.generate(prompt, guidance=guidance[i], sampling=sampling[i], seed=20 + i, max_tokens=9)
        assert alone[0].token_ids == crowd[i].token_ids
        assert alone[0].seed == crowd[i].seed


def test_n_samples_from_one_prefill_are_n_single_answers(world):
    several = world.engine.generate(PROMPTS[:2], seed=40, n=3, max_tokens=7)
    assert [(g.prompt_index, g.sample_index) for g in several] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for i, answer in enumerate(several):
        alone = world.engine.generate(PROMPTS[answer.prompt_index], seed=40 + i, max_tokens=7)
        assert alone[0].token_ids == answer.token_ids
    assert len({tuple(g.token_ids) for g in several}) > 2


def test_stream_is_generate(world):
    for options in ({"temperature": 0}, {"seed": 9}, {"seed": 9, "stop": ["e", "!"]}):
        stream = world.engine.stream(CHAT, guidance=1.5, max_tokens=20, **options)
        pieces = list(stream)
        assert stream.result == world.engine.generate(CHAT, guidance=1.5, max_tokens=20, **options)[0]
        assert "".join(pieces) == stream.result.text
        assert all(pieces)


def test_guidance_changes_between_tokens(world):
    """A few tokens of the base, then guided ones: the oracle continues the base's tokens with the guides."""
    stream = world.engine.stream("the quick", guidance=0, temperature=0, max_tokens=9)
    next(stream)
    begun = stream.token_ids
    assert begun == world.greedy("the quick", {}, 9)[: len(begun)]
    assert 0 < len(begun) < 6
    stream.set_guidance({"a": 2.0, "b": 1.0})
    for _ in stream:
        pass
    expected = list(begun)
    while len(expected) < 9 and expected[-1] != 2:
        known = world.oracle_guides("the quick", {"a": 2.0, "b": 1.0})
        z = combined_logits(world.models["base"], world.prompt_ids("base", "the quick"), known, expected)
        expected.append(max(range(len(z)), key=z.__getitem__))
    assert stream.result.token_ids == expected
    assert expected != world.greedy("the quick", {}, 9)
    assert stream.result.weights == {"a": 2.0, "b": 1.0}


def test_score_is_the_oracles(world):
    weights = {"a": 0.5, "b": -0.25}
    score = world.engine.score(CHAT, "happy to help", guidance=weights)
    ids = [*world.base.tokenizer("happy to help")["input_ids"], 2]
    assert score.token_ids == ids
    assert score.base == pytest.approx(
        sequence_log_prob(world.models["base"], world.prompt_ids("base", CHAT), ids), abs=1e-4
    )
    for name in ("a", "b"):
        expected = sequence_log_prob(world.models[name], world.prompt_ids(name, CHAT), ids)
        assert score.guides[name] == pytest.approx(expected, abs=1e-4)
        assert score.rewards[name] == pytest.approx(sum(expected), abs=1e-3)
        assert score.contributions[name] == pytest.approx([weights[name] * v for v in expected], abs=1e-4)
    known = world.oracle_guides(CHAT, weights)
    p = [
        next_distribution(world.models["base"], world.prompt_ids("base", CHAT), known, ids[:t])[ids[t]]
        for t in range(len(ids))
    ]
    assert score.combined == pytest.approx([float(torch.tensor(v).log()) for v in p], abs=1e-4)
    assert world.engine.score(CHAT, ids, guidance=0).combined == pytest.approx(score.base, abs=1e-5)
