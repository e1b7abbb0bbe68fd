"""Pages: counting, sharing and giving back."""

from __future__ import annotations

import random

import pytest

from trimtab.engine.pages import PagePool, first_key, next_key, pages_for
from trimtab.engine.requests import Row
from trimtab.engine.spans import PAGE


def test_pages_for():
    assert [pages_for(n) for n in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_the_scratch_page_is_never_given_away():
    pool = PagePool(3)
    assert sorted(pool.take() for _ in range(3)) == [1, 2, 3]
    with pytest.raises(IndexError):
        pool.take()


def test_keys_tell_stream_and_every_token_before():
    start = first_key((0, None, None))
    a = next_key(start, range(PAGE))
    assert a == next_key(start, list(range(PAGE)))
    assert a != next_key(first_key((1, 0, None)), range(PAGE))
    assert a != next_key(first_key((0, None, (0.5,))), range(PAGE))
    assert next_key(a, range(PAGE)) != next_key(next_key(start, [9] * PAGE), range(PAGE))


def test_a_page_is_shared_kept_when_idle_and_given_away_last_used_first():
    pool = PagePool(2)
    page = pool.take()
    pool.publish(page, b"one")
    pool.give_back([page])
    assert pool.free == 2
    assert pool.find([b"one", b"two"]) == [page]
    pool.share(page)
    assert pool.free == 1
    other = pool.take()
    pool.publish(other, b"two")
    pool.give_back([page])
    pool.give_back([other])
    assert pool.take() == page  # idle for longer
    assert pool.find([b"one"]) == []
    assert pool.find([b"two"]) == [other]
    assert pool.free == 1


def test_the_end_of_a_sequence_goes_before_its_beginning():
    pool = PagePool(2)
    pages = [pool.take(), pool.take()]
    for page, key in zip(pages, [b"begin", b"end"], strict=True):
        pool.publish(page, key)
    pool.give_back(pages)
    assert pool.take() == pages[1]
    assert pool.find([b"begin"]) == [pages[0]]


def test_rows_that_begin_alike_share_full_pages_but_never_their_last_token():
    pool = PagePool(8)
    text = list(range(2 * PAGE))
    row = Row(0, 0, list(text))
    assert row.reserve(pool, len(text))
    row.read = len(text)
    assert len(row.publish(pool, len(text))) == 2
    twin = Row(0, 0, list(text))
    twin.adopt(pool, pool.find(twin.shareable()))
    assert (twin.read, twin.pages) == (PAGE, row.pages[:1])
    longer = Row(0, 0, [*text, 7])
    assert pool.find(longer.shareable()) == row.pages
    other = Row(1, 0, [*text, 7])
    assert pool.find(other.shareable()) == []


def test_tokens_that_are_not_certain_are_not_published():
    pool = PagePool(8)
    row = Row(0, 0, list(range(PAGE + 4)))
    row.reserve(pool, PAGE + 4)
    row.read = PAGE + 4
    assert row.publish(pool, PAGE - 1) == []
    row.rewind(PAGE - 1)
    row.tokens += [99, 98]
    row.read = PAGE + 1
    keys = row.publish(pool, PAGE + 1)
    assert keys == Row(0, 0, [*range(PAGE - 1), 99]).keys()


def test_no_page_is_lost_or_in_two_hands():
    pool, rng = PagePool(20), random.Random(0)
    rows: list[Row] = []
    for _ in range(500):
        if rows and rng.random() < 0.5:
            rows.pop(rng.randrange(len(rows))).release(pool)
        row = Row(0, 0, [rng.randrange(2)] * (PAGE * rng.randrange(1, 4) + 1))
        row.adopt(pool, pool.find(row.shareable()))
        if not row.reserve(pool, len(row.tokens)):
            row.release(pool)
            continue
        row.read = len(row.tokens)
        row.publish(pool, row.read)
        rows.append(row)
        private = [row.pages[-1] for row in rows]  # the page of the last token is never shared
        assert len(set(private)) == len(private)
        assert pool.free == 20 - len({page for row in rows for page in row.pages})
    for row in rows:
        row.release(pool)
    assert pool.free == 20
