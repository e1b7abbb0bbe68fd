"""Speculation in the engine: the same text sooner, whatever drafts, in any company."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from engine.mocks import MockGuide, add, expected_greedy, finish, logits_after, make_answer, make_core, make_scheduler
from trimtab.decoding.config import Sampling
from trimtab.decoding.sampling import distribution
from trimtab.engine.guidance import Pull
from trimtab.models import VocabularyMap

# a guide on the base's weights, and one on the smaller weights that draft
GUIDES = (MockGuide("a", slot=0), MockGuide("b", backbone=1, slot=0))
PULLS = (Pull(0.5), Pull(0.8))
WORLDS = {
    "small": lambda: (make_core(*GUIDES, backbones=2, draft=1), {}),
    "draft": lambda: (make_core(GUIDES[0], backbones=2, draft=1), {}),
    "perfect": lambda: (make_core(GUIDES[1], backbones=2, draft=1, error=0.0), {}),
    "ngram": lambda: (narrowed(make_core(*GUIDES, backbones=2)), {"speculation": "ngram"}),
}


def narrowed(core):
    core.backbones[0].narrow = True
    return core


def pulls_of(core):
    return PULLS[: len(core.guides)] if core.guides[0].name == "a" else PULLS[1:]


def plain(core):
    """The same models without a drafter."""
    other = make_core(*core.guides, backbones=len(core.backbones))
    other.backbones[0].narrow = core.backbones[0].narrow
    return other


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("temperature", [0, 0.6, 1.0])
def test_the_text_is_that_of_plain_decoding(world, temperature):
    core, options = WORLDS[world]()
    drafted = 0
    for seed in range(4):
        sampling = {"temperature": temperature, "max_tokens": 25, "top_k": 4, "seed": seed}
        without = make_scheduler(plain(core))
        expected = add(without, make_answer(core, [7, 8, 9] * 4, pulls_of(core), **sampling))
        finish(without)
        scheduler = make_scheduler(core, **options)
        answer = add(scheduler, make_answer(core, [7, 8, 9] * 4, pulls_of(core), **sampling))
        finish(scheduler)
        assert answer.tokens == expected.tokens
        assert answer.text.text == expected.text.text
        drafted += scheduler.statistics.drafted
        assert [pool.free for pool in scheduler._pools] == [pool.pages for pool in scheduler._pools]
    assert drafted > 0
    if temperature == 0 and world != "ngram":
        assert answer.tokens == expected_greedy(core, answer)


@pytest.mark.parametrize("draft", [1, None])
def test_a_token_that_a_guide_does_not_know_is_no_draft(draft):
    """A guide beside those that draft knows every other token; whoever drafts proposes the others too."""
    known = torch.arange(300)
    known[4:300:2] = -1
    half = MockGuide("half", slot=0, vocabulary=VocabularyMap(300, 300, known))
    small = MockGuide("b", backbone=1, slot=0)
    texts = []
    for core in (make_core(half, small, backbones=2, draft=draft), make_core(half, small, backbones=2)):
        options = {"speculation": "ngram"} if draft is None and not texts else {}
        scheduler = make_scheduler(core, **options)
        prompt = [7, 4, 9, 11] * 4 if draft is None else [7, 9, 11] * 4
        answer = make_answer(core, [7, 9, 11] * 4, PULLS, temperature=0, max_tokens=20)
        answer.prompts[0] = answer.rows[0].tokens = prompt
        finish(add(scheduler, answer) and scheduler)
        texts.append(answer.tokens)
    assert texts[0] == texts[1]
    assert not any(token >= 4 and token % 2 == 0 for token in texts[0])


def test_good_drafts_write_several_tokens_a_step():
    core, _ = WORLDS["perfect"]()
    scheduler = make_scheduler(core, num_speculative_tokens=4)
    answer = add(scheduler, make_answer(core, [7] * 5, (Pull(0.8),), temperature=0, max_tokens=41))
    finish(scheduler)
    base = core.backbones[0]
    assert scheduler.statistics.kept == scheduler.statistics.drafted > 25
    assert len(base.steps) < 16
    assert base.steps[-2] == [5]  # the last token and four drafts in one forward, and the guide has read them already
    assert len(answer.tokens) == 41


# a policy on the base's own weights, and two that were trained from the smaller model that drafts
BARE = MockGuide("small's own", backbone=1, slot=None)
POLICIES = (
    MockGuide("p", slot=0, is_policy=True),
    MockGuide("q", backbone=1, slot=0, is_policy=True, reference=BARE),
    MockGuide("s", backbone=1, slot=1, is_policy=True, reference=BARE),
)


def policies_greedy(prompt, weights, count, error):
    """(1 − w_p)·base + w_p·p + w_q·(q − small) + w_s·(s − small), by hand; guides read a token more."""
    tokens = []
    while len(tokens) < count:
        own, text = logits_after([*prompt, *tokens]), [5, *prompt, *tokens]
        p, q, s = weights
        small = logits_after(text) + error * logits_after(text, "error")
        z = (1 - p) * own + p * logits_after(text, 0)
        z = z + q * (logits_after(text, 0) - small) + s * (logits_after(text, 1) - small)
        tokens.append(int(z.argmax()))
    return tokens


@pytest.mark.parametrize("weights", [(0.5, 1.5, 0.0), (1.0, 0.0, 0.0), (0.3, 1.0, -0.4), (-0.5, 0.7, 0.7)])
def test_policies_are_drafted_for_losslessly(weights):
    core = make_core(*POLICIES, backbones=2, draft=1, error=0.3)
    scheduler = make_scheduler(core, num_speculative_tokens=4)
    answer = add(scheduler, make_answer(core, [7] * 5, [Pull(w) for w in weights], temperature=0, max_tokens=25))
    finish(scheduler)
    assert scheduler.statistics.drafted > 0
    assert answer.tokens == policies_greedy([7] * 5, weights, 25, 0.3)


def test_the_model_that_a_policy_was_trained_from_drafts_with_what_the_policy_adds():
    """Where small model and base agree, its drafts are those of the guided base, every one of them."""
    core = make_core(*POLICIES, backbones=2, draft=1, error=0.0)
    scheduler = make_scheduler(core, num_speculative_tokens=4)
    answer = add(scheduler, make_answer(core, [7] * 5, [Pull(0.0), Pull(1.5), Pull(0.5)], temperature=0, max_tokens=41))
    finish(scheduler)
    assert answer.tokens == policies_greedy([7] * 5, (0.0, 1.5, 0.5), 41, 0.0)
    assert scheduler.statistics.kept == scheduler.statistics.drafted > 25


def test_what_repeats_itself_is_looked_up():
    core = make_core()
    cycle = [11, 12, 13, 14, 15]
    core.backbones[0].logits = lambda text, slot, mark: _certain(cycle[len(text) % 5])
    scheduler = make_scheduler(core, speculation="ngram")
    answer = add(scheduler, make_answer(core, [15, 11, 12, 13, 14] * 3, max_tokens=30, temperature=0))
    finish(scheduler)
    assert answer.tokens == [cycle[(15 + i) % 5] for i in range(30)]
    assert len(core.backbones[0].steps) < 12


def _certain(token):
    z = logits_after([0]) * 0
    z[token] = 50.0
    return z


def test_bad_drafts_are_given_up():
    core = make_core(backbones=2, draft=1, error=50.0)
    scheduler = make_scheduler(core)
    add(scheduler, make_answer(core, [7] * 5, temperature=0, max_tokens=120))
    finish(scheduler)
    assert scheduler.statistics.drafted < 30


def test_nothing_is_drafted_in_a_crowd():
    core = make_core(backbones=2, draft=1)
    scheduler = make_scheduler(core, speculate_up_to=1)
    for k in (3, 4):
        add(scheduler, make_answer(core, [k] * 5, temperature=0))
    finish(scheduler)
    assert scheduler.statistics.drafted == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("world", ["small", "ngram"])
def test_a_crowd_that_drafts_writes_what_each_writes_alone(world, seed):
    rng = random.Random(seed)
    core, options = WORLDS[world]()

    def request(k):
        r = random.Random(100 * seed + k)
        prompt = [r.randrange(3, 6) for _ in range(r.randrange(1, 70))]
        return make_answer(
            core,
            prompt,
            PULLS,
            seed=k,
            temperature=r.choice([0, 0.5]),
            top_k=3,
            max_tokens=r.randrange(1, 30),
            repetition_penalty=r.choice([1, 1.2]),
        )

    alone = []
    for k in range(8):
        scheduler = make_scheduler(plain(core))
        alone.append(add(scheduler, request(k)).tokens)
        finish(scheduler)
    crowd = make_scheduler(core, tokens=200, max_num_batched_tokens=rng.choice([9, 64]), speculate_up_to=8, **options)
    todo, answers = list(range(8)), {}
    while todo or crowd.running or crowd.waiting:
        for k in [todo.pop() for _ in range(min(len(todo), rng.randrange(3)))]:
            answers[k] = add(crowd, request(k))
        crowd.step()
    assert [answers[k].tokens for k in range(8)] == alone
    assert crowd.statistics.drafted > 0
    assert [pool.free for pool in crowd._pools] == [pool.pages for pool in crowd._pools]


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_sampled_frequencies_are_the_distribution(rule):
    """Pairs of tokens, the second of which is mostly a draft, against their joint probability."""
    core = make_core(GUIDES[1], backbones=2, draft=1)
    options = {"temperature": 0.8, "top_k": 3, "max_tokens": 4}
    scheduler = make_scheduler(core, acceptance=rule)
    n, counts, drafted = 1500, Counter(), 0
    for seed in range(n):
        answer = add(scheduler, make_answer(core, [7, 8], (Pull(0.8),), seed=seed, rule=rule, **options))
        finish(scheduler)
        counts[tuple(answer.tokens[:2])] += 1
    drafted = scheduler.statistics.drafted
    assert drafted > n
    sampling = Sampling(temperature=0.8, top_k=3)

    def after(tokens):
        z = logits_after([7, 8, *tokens]) + 0.8 * logits_after([5, 7, 8, *tokens], 0)
        return distribution(z.unsqueeze(0), sampling)[0]

    first = after([])
    expected = {(a, b): float(first[a] * after([a])[b]) for a in _possible(first) for b in _possible(after([a]))}
    assert set(counts) <= set(expected)
    cells = [(counts[pair], n * p) for pair, p in expected.items() if n * p >= 5]
    rest = n - sum(c for c, _ in cells), n - sum(e for _, e in cells)
    cells += [rest] if rest[1] > 1e-6 else []
    scale = n / sum(e for _, e in cells)
    assert chisquare([c for c, _ in cells], [e * scale for _, e in cells]).pvalue > 1e-3


def _possible(p):
    return [int(v) for v in p.nonzero().flatten()]
