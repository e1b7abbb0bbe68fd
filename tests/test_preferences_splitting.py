"""Splits depend on the first user message alone."""

from __future__ import annotations

import hashlib

import pytest

from trimtab.errors import ConfigError
from trimtab.preferences import Comparison, Label, split_by_hash
from trimtab.preferences.splitting import first_user_message


def compare(prompt):
    return Comparison(prompt, "x", "y", {"h": Label.A})


def test_the_rule_by_hand():
    # The first byte of SHA-256("a") is 0xca = 202, of "b" 0x3e = 62: 62/256 = 0.24 is under a half, 202/256 = 0.79 not.
    assert (hashlib.sha256(b"a").digest()[0], hashlib.sha256(b"b").digest()[0]) == (202, 62)
    a, b = compare("a"), compare("b")
    assert split_by_hash([a, b, a], 0.5) == ([a, a], [b])
    assert split_by_hash([a, b], 0.24) == ([a, b], [])
    assert split_by_hash([a, b], 0.80) == ([], [a, b])


def test_about_the_fraction_is_held_out_and_a_larger_one_holds_out_more():
    data = [compare(f"prompt {i}") for i in range(4000)]
    sizes = {fraction: {c.prompt for c in split_by_hash(data, fraction)[1]} for fraction in (0.1, 0.2)}
    # Binomial: 400 ± 3·√(4000·0.1·0.9) = 400 ± 57.
    assert abs(len(sizes[0.1]) - 400) < 57
    assert sizes[0.1] < sizes[0.2]
    assert {c.prompt for c in split_by_hash(data, 0.1, salt="another")[1]} != sizes[0.1]


def test_conversations_that_begin_alike_stay_together():
    def chat(*contents):
        return compare(
            [{"role": r, "content": c} for r, c in zip(("system", "user", "assistant"), contents, strict=False)]
        )

    data = [chat("s", "hi"), chat("other", "hi", "hello")]
    assert {first_user_message(c) for c in data} == {"hi"}
    assert sorted(map(len, split_by_hash(data, 0.5))) == [0, 2]
    assert first_user_message(compare("plain")) == "plain"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_that_cannot_work(fraction):
    with pytest.raises(ConfigError, match="fraction to hold out is"):
        split_by_hash([compare("a")], fraction)
