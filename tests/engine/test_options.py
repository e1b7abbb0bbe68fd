"""Options of sampling that depend on the answer so far: in a crowd, with drafts and where answers end."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.mocks import TOKENIZER, MockGuide, add, finish, make_answer, make_core, make_scheduler
from trimtab.decoding.config import make_sampling
from trimtab.decoding.sampling import choose
from trimtab.engine.guidance import Pull
from trimtab.errors import ConfigError, NumericalError

GUIDES = (MockGuide("a", slot=0), MockGuide("b", backbone=1, slot=0))
PULLS = (Pull(0.5), Pull(0.8))
OPTIONS = [
    {},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -2.0},
    {"presence_penalty": -1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    {"logit_bias": {4: 6.0, 5: -100.0, 7: 3.0}},
    {"min_tokens": 9, "ignore_eos": False, "stop_token_ids": (4, 5)},
    {"min_tokens": 4, "logit_bias": {2: 9.0, 17: 8.5}, "ignore_eos": False, "frequency_penalty": 0.5},
]


def by_hand(core, answer, seed, ends=(2,)):
    """The answer's tokens by a loop over the models alone, one option after the other."""
    s, tokens = answer.sampling, []
    generator = torch.Generator().manual_seed(seed)
    ending = {*s.stop_token_ids, *(() if s.ignore_eos else ends)}
    while len(tokens) < s.max_tokens and not (tokens and tokens[-1] in ending):
        z = core.backbones[0].logits([*answer.prompts[0], *tokens], None, None)
        for guide, pull in zip(core.guides, answer.pulls, strict=False):
            own = core.backbones[guide.backbone].logits([5, *answer.prompts[0], *tokens], guide.slot, None)
            z = z + pull.weight * own
        z = z.tolist()
        for v in {*answer.prompts[0], *tokens}:
            z[v] = z[v] * s.repetition_penalty if z[v] < 0 else z[v] / s.repetition_penalty
        for v in set(tokens):
            z[v] -= s.presence_penalty + s.frequency_penalty * tokens.count(v)
        for v, bias in s.logit_bias.items():
            z[v] += bias
        if len(tokens) < s.min_tokens:
            for v in {*ends, *s.stop_token_ids}:
                z[v] = -math.inf
        u = None if s.is_greedy else torch.rand(1, generator=generator, dtype=torch.float64)
        tokens.append(int(choose(torch.tensor([z]), s, uniforms=u)))
    return tokens


def make_world(draft=None, **config):
    core = make_core(*GUIDES, backbones=2, draft=draft)
    core.backbones[0].narrow = draft is None
    return core, make_scheduler(core, **config)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("drafts", ["none", "small", "ngram"])
def test_a_crowd_with_all_kinds_of_options_writes_what_a_loop_writes(temperature, drafts):
    config = {"none": {"speculation": "off"}, "ngram": {"speculation": "ngram"}, "small": {}}[drafts]
    core, scheduler = make_world(1 if drafts == "small" else None, speculate_up_to=20, **config)
    answers = [
        make_answer(core, [7, 8, 9] * 4, PULLS, seed=k, max_tokens=25, temperature=temperature,
                    **{"ignore_eos": True, **OPTIONS[k % len(OPTIONS)]})
        for k in range(2 * len(OPTIONS))
    ]  # fmt: skip
    random.Random(0).shuffle(answers)
    for answer in answers:
        add(scheduler, answer)
    finish(scheduler)
    for answer in answers:
        assert answer.tokens == by_hand(core, answer, answer.seed or 0), answer.sampling
    assert drafts == "none" or scheduler.statistics.kept > 0
    assert len({tuple(a.tokens) for a in answers}) > len(OPTIONS) / 2


def test_plain_answers_pay_nothing_for_options():
    core, _ = make_world()
    assert make_answer(core, "x", PULLS).adjustments is None
    assert make_answer(core, "x", PULLS, stop_token_ids=(4,), stop="y").adjustments is None


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_stop_ids_end_an_answer_and_are_not_shown(ignore_eos):
    core = make_core()
    free = add(scheduler := make_scheduler(core), make_answer(core, [7] * 5, temperature=0, max_tokens=20))
    finish(scheduler)
    end = next(t for i, t in enumerate(free.tokens) if i >= 5 and t not in free.tokens[:i])
    at = free.tokens.index(end)
    options = {"temperature": 0, "max_tokens": 20, "ignore_eos": ignore_eos, "stop_token_ids": [end, 299]}
    cut = add(scheduler, make_answer(core, [7] * 5, **options))
    finish(scheduler)
    assert cut.tokens == free.tokens[: at + 1]
    assert cut.finish_reason == "stop"
    assert cut.text.text == TOKENIZER.decode(free.tokens[:at], skip_special_tokens=True)


@pytest.mark.parametrize(("fewest", "written"), [(0, 3), (2, 3), (3, 8), (7, 8), (8, 13)])
def test_stop_strings_are_not_looked_for_in_the_fewest_tokens(fewest, written):
    core = make_core()
    letters = [TOKENIZER(letter)["input_ids"][-1] for letter in "abcde"]
    core.backbones[0].logits = lambda text, slot, mark: torch.zeros(300).index_fill(
        0, torch.tensor([letters[len(text) % 5]]), 50.0
    )
    options = {"temperature": 0, "max_tokens": 30, "stop": "c", "min_tokens": fewest}
    answer = add(scheduler := make_scheduler(core), make_answer(core, letters, **options))
    finish(scheduler)
    assert len(answer.tokens) == written
    assert answer.text.text.replace(" ", "") == ("abcde" * 3)[: written - 1]
    assert answer.finish_reason == "stop"


def test_nothing_left_to_choose_is_an_error_of_one_answer_alone():
    """All that base and guides know ends the answer, and it must not end yet."""
    core = make_core()
    core.backbones[0].logits = lambda text, slot, mark: torch.full((300,), -math.inf).index_fill(
        0, torch.tensor([4] if text[0] == 9 else [6]), 1.0
    )
    for config in ({}, {"speculation": "ngram"}):
        scheduler = make_scheduler(core, **config)
        bad = add(scheduler, make_answer(core, [9] + [4] * 9, temperature=0, min_tokens=3, stop_token_ids=(4,)))
        good = add(scheduler, make_answer(core, [8] + [6] * 9, temperature=0, max_tokens=6))
        finish(scheduler)
        assert isinstance(bad.error, NumericalError)
        assert "options allow" in str(bad.error)
        assert good.tokens == [6] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {320: 1.0}}, "logit_bias names token 320"),
        ({"stop_token_ids": [400]}, "stop_token_ids names token 400"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {3: 101}}, "logit_bias"),
        ({"logit_bias": {3: math.nan}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
        ({"stop_token_ids": [-3]}, "stop_token_ids"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": ["x" * 1025]}, "stop"),
    ],
)
def test_options_that_cannot_work(world, options, message):
    with pytest.raises(ConfigError, match=message):
        world.engine.generate("x", **options)


def test_the_edges_of_options_work():
    sampling = make_sampling(logit_bias={"5": -100}, presence_penalty=-2, min_tokens=8, max_tokens=8, stop=["x"] * 64)
    assert sampling.logit_bias == {5: -100.0}
