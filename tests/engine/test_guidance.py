"""What a caller may say about guidance, and what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from trimtab.engine.guidance import Guidance, resolve_weights
from trimtab.errors import GuidanceError


@dataclass
class FakeGuide:
    name: str
    objectives: tuple[str, ...]
    recommended_weight: float = 1.0


GUIDES = [FakeGuide("a", ("polite",), 2.0), FakeGuide("b", ("safe", "shared"), -0.5), FakeGuide("c", ("shared",))]


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (None, (2.0, -0.5, 1.0)),
        (0.5, (1.0, -0.25, 0.5)),
        (0, (0.0, 0.0, 0.0)),
        ({"a": 3}, (3.0, -0.5, 1.0)),
        ({"polite": 3, "b": 0, "c": 0}, (3.0, 0.0, 0.0)),
        (Guidance(weights={"safe": 4}, strength=0.5), (1.0, 2.0, 0.5)),
    ],
)
def test_forms(given, weights):
    assert resolve_weights(given, GUIDES) == weights


def test_zero_is_never_negative_zero():
    assert math.copysign(1, resolve_weights(0.0, GUIDES)[1]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"polit": 1}, r"no guide or objective 'polit'\. Did you mean 'polite'"),
        ({"shared": 1}, r"Several guides.*'b', 'c'"),
        ({"a": 1, "polite": 2}, "same guide"),
        ({"a": math.nan}, "weight of 'a' is nan"),
        (math.inf, "strength is inf"),
        ("high", "must be a strength"),
        (True, "must be a strength"),
        ({"a": "much"}, "weights.a"),
    ],
)
def test_what_cannot_be_applied(given, message):
    with pytest.raises(GuidanceError, match=message):
        resolve_weights(given, GUIDES)


def test_a_weight_without_a_guide():
    assert resolve_weights(1.5, []) == ()
    with pytest.raises(GuidanceError, match="no guide is loaded"):
        resolve_weights({"a": 1}, [])
