"""Continuous batching on a model that is a hash: every text is checked token by token, in milliseconds."""

from __future__ import annotations

import random

import pytest

from engine.mocks import MockGuide, add, expected_greedy, finish, make_answer, make_core, make_scheduler
from trimtab.engine.guidance import Pull
from trimtab.errors import ConfigError, PromptTooLongError

TWO = (MockGuide("a", slot=0), MockGuide("b", slot=1, conditioned=True))


def test_one_answer_is_what_the_model_says():
    core = make_core(*TWO)
    scheduler = make_scheduler(core)
    pulls = (Pull(0.7), Pull(0.5, (0.25, 0.75)))
    answer = add(scheduler, make_answer(core, "hello there", pulls, temperature=0))
    finish(scheduler)
    assert answer.tokens == expected_greedy(core, answer)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("seed", range(6))
def test_a_crowd_that_comes_and_goes_writes_what_each_writes_alone(seed):
    rng = random.Random(seed)
    core = make_core(*TWO)
    begin = [rng.randrange(3, 300) for _ in range(40)]

    def request(k):
        r = random.Random(1000 * seed + k)
        prompt = begin[: r.choice([0, 20, 40])] + [r.randrange(3, 300) for _ in range(r.randrange(1, 50))]
        weights = [r.choice([0.0, 0.5, -1.0]) for _ in range(2)]
        alpha = r.random()
        pulls = (Pull(weights[0]), Pull(weights[1], (alpha, 1 - alpha)))
        options = {"temperature": r.choice([0, 0.7, 1.3]), "top_k": r.choice([0, 5]), "max_tokens": r.randrange(1, 30)}
        return make_answer(core, prompt, pulls, seed=k, **options)

    alone = []
    for k in range(12):
        scheduler = make_scheduler(core)
        alone.append(add(scheduler, request(k)).tokens)
        finish(scheduler)
    # pages for about three of them, so that some are pushed out and come back
    crowd = make_scheduler(core, tokens=240, max_num_batched_tokens=rng.choice([7, 30, 512]), max_num_seqs=5)
    todo, answers = list(range(12)), {}
    rng.shuffle(todo)
    while todo or crowd.running or crowd.waiting:
        for k in [todo.pop() for _ in range(min(len(todo), rng.randrange(3)))]:
            answers[k] = add(crowd, request(k))
        crowd.step()
    assert [answers[k].tokens for k in range(12)] == alone
    assert crowd._pools[0].free == crowd._pools[0].pages
    assert crowd._awaited == {}


def test_pages_run_out_and_the_youngest_waits():
    core = make_core()
    scheduler = make_scheduler(core, tokens=96, enable_prefix_caching=False)
    answers = [add(scheduler, make_answer(core, [k + 3] * 20, max_tokens=40, temperature=0)) for k in range(3)]
    finish(scheduler)
    assert scheduler.statistics.preemptions > 0
    assert [a.tokens for a in answers] == [expected_greedy(core, a) for a in answers]


def test_a_long_prompt_does_not_stall_the_others():
    core = make_core(TWO[0])
    scheduler = make_scheduler(core, max_num_batched_tokens=32)
    quick = add(scheduler, make_answer(core, "hi", (Pull(1.0),), max_tokens=20, temperature=0))
    scheduler.step()
    long = add(scheduler, make_answer(core, list(range(3, 203)), (Pull(1.0),), max_tokens=2, temperature=0))
    for written in range(2, 15):
        scheduler.step()
        assert len(quick.tokens) == written  # a token a step, whatever else is read
    for step in core.backbones[0].steps[1:]:
        assert sum(step) <= 32 + 2
    finish(scheduler)
    assert long.tokens == expected_greedy(core, long)


def test_n_samples_and_equal_system_prompts_are_read_once():
    core = make_core()
    scheduler = make_scheduler(core)
    system = list(range(3, 67))  # four pages
    answers = [add(scheduler, make_answer(core, system, seed=k)) for k in range(4)]
    answers += [add(scheduler, make_answer(core, [*system, 9, 9, k], seed=k)) for k in range(3, 6)]
    finish(scheduler)
    assert scheduler.statistics.tokens_shared == 3 * 48 + 3 * 64
    assert len({tuple(a.tokens) for a in answers}) == 7


def test_the_next_turn_finds_the_answer_before_it():
    core = make_core()
    scheduler = make_scheduler(core)
    first = add(scheduler, make_answer(core, list(range(3, 23)), max_tokens=30))
    finish(scheduler)
    again = add(scheduler, make_answer(core, [*range(3, 23), *first.tokens, 7], temperature=0))
    finish(scheduler)
    assert scheduler.statistics.tokens_shared == 48
    assert again.tokens == expected_greedy(core, again)


def test_prefixes_are_not_shared_where_that_is_off():
    core = make_core()
    scheduler = make_scheduler(core, enable_prefix_caching=False)
    for k in range(3):
        add(scheduler, make_answer(core, list(range(3, 67)), seed=k))
    finish(scheduler)
    assert scheduler.statistics.tokens_shared == 0
    assert core.backbones[0].steps[0] == [64, 64, 64]


def test_a_preference_has_pages_of_its_own():
    core = make_core(TWO[1])
    scheduler = make_scheduler(core)
    prompt = list(range(3, 67))
    pulls = [(Pull(1.0, alpha),) for alpha in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0))]
    answers = []
    for pull in pulls:
        answers.append(add(scheduler, make_answer(core, prompt, pull, temperature=0)))
        finish(scheduler)
    assert [a.tokens for a in answers] == [expected_greedy(core, a) for a in answers]
    assert answers[0].tokens == answers[2].tokens != answers[1].tokens
    # the base's 48 twice, the guide's 64 (its prompt is a token longer) once
    assert scheduler.statistics.tokens_shared == 48 + 48 + 64


def test_finished_and_cancelled_answers_leave_at_once():
    core = make_core(TWO[0])
    scheduler = make_scheduler(core)
    short = add(scheduler, make_answer(core, "a", (Pull(1.0),), max_tokens=1))
    long = add(scheduler, make_answer(core, "b", (Pull(1.0),), max_tokens=9))
    scheduler.step()
    assert short.finished
    assert scheduler.running == [long]
    scheduler.step()
    assert core.backbones[0].steps[-1] == [1, 1]
    long.cancelled = True
    waiting = add(scheduler, make_answer(core, "c", (Pull(0.0),), max_tokens=1))
    scheduler.step()
    assert scheduler.running == []
    assert waiting.finished
    assert core.backbones[0].steps[-1] == [1]


def test_a_paused_answer_is_not_written_and_lends_its_pages():
    core = make_core()
    scheduler = make_scheduler(core, tokens=64)
    paused = add(scheduler, make_answer(core, [7] * 20, max_tokens=20, temperature=0))
    scheduler.step()
    paused.wanted = False
    other = add(scheduler, make_answer(core, [8] * 30, max_tokens=20, temperature=0))
    finish(scheduler)
    assert (len(paused.tokens), other.finished) == (1, True)
    paused.wanted = True
    finish(scheduler)
    assert paused.tokens == expected_greedy(core, paused)


def test_nan_ends_one_answer_and_not_its_neighbour(monkeypatch):
    core = make_core()
    scheduler = make_scheduler(core)
    bad = add(scheduler, make_answer(core, [9], temperature=0))
    good = add(scheduler, make_answer(core, [8], temperature=0))
    run = core.backbones[0].run

    def poisoned(spans):
        logits = run(spans)
        logits[[i for i, span in enumerate(spans) if span.start == 0 and span.tokens == [9]]] = float("nan")
        return logits

    monkeypatch.setattr(core.backbones[0], "run", poisoned)
    finish(scheduler)
    assert "NaN" in str(bad.error)
    assert "base 'mock'" in str(bad.error)
    assert good.tokens == expected_greedy(core, good)


def test_guides_on_their_own_backbone_are_stepped_beside_the_base():
    core = make_core(MockGuide("small", backbone=1, slot=None), backbones=2)
    scheduler = make_scheduler(core)
    answer = add(scheduler, make_answer(core, "hello", (Pull(2.0),), temperature=0))
    finish(scheduler)
    assert answer.tokens == expected_greedy(core, answer)
    assert len(core.backbones[0].steps) == len(core.backbones[1].steps) == 8


def test_what_does_not_fit_is_refused_when_it_is_added():
    core = make_core()
    scheduler = make_scheduler(core, tokens=64)
    with pytest.raises(PromptTooLongError, match=r"80 places.*cache has 64.*kv_cache_memory_gib"):
        add(scheduler, make_answer(core, [7] * 50, max_tokens=20))
    with pytest.raises(ConfigError, match="kv_cache_memory_gib"):
        make_scheduler(core, kv_cache_memory_gib=1e-9)


def test_the_memory_plan_counts_every_stream():
    core = make_core(MockGuide("a"), MockGuide("b", backbone=1, slot=None), backbones=2)
    # 10 pages of tokens: for base and guide a 2·10 pages on backbone 0, for b 10 on backbone 1, 1,024 bytes each
    scheduler = make_scheduler(core, kv_cache_memory_gib=30 * 1024 / 2**30, max_num_seqs=100)
    plan = scheduler.plan
    assert plan.pages == (21, 11)
    assert plan.tokens == 160
    assert plan.kv_cache == 32 * 1024
    assert plan.logits == 100 * 3 * 300 * 4
    assert plan.weights == (60 + 6) * 4
    assert "160 tokens" in str(plan)


def test_the_last_token_waits_for_the_slowest_stream():
    core = make_core(TWO[0])
    scheduler = make_scheduler(core, max_num_batched_tokens=16)
    answer = make_answer(core, [7], (Pull(1.0),), temperature=0, max_tokens=2)
    answer.prompts[1] = [3] * 60
    answer.rows[1].tokens = [3] * 60
    add(scheduler, answer)
    finish(scheduler)
    assert core.backbones[0].steps[:5] == [[16], [16], [16], [1, 12], [1, 1]]
    assert answer.tokens == expected_greedy(core, answer)
