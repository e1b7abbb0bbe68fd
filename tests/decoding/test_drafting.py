"""Drafting: the n-gram index against a search by hand, and the draft length against the formula."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decoding.drafting import Costs, DraftLength, NGramDrafter, best_length, expected_tokens
from trimtab.errors import ConfigError

FREE = Costs(0.0, (1.0, 1.0))


# -- n-grams --


def test_what_followed_is_proposed():
    drafter = NGramDrafter([5, 6, 7, 8, 9, 5, 6])
    assert drafter.draft(3) == [7, 8, 9]
    assert drafter.draft(1) == [7]
    assert drafter.draft(0) == []


def test_nothing_is_proposed_where_nothing_repeats():
    assert NGramDrafter([1, 2, 3]).draft(4) == []
    assert NGramDrafter().draft(4) == []


def test_the_longest_suffix_decides_then_the_latest_place():
    #            a  b  c  →9   b  c  →8   a  b  c
    text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3]
    assert NGramDrafter(text, longest=3).draft(1) == [9]
    assert NGramDrafter(text, longest=2).draft(1) == [8]


def test_a_repetition_goes_on_past_the_end_of_the_text():
    assert NGramDrafter([4, 1, 2, 1, 2]).draft(5) == [1, 2, 1, 2, 1]
    assert NGramDrafter([3, 3, 3]).draft(4) == [3, 3, 3, 3]


def _search(text, longest, shortest, count):
    for size in range(min(longest, len(text)), shortest - 1, -1):
        suffix = text[len(text) - size :]
        for place in range(len(text) - 1, size - 1, -1):
            if text[place - size : place] == suffix:
                found = list(text)
                for i in range(count):
                    found.append(found[place + i])
                return found[len(text) :]
    return []


@given(
    text=st.lists(st.integers(0, 3), max_size=40),
    cut=st.integers(0, 40),
    longest=st.integers(1, 4),
    shortest=st.integers(1, 4),
    count=st.integers(1, 8),
)
def test_the_index_finds_what_a_search_finds(text, cut, longest, shortest, count):
    longest = max(longest, shortest)
    drafter = NGramDrafter(text[:cut], longest=longest, shortest=shortest)
    drafter.extend(text[cut:])
    assert drafter.draft(count) == _search(text, longest, shortest, count)
    assert len(drafter) == len(text)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="1 ≤ shortest ≤ longest"):
        NGramDrafter(longest=1, shortest=2)


# -- what a length is worth --


def test_expected_tokens_by_hand():
    assert expected_tokens(0.5, 0) == 1
    assert expected_tokens(0.5, 2) == pytest.approx(1.75)  # 1 + 1/2 + 1/4
    assert expected_tokens(0, 3) == 1
    assert expected_tokens(1, 3) == 4


def test_costs_by_hand():
    costs = Costs(0.25, (1.0, 1.1, 1.3), round=0.05)
    assert costs.of(0) == 1
    assert costs.of(1) == pytest.approx(0.05 + 0.25 + 1.1)
    assert costs.of(4) == pytest.approx(0.05 + 1.0 + 1.3 + 2 * 0.2)
    reads = Costs.of_reads(4e9, 1e9, position=0.02)
    assert reads.of(3) == pytest.approx(3 * 0.25 + 1.06)


def test_best_length_by_hand():
    # a = 0.8, draft 0.2: m = 1: 1.8/1.2 = 1.5; 2: 2.44/1.4 = 1.743; 3: 2.952/1.6 = 1.845; 4: 3.362/1.8 = 1.868;
    # 5: 3.689/2 = 1.845
    assert best_length(0.8, Costs(0.2), 8) == 4
    assert best_length(0.8, Costs(0.2), 3) == 3
    # one draft costs as much as it brings: not worth it
    assert best_length(0.5, Costs(0.5), 8) == 0
    assert best_length(0.5, Costs(0.49), 8) == 1


def test_better_drafts_are_longer_and_dearer_ones_shorter():
    rates = [i / 50 for i in range(51)]
    prices = [i / 40 for i in range(41)]
    by_rate = [best_length(a, Costs(0.15, (1, 1.02)), 12) for a in rates]
    by_price = [best_length(0.75, Costs(c), 12) for c in prices]
    assert by_rate == sorted(by_rate) and by_rate[0] == 0 and by_rate[-1] == 12
    assert by_price == sorted(by_price, reverse=True) and by_price[0] == 12 and by_price[-1] == 0


@given(a=st.floats(0, 1), draft=st.floats(0, 2), slope=st.floats(0, 1), most=st.integers(0, 10))
def test_no_length_is_worth_more_than_the_best(a, draft, slope, most):
    costs = Costs(draft, (1.0, 1.0 + slope))
    values = [expected_tokens(a, m) / costs.of(m) for m in range(most + 1)]
    best = best_length(a, costs, most)
    assert values[best] == max(values) and best == values.index(max(values))


def test_costs_that_cannot_be_are_refused():
    for bad in (dict(draft=-1), dict(draft=0, verify=(1,)), dict(draft=0, verify=(1, 0)), dict(draft=0, round=-1)):
        with pytest.raises(ConfigError, match="Costs of speculation"):
            Costs(**bad)


# -- the controller --


def _drive(length, kept_of, tokens):
    """Run a request of so many tokens; ``kept_of(m)`` says how many drafts stay. Return the lengths drafted."""
    asked, written = [], 0
    while written < tokens:
        m = length.next()
        kept = kept_of(m)
        length.update(m, kept)
        asked.append(m)
        written += kept + 1
    return asked


def test_the_estimate_by_hand():
    length = DraftLength(FREE, most=4, start=0.5, prior=2, memory=0.5)
    assert length.acceptance == 0.5
    length.update(4, 4)  # 4 of 4: (1 + 4)/(2 + 4)
    assert length.acceptance == pytest.approx(5 / 6)
    length.update(4, 1)  # 1 kept and 1 dropped; what came after says nothing: (1 + 2 + 1)/(2 + 2 + 2)
    assert length.acceptance == pytest.approx(4 / 6)


def test_drafts_that_stay_make_drafts_longer_and_dropped_ones_turn_it_off():
    costs = Costs(0.2, (1.0, 1.02))
    up = _drive(DraftLength(costs, most=8), lambda m: m, 60)
    assert up == sorted(up) and up[-1] == 8
    down = _drive(DraftLength(costs, most=8), lambda m: 0, 31)
    assert down[:10] == sorted(down[:10], reverse=True) and down[-1] == 0


def test_it_probes_ever_more_rarely_while_off():
    asked = _drive(DraftLength(Costs(0.3), probe=4), lambda m: 0, 400)
    off = asked[asked.index(0) :]
    gaps = [len(list(run)) for m, run in itertools.groupby(off) if m == 0]
    assert gaps[:6] == [4, 8, 16, 32, 64, 64]
    assert set(off) == {0, 1}


def test_it_comes_back_where_drafts_begin_to_stay():
    length = DraftLength(Costs(0.3), probe=4)
    _drive(length, lambda m: 0, 40)
    assert length.next() in (0, 1)
    asked = _drive(length, lambda m: m, 120)
    assert asked[-1] >= 4
    start = asked.index(1)
    assert 0 not in asked[start:]  # once a probe is kept it goes on probing until it is sure


def test_a_drafter_with_nothing_to_say_teaches_nothing():
    length = DraftLength(FREE, most=4)
    before = length.acceptance
    for _ in range(100):
        length.update(0, 0)
    assert length.acceptance == before and length.next() == 4


def test_the_speedup_is_that_of_the_length_chosen():
    length = DraftLength(Costs(0.2), most=8, start=0.8, prior=1000)
    assert length.next() == 4
    assert length.speedup == pytest.approx(3.3616 / 1.8, rel=1e-3)
    assert DraftLength(Costs(1.0), most=8, start=0.5).speedup == 1


def test_drafting_can_be_off_for_good():
    assert set(_drive(DraftLength(FREE, most=0, probe=1), lambda m: 0, 50)) == {0}


def test_the_same_history_gives_the_same_lengths():
    kept = [3, 0, 1, 2, 0, 0, 4, 1, 0, 0, 0, 2] * 5
    runs = []
    for _ in range(2):
        length, asked = DraftLength(Costs(0.25, (1.0, 1.05))), []
        for k in kept:
            m = length.next()
            length.update(m, min(k, m))
            asked.append(m)
        runs.append(asked)
    assert runs[0] == runs[1]


def test_options_that_cannot_be_are_refused():
    for bad in (dict(most=-1), dict(start=1), dict(prior=0), dict(memory=0), dict(probe=0)):
        with pytest.raises(ConfigError, match="A draft length needs"):
            DraftLength(FREE, **bad)
