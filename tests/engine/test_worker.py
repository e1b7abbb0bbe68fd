"""The engine's thread: requests from everywhere, cancels and changes at any moment, faults, and its end."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from engine.mocks import MockGuide, finish, make_answer, make_core, make_scheduler
from engine.test_watching import ALL
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import Pull
from trimtab.engine.readings import Reading
from trimtab.engine.worker import Worker
from trimtab.errors import ClosingError, EngineFailure, GuidanceError, PromptTooLongError

PLAIN = MockGuide("a", slot=0)
TWO = (PLAIN, MockGuide("b", slot=1, conditioned=True))
PULLS = (Pull(0.7), Pull(0.5, (0.25, 0.75)))
SECONDS = 20


class Desk:
    """Who takes the news of a worker: puts them together by request and says when one has ended."""

    def __init__(self, core=None, **config):
        self.core = core or make_core(*TWO)
        self.scheduler = make_scheduler(self.core, **config)
        self.driver = Driver(self.scheduler)
        self.worker = Worker(SimpleNamespace(parts=(self.core, self.driver)), self.deliver)
        self.got, self.ended, self.threads = {}, queue.Queue(), set()

    def deliver(self, news):
        self.threads.add(threading.current_thread().name)
        for item in news:
            text, tokens, noted = self.got.setdefault(item.request, ([], [], []))
            text.append(item.text)
            tokens += item.token_ids
            noted += item.noted
            if item.finished:
                self.ended.put(item.request)

    def wait(self, count=1):
        return [self.ended.get(timeout=SECONDS) for _ in range(count)]

    def text(self, request):
        return "".join(self.got[request][0])

    def tokens(self, request):
        return self.got[request][1]

    def all_pages_are_free(self):
        return [p.free for p in self.scheduler._pools] == [p.pages for p in self.scheduler._pools]

    def answer(self, prompt="hello", pulls=PULLS, **options):
        return make_answer(self.core, prompt, pulls, **options)

    def __enter__(self):
        self.worker.start()
        return self

    def __exit__(self, *_):
        self.worker.stop()
        assert not self.worker.alive
        assert self.all_pages_are_free()


def alone(core, *args, **options):
    scheduler = make_scheduler(core)
    answer = make_answer(core, *args, **options)
    scheduler.add(answer, tokens=answer.limit)
    finish(scheduler)
    return answer


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_requests_from_many_threads():
    with Desk() as desk:
        answers = {
            k: desk.answer([k % 7 + 3] * (k % 40 + 1), seed=k, watch=ALL if k % 3 == 0 else None) for k in range(40)
        }
        threads = [
            threading.Thread(target=lambda ks=range(start, 40, 4): [desk.worker.submit([answers[k]]) for k in ks])
            for start in range(4)
        ]
        for thread in threads:
            thread.start()
        desk.wait(40)
        for k, answer in answers.items():
            expected = alone(desk.core, [k % 7 + 3] * (k % 40 + 1), PULLS, seed=k)
            assert desk.tokens(answer) == answer.tokens == expected.tokens
            assert desk.text(answer) == expected.text.text
            notes = desk.got[answer][2]
            assert [n.token_id for n in notes] == (answer.tokens if k % 3 == 0 else [])
    assert desk.threads == {"trimtab-engine"}


def test_each_piece_of_news_has_as_many_notes_as_tokens():
    sizes = []
    with Desk(make_core(PLAIN, backbones=2, draft=1, error=0.0)) as desk:
        deliver = desk.deliver
        desk.worker._deliver = lambda news: (
            sizes.extend((len(n.token_ids), len(n.noted)) for n in news),
            deliver(news),
        )
        desk.worker.submit([desk.answer([7] * 5, (Pull(0.3),), watch=ALL, temperature=0, max_tokens=40)])
        desk.wait()
    assert sum(tokens for tokens, _ in sizes) == 40
    assert max(tokens for tokens, _ in sizes) > 1
    assert all(tokens == notes for tokens, notes in sizes)


def test_a_cancelled_answer_holds_no_page_after_one_step():
    with Desk() as desk:
        gone = desk.answer([9] * 100, max_tokens=3000)
        stays = desk.answer([8] * 40, max_tokens=60)
        desk.worker.submit([gone, stays])
        until(lambda: len(gone.tokens) > 2)
        steps = desk.scheduler.statistics.steps
        desk.worker.cancel([gone])
        until(lambda: desk.scheduler.statistics.steps > steps + 1 or not desk.worker.running)
        assert all(not row.pages for row in gone.rows)
        desk.wait(2)
        assert gone.finish_reason is None and gone.error is None
        assert desk.tokens(gone) == gone.tokens
        assert stays.tokens == alone(desk.core, [8] * 40, PULLS, max_tokens=60).tokens


def test_cancelled_before_its_first_step_and_after_its_last():
    with Desk() as desk:
        answer = desk.answer()
        answer.cancelled = True
        desk.worker.submit([answer])
        assert desk.wait() == [answer]
        assert answer.tokens == []
        other = desk.answer()
        desk.worker.submit([other])
        desk.wait()
        desk.worker.cancel([other])
        assert not other.cancelled


@pytest.mark.parametrize(
    "new", [(Pull(0.0), Pull(1.5, (1.0, 0.0))), (Pull(-1.0), Pull(0.0, (0.5, 0.5))), (Pull(2.0), PULLS[1])]
)
def test_a_change_acts_from_the_next_token_on(new):
    weights = {"a": new[0].weight}
    weights |= {f"b/{name}": new[1].weight * share for name, share in zip("xy", new[1].alpha, strict=True)}
    with Desk() as desk:
        answers = [desk.answer(seed=k, max_tokens=120) for k in range(2)]
        desk.worker.submit(answers)
        until(lambda: len(answers[1].tokens) > 5)
        at = desk.worker.change(answers, weights).result(SECONDS)
        desk.wait(2)
        assert 5 < at < 120
        for k, answer in enumerate(answers):
            scheduler = make_scheduler(desk.core)
            expected = make_answer(desk.core, "hello", PULLS, seed=k, max_tokens=120)
            scheduler.add(expected, tokens=120)
            while len(expected.tokens) < at:
                scheduler.step()
            scheduler.replace_rows(expected, expected.change(new))
            finish(scheduler)
            # the second may be a token behind the first, for it waits for the first one's pages
            assert answer.tokens[: at - 2] == expected.tokens[: at - 2]
            if k == 0:
                assert answer.tokens == expected.tokens


def test_a_change_that_cannot_be_says_so_and_changes_nothing():
    with Desk() as desk:
        answer = desk.answer(max_tokens=100)
        desk.worker.submit([answer])
        with pytest.raises(GuidanceError, match="nobody"):
            desk.worker.change([answer], {"nobody": 1.0}).result(SECONDS)
        desk.wait()
        assert answer.tokens == alone(desk.core, "hello", PULLS, max_tokens=100).tokens
        with pytest.raises(GuidanceError, match="finished"):
            desk.worker.change([answer], 1.0).result(SECONDS)


def test_one_that_does_not_wait_for_its_change_does_no_harm():
    with Desk() as desk:
        answer = desk.answer(max_tokens=50)
        with desk.driver.between_steps():
            desk.worker.submit([answer])
            future = desk.worker.change([answer], 0.0)
            future.cancel()
        desk.wait()
        assert desk.worker.alive
        with pytest.raises((CancelledError, GuidanceError)):
            future.result(SECONDS)


def test_a_guide_that_joins_and_does_not_fit_the_cache_is_refused():
    core = make_core(*TWO)
    with Desk(core, kv_cache_memory_gib=3 * 3 * 1024 / 2**30) as desk:  # nine pages
        answer = desk.answer([7] * 60, (Pull(0.0), Pull(0.0, (0.5, 0.5))), max_tokens=60)
        answer.limit = min(answer.limit, desk.scheduler.room(answer))
        desk.worker.submit([answer])
        until(lambda: len(answer.tokens) > 5)
        with pytest.raises(PromptTooLongError):
            desk.worker.change([answer], 1.0).result(SECONDS)
        desk.wait()
        assert answer.finish_reason == "length"
        assert answer.tokens == alone(core, [7] * 60, (Pull(0.0), Pull(0.0, (0.5, 0.5))), max_tokens=60).tokens


def test_a_failing_step_ends_what_runs_and_nothing_else(monkeypatch):
    with Desk() as desk:
        free = [pool.free for pool in desk.scheduler._pools]
        backbone, run = desk.core.backbones[0], desk.core.backbones[0].run
        for number in range(3):
            answers = [desk.answer([k + 3] * 50, seed=k, max_tokens=500) for k in range(3)]
            desk.worker.submit(answers)
            until(lambda: len(answers[2].tokens) > 3)  # noqa: B023

            def fail(spans):
                backbone.run = run
                raise RuntimeError("the device is gone")

            backbone.run = fail
            desk.wait(3)
            for answer in answers:
                assert isinstance(answer.error, EngineFailure)
                assert "device" not in str(answer.error)
                assert isinstance(answer.error.__cause__, RuntimeError)
            assert len({id(answer.error) for answer in answers}) == 3
            assert desk.worker.failures == number + 1
            assert [pool.free for pool in desk.scheduler._pools] == free
            again = desk.answer("hello", seed=number)
            desk.worker.submit([again])
            desk.wait()
            assert again.tokens == alone(desk.core, "hello", PULLS, seed=number).tokens


KINDS = [{}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, {"temperature": 0}, {"min_tokens": 3, "logit_bias": {5: 1.0}}]


@pytest.mark.parametrize("options", KINDS)
def test_an_error_of_one_request_is_its_own(options):
    core = make_core(*TWO)
    with Desk(core) as desk:
        bad = desk.answer("bad", seed=1, max_tokens=20, **options)
        good = desk.answer("good", seed=2, max_tokens=20, **options)
        take = bad.text.push
        bad.text.push = lambda token, **kw: take(token, **kw) if len(bad.tokens) < 5 else 1 / 0
        nan = desk.answer([11] * 9, seed=3, max_tokens=20, **options)
        logits = core.backbones[0].logits
        core.backbones[0].logits = lambda text, slot, mark: (
            logits(text, slot, mark) * (float("nan") if list(text[:9]) == [11] * 9 and len(text) > 12 else 1)
        )
        desk.worker.submit([bad, good, nan])
        desk.wait(3)
        assert isinstance(bad.error, EngineFailure)
        assert "NaN" in str(nan.error) and len(nan.tokens) == 4
        assert good.tokens == alone(make_core(*TWO), "good", PULLS, seed=2, max_tokens=20, **options).tokens
        assert desk.worker.failures == 0


def test_who_does_not_take_news_does_not_end_the_engine():
    with Desk() as desk:
        deliver, desk.worker._deliver = desk.worker._deliver, lambda news: 1 / 0
        desk.worker.submit([desk.answer(max_tokens=1)])
        until(lambda: not desk.worker._open and desk.worker.turns)
        desk.worker._deliver = deliver
        desk.worker.submit([desk.answer()])
        desk.wait()


def test_an_answer_too_long_for_the_cache_gets_its_own_error():
    with Desk(tokens=64) as desk:
        long = desk.answer([7] * 60, max_tokens=300)
        short = desk.answer([7] * 20)
        desk.worker.submit([long, short])
        desk.wait(2)
        assert isinstance(long.error, PromptTooLongError)
        assert short.finish_reason == "length"


def test_readings_keep_their_notes():
    with Desk() as desk:
        answer = alone(desk.core, "hello", PULLS, watch=ALL, max_tokens=100)
        reading = Reading(desk.core, answer.prompts, answer.tokens, PULLS, {}, watch=ALL)
        desk.worker.submit([reading])
        desk.wait()
        assert reading.noted == list(answer.noted) == desk.got[reading][2]


def test_an_idle_worker_does_nothing():
    with Desk() as desk:
        desk.worker.submit([desk.answer()])
        desk.wait()
        turns = desk.worker.turns
        time.sleep(0.1)
        assert desk.worker.turns == turns


def test_stopping_leaves_nobody_waiting():
    desk = Desk()
    with desk:
        answer = desk.answer(max_tokens=4000)
        desk.worker.submit([answer])
        until(lambda: len(answer.tokens) > 3)
        with desk.driver.between_steps():
            late = desk.answer("late")
            desk.worker.submit([late])
            future = desk.worker.change([answer], 0.5)
            stopper = threading.Thread(target=desk.worker.stop)
            stopper.start()
            until(lambda: desk.worker._stopping)
        stopper.join(SECONDS)
        assert set(desk.wait(2)) == {answer, late}
        assert isinstance(answer.error, ClosingError) and isinstance(late.error, ClosingError)
        with pytest.raises(ClosingError):
            future.result(SECONDS)
    with pytest.raises(ClosingError):
        desk.worker.submit([desk.answer()])
    with pytest.raises(ClosingError):
        desk.worker.change([answer], 0.5).result(SECONDS)


def test_no_page_is_lost_by_a_thousand_requests_cancels_and_faults():
    core = make_core(PLAIN)
    rng = random.Random(1)
    with Desk(core, tokens=400, max_num_seqs=12) as desk:
        backbone, run = core.backbones[0], core.backbones[0].run
        steps = itertools.count(1)

        def sometimes(spans):
            if next(steps) % 20 == 0:
                raise RuntimeError("fault")
            return run(spans)

        backbone.run = sometimes
        begin = [rng.randrange(3, 300) for _ in range(40)]
        sent = []
        for k in range(1000):
            prompt = [*begin[: rng.choice([0, 20, 40])], rng.randrange(3, 300)]
            watch = ALL if rng.random() < 0.3 else None
            pulls = (Pull(rng.choice([0.0, 1.0])),)
            sent.append(desk.answer(prompt, pulls, seed=k, max_tokens=rng.randrange(1, 4), watch=watch))
            desk.worker.submit(sent[-1:])
            if rng.random() < 0.2:
                desk.worker.cancel([rng.choice(sent[-20:])])
            if rng.random() < 0.05:
                desk.worker.change([sent[-1]], rng.random())
        ended = [desk.ended.get(timeout=60) for _ in range(1000)]
        assert set(ended) == set(sent)
        assert next(steps) > 20
        assert desk.scheduler._awaited == {}
        assert all(not row.pages for answer in sent for row in [*answer.rows, *answer.left])
        assert desk.all_pages_are_free()
        kinds = {type(a.error).__name__ for a in sent}
        assert kinds == {"NoneType", "EngineFailure"}
