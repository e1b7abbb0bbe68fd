"""What is noted of tokens: the same numbers while writing and while reading, and never a change of the text."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.mocks import MockGuide, add, finish, make_answer, make_core, make_scheduler
from engine.worlds import CHAT
from trimtab.engine.guidance import Pull
from trimtab.engine.noting import voices
from trimtab.engine.readings import Reading
from trimtab.engine.results import Watch
from trimtab.errors import DataError
from trimtab.models import VocabularyMap

ALL = Watch(top=3, base=True, objectives=True)
PLAIN = MockGuide("plain", slot=0, objectives=("x",))
MIXED = MockGuide("mixed", slot=1, conditioned=True, objectives=("x", "y"))
PULLS = (Pull(0.7), Pull(0.5, (0.25, 0.75)))


def written(core, pulls, watch, *, scheduler=None, **options):
    scheduler = scheduler or make_scheduler(core)
    answer = make_answer(core, options.pop("prompt", [7, 8, 9] * 4), pulls, watch=watch, **options)
    finish(add(scheduler, answer) and scheduler)
    assert [pool.free for pool in scheduler._pools] == [pool.pages for pool in scheduler._pools]
    return answer


def by_hand(core, answer):
    """What is to be noted of each token of a mock answer, from the models alone."""
    found = []
    for i, token in enumerate(answer.tokens):
        base = core.backbones[0].logits([*answer.prompts[0], *answer.tokens[:i]], None, None)
        guides, objectives, z = {}, {}, base
        for guide, pull in zip(core.guides, answer.pulls, strict=True):
            text = [5, *answer.prompts[0], *answer.tokens[:i]]
            say = lambda mark, g=guide, t=text: g.vocabulary.gather(core.backbones[g.backbone].logits(t, g.slot, mark))  # noqa: E731
            own = say(pull.alpha)
            z = z + pull.weight * own if pull.weight else z
            guides[guide.name] = own.log_softmax(-1)[token].item()
            if guide.conditioned:
                for name, mark in zip(guide.objectives, ((1.0, 0.0), (0.0, 1.0)), strict=True):
                    objectives[f"{guide.name}/{name}"] = say(mark).log_softmax(-1)[token].item()
            else:
                objectives[f"{guide.name}/{guide.objectives[0]}"] = guides[guide.name]
        z, base = z.log_softmax(-1), base.log_softmax(-1)
        terms = torch.where(z == -math.inf, 0.0, z.exp() * (z - base))
        found.append((z, base, terms.sum().item(), guides, objectives))
    return found


def check(core, answer, notes):
    """The notes are those by hand; a guide that did not know a token may be missing from then on."""
    assert [n.token_id for n in notes] == answer.tokens
    for noted, (z, base, kl, guides, objectives) in zip(notes, by_hand(core, answer), strict=True):
        token = noted.token_id
        assert noted.log_prob == pytest.approx(z[token].item(), abs=1e-5)
        assert [t for t, _ in noted.top] == z.topk(3).indices.tolist()
        assert [p for _, p in noted.top] == pytest.approx(z.topk(3).values.tolist(), abs=1e-5)
        assert noted.base_log_prob == pytest.approx(base[token].item(), abs=1e-5)
        assert [t for t, _ in noted.base_top] == base.topk(3).indices.tolist()
        assert noted.kl == pytest.approx(kl, abs=1e-5)
        assert noted.guides == pytest.approx({name: guides[name] for name in noted.guides}, abs=1e-5)
        named = {(label if "/" in label else _owner(core, label)): value for label, value in noted.objectives.items()}
        assert named == pytest.approx({name: objectives[name] for name in named}, abs=1e-5)


def _owner(core, label):
    return next(f"{guide.name}/{label}" for guide in core.guides if label in guide.objectives)


@pytest.mark.parametrize("pulls", [PULLS, (Pull(0.0), PULLS[1]), (PULLS[0], Pull(0.0, (0.25, 0.75)))])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_notes_by_hand_and_the_text_is_that_without_them(pulls, temperature):
    core = make_core(PLAIN, MIXED)
    answer = written(core, pulls, ALL, temperature=temperature)
    assert answer.tokens == written(core, pulls, None, temperature=temperature).tokens
    check(core, answer, answer.noted)
    assert all(n.guides.keys() == {"plain", "mixed"} for n in answer.noted)
    assert all(n.objectives.keys() == {"plain/x", "mixed/x", "y"} for n in answer.noted)


@pytest.mark.parametrize("budget", [512, 9])
def test_reading_notes_what_writing_noted(budget):
    core = make_core(PLAIN, MIXED)
    pulls = (PULLS[0], Pull(0.0, (0.25, 0.75)))
    answer = written(core, pulls, ALL, temperature=0.8, max_tokens=30)
    reading = Reading(core, answer.prompts, answer.tokens, pulls, {}, watch=ALL)
    scheduler = make_scheduler(core, max_num_batched_tokens=budget)
    scheduler.add(reading, tokens=30)
    finish(scheduler)
    assert reading.noted == list(answer.noted)
    assert reading.combined == [n.log_prob for n in answer.noted]
    assert reading.base == [n.base_log_prob for n in answer.noted]


def test_only_what_is_asked_for_is_noted():
    core = make_core(PLAIN, MIXED)
    for watch, base, kl, top, guides in (
        (Watch(), False, False, 0, 0),
        (Watch(top=2), False, False, 2, 0),
        (Watch(base=True), True, True, 0, 0),
        (Watch(objectives=True), False, False, 0, 2),
    ):
        answer = written(core, PULLS, watch)
        for noted in answer.noted:
            assert (noted.base_log_prob is not None, noted.kl is not None) == (base, kl)
            assert (len(noted.top), len(noted.guides)) == (top, guides)
            assert len(noted.base_top) == (top if base else 0)
    assert not written(core, PULLS, None).noted


def test_objectives_are_labelled_by_guide_where_several_have_them():
    mixture = MockGuide("mixture", objectives=("x", "z"))
    found = voices([PLAIN, MIXED, mixture], [*PULLS, Pull(1.0)])
    assert [(v.guide, v.objective) for v in found] == [
        ("plain", "plain/x"), ("mixed", None), (None, "mixed/x"), (None, "y"), ("mixture", None),
    ]  # fmt: skip
    assert [v.objective for v in voices([PLAIN], [Pull(0.0)])] == ["x"]


def test_a_row_that_is_heard_twice_is_read_once():
    core = make_core(MIXED)
    answer = make_answer(core, [7, 8], (Pull(0.5, (1.0, 0.0)),), watch=ALL)
    assert len(answer.rows) == 3  # base, the first objective which is the preference too, the second
    assert [row.watches for row in answer.rows] == [False, False, True]


def deaf_guide(name="deaf"):
    index = torch.arange(300)
    index[100:] = -1
    return MockGuide(name, slot=2, objectives=("z",), vocabulary=VocabularyMap(300, 300, index))


def test_a_watching_guide_that_does_not_know_a_token_leaves_and_the_answer_goes_on():
    core = make_core(PLAIN, deaf_guide())
    pulls = (Pull(0.7), Pull(0.0))
    for seed in range(5):
        answer = written(core, pulls, ALL, seed=seed, max_tokens=20)
        assert answer.tokens == written(core, pulls, None, seed=seed, max_tokens=20).tokens
        unknown = next(i for i, token in enumerate(answer.tokens) if token >= 100)
        assert ["deaf" in n.guides for n in answer.noted] == [i < unknown for i in range(20)]
        assert ["z" in n.objectives for n in answer.noted] == [i < unknown for i in range(20)]
        assert all("plain" in n.guides for n in answer.noted)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("draft", [1, None])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_drafted_tokens_are_noted_too_and_watching_changes_no_text(rule, draft, temperature):
    guides = (PLAIN, MockGuide("b", backbone=1, slot=0, objectives=("y",)), deaf_guide())
    pulls = (Pull(0.5), Pull(0.8), Pull(0.0))
    options = {"temperature": temperature, "max_tokens": 25, "top_k": 4, "rule": rule}
    config = {"acceptance": rule} | ({"speculation": "ngram"} if draft is None else {})

    def scheduler():
        core = make_core(*guides, backbones=2, draft=draft)
        core.backbones[0].narrow = draft is None
        return core, make_scheduler(core, **config)

    core, with_ = scheduler()
    watched = written(core, pulls, ALL, scheduler=with_, **options)
    check(core, watched, watched.noted)
    core, without = scheduler()
    assert watched.tokens == written(core, pulls, None, scheduler=without, **options).tokens
    assert with_.statistics.drafted == without.statistics.drafted > 0
    known = next((i for i, token in enumerate(watched.tokens) if token >= 100), 25)
    assert ["deaf" in n.guides for n in watched.noted] == [i < known for i in range(25)]


@pytest.mark.parametrize("seed", range(4))
def test_guidance_changes_under_way_and_everyone_goes_on_watching(seed):
    core = make_core(PLAIN, MIXED)
    rng = random.Random(seed)
    scheduler = make_scheduler(core, tokens=rng.choice([0, 200]))
    others = [add(scheduler, make_answer(core, [k] * 30, (Pull(0.0),) * 2, seed=k, max_tokens=30)) for k in range(3, 6)]
    answer = add(scheduler, make_answer(core, "the quick brown fox", PULLS, watch=ALL, max_tokens=40, seed=seed))
    asked = []
    while scheduler.step():
        if rng.random() < 0.2 and not answer.finished:
            mix = rng.randrange(9) / 8
            pulls = (Pull(rng.choice([0.0, 0.5])), Pull(rng.choice([0.0, 0.7]), (mix, 1 - mix)))
            scheduler.replace_rows(answer, answer.change(pulls, scheduler.room_for))
            asked.append((len(answer.tokens), pulls))
    assert asked
    alone = make_scheduler(core)
    plain = add(alone, make_answer(core, "the quick brown fox", PULLS, max_tokens=40, seed=seed))
    for at, pulls in asked:
        while len(plain.tokens) < at:
            alone.step()
        alone.replace_rows(plain, plain.change(pulls))
    finish(alone)
    assert answer.tokens == plain.tokens
    notes = list(answer.noted)
    parts = [(0, PULLS), *asked]
    for (begin, pulls), end in zip(parts, [*(at for at, _ in asked), 40], strict=True):
        part = make_answer(core, "the quick brown fox", pulls)
        part.tokens = answer.tokens
        check_part(core, part, notes, begin, end)
    assert all(len(n.guides) == 2 and len(n.objectives) == 3 for n in notes)
    assert all(other.finished for other in others)
    assert [pool.free for pool in scheduler._pools] == [pool.pages for pool in scheduler._pools]


def check_part(core, answer, notes, begin, end):
    for noted, (z, _, _, guides, _) in list(zip(notes, by_hand(core, answer), strict=True))[begin:end]:
        assert noted.log_prob == pytest.approx(z[noted.token_id].item(), abs=1e-5)
        assert noted.guides == pytest.approx(guides, abs=1e-5)


def test_a_salt_separates_what_is_shared():
    core = make_core(PLAIN)
    prompt = list(range(3, 67))
    scheduler = make_scheduler(core)
    answers = [make_answer(core, prompt, (Pull(1.0),), seed=k, salt=s) for k, s in enumerate(["a", "a", "b", None])]
    for answer in answers:
        add(scheduler, answer)
    scheduler.step()
    assert len(scheduler.running) == 3  # the second waits for the first's pages, the others for nobody's
    finish(scheduler)
    assert [a.cached_tokens for a in answers] == [0, 48, 0, 0]
    again = add(scheduler, make_answer(core, prompt, (Pull(1.0),), salt="b"))
    finish(scheduler)
    assert again.cached_tokens == 48
    assert scheduler.statistics.tokens_shared == 48 + 64 + 48 + 64


def test_cached_tokens_are_those_of_the_first_start():
    core = make_core()
    scheduler = make_scheduler(core, tokens=96)
    answers = [add(scheduler, make_answer(core, [k + 3] * 20, max_tokens=40)) for k in range(3)]
    finish(scheduler)
    assert scheduler.statistics.preemptions > 0
    assert [a.cached_tokens for a in answers] == [0, 0, 0]


@pytest.mark.parametrize("guidance", [{"a": 1, "b": 0}, {"a": 0.7, "b": -0.5}, 0])
def test_the_engine_notes_what_score_says(world, guidance):
    engine = world.engine
    for prompt in (CHAT, [5, 6, 7, 8]):
        (answer,) = engine.answers(prompt, guidance=guidance, sampling={"temperature": 0, "max_tokens": 8}, watch=ALL)
        engine._write([answer], 1, None)
        score = engine.score(prompt, answer.tokens, guidance=guidance)
        reading = engine.reading(prompt, answer.tokens, guidance=guidance, watch=ALL)
        engine.parts[1].add(reading, tokens=8)
        engine.parts[1].drive([reading])
        assert [n.log_prob for n in reading.noted] == pytest.approx(score.combined, abs=1e-4)
        for written, read, base in zip(answer.noted, reading.noted, score.base, strict=True):
            assert written.log_prob == pytest.approx(read.log_prob, abs=1e-4)
            assert written.kl == pytest.approx(read.kl, abs=1e-4)
            assert written.guides == pytest.approx(read.guides, abs=1e-4)
            assert written.base_log_prob == pytest.approx(base, abs=1e-4)
        for name in "ab":
            assert [n.guides[name] for n in reading.noted] == pytest.approx(score.guides[name], abs=1e-4)
            assert [n.objectives[f"objective-{name}"] for n in answer.noted] == pytest.approx(
                score.guides[name], abs=1e-4
            )
        if guidance == 0:
            assert all(n.kl == 0 for n in answer.noted)


def test_ids_are_prompts(world):
    engine = world.engine
    text = "the quick"
    ids = engine.base.tokenizer(text)["input_ids"]
    options = {"temperature": 0, "max_tokens": 6}
    expected = engine.generate(text, **options)[0]
    assert engine.generate(ids, **options) == [expected]
    assert [a.text for a in engine.generate([ids, text, ids], **options)] == [expected.text] * 3
    assert "".join(engine.stream(ids, **options)) == expected.text
    assert engine.score(ids, [9, 8]).combined == pytest.approx(engine.score(text, [9, 8]).combined)
    for wrong in ([5, engine.base.vocabulary_size], [-1]):
        for call in (lambda: engine.generate(wrong), lambda: engine.score("x", wrong)):  # noqa: B023
            with pytest.raises(DataError, match="ids from 0 to"):
                call()
    stream = engine.stream(ids, guidance=0, max_tokens=6, temperature=0)
    next(stream)
    stream.set_guidance(1.0)  # the guide that joins reads the ids
    assert len("".join(stream)) >= 0
