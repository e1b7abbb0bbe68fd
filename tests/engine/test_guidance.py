"""What a caller may say about guidance, and what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from trimtab.engine.guidance import Guidance, Pull, resolve
from trimtab.errors import GuidanceError


@dataclass
class FakeGuide:
    name: str
    objectives: tuple[str, ...]
    recommended_weight: float = 1.0
    conditioned: bool = False


GUIDES = [FakeGuide("a", ("polite",), 2.0), FakeGuide("b", ("safe", "shared"), -0.5), FakeGuide("c", ("shared",))]
UNI = FakeGuide("uni", ("helpful", "harmless", "concise", "brief"), 1.5, conditioned=True)
ARMS = [FakeGuide("one", ("helpful",)), FakeGuide("two", ("harmless",))]
EVEN = (0.25,) * 4


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (None, (2.0, -0.5, 1.0)),
        ({}, (2.0, -0.5, 1.0)),
        (0.5, (1.0, -0.25, 0.5)),
        (0, (0.0, 0.0, 0.0)),
        ({"a": 3}, (3.0, 0.0, 0.0)),
        ({"polite": 3, "c": -2}, (3.0, 0.0, -2.0)),
        ({"b/shared": 3, "c/shared": 1}, (0.0, 3.0, 1.0)),
        (Guidance(weights={"safe": 4}, strength=0.5), (0.0, 2.0, 0.0)),
    ],
)
def test_forms(given, weights):
    assert resolve(given, GUIDES) == tuple(Pull(w) for w in weights)


def test_one_meaning_whatever_the_guide_is_made_of():
    """Two ARMs get 0.7 and 0.3; one conditioned guide gets their sum and the mixture."""
    asked = {"helpful": 0.7, "harmless": 0.3}
    assert resolve(asked, ARMS) == (Pull(0.7), Pull(0.3))
    assert resolve(asked, [UNI]) == (Pull(1.0, (0.7, 0.3, 0.0, 0.0)),)
    doubled = resolve({name: 2 * w for name, w in asked.items()}, [UNI])
    assert doubled == resolve(Guidance(weights=asked, strength=2), [UNI]) == (Pull(2.0, (0.7, 0.3, 0.0, 0.0)),)


@pytest.mark.parametrize(
    ("given", "pull"),
    [
        (None, Pull(1.5, EVEN)),
        (2, Pull(3.0, EVEN)),
        (0, Pull(0.0, EVEN)),
        ({"uni": -2}, Pull(-2.0, EVEN)),
        ({"concise": 0.5}, Pull(0.5, (0.0, 0.0, 1.0, 0.0))),
        ({"uni/concise": 3, "brief": 1}, Pull(4.0, (0.0, 0.0, 0.75, 0.25))),
        ({"helpful": 0, "harmless": 0}, Pull(0.0, EVEN)),
        (Guidance(weights={"helpful": 1}, strength=0), Pull(0.0, (1.0, 0.0, 0.0, 0.0))),
        (Guidance(weights={"helpful": 1}, strength=-1), Pull(-1.0, (1.0, 0.0, 0.0, 0.0))),
    ],
)
def test_a_conditioned_guide(given, pull):
    assert resolve(given, [UNI]) == (pull,)


def test_a_conditioned_guide_among_others():
    assert resolve({"polite": 2}, [GUIDES[0], UNI]) == (Pull(2.0), Pull(0.0, EVEN))
    assert resolve({"uni/helpful": 1, "one": 2}, [UNI, ARMS[0]]) == (Pull(1.0, (1.0, 0.0, 0.0, 0.0)), Pull(2.0))


def test_zero_is_never_negative_zero():
    assert math.copysign(1, resolve(0.0, GUIDES)[1].weight) == 1
    alpha = resolve({"helpful": 1, "brief": -0.0}, [UNI])[0].alpha
    assert [math.copysign(1, a) for a in alpha] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"polit": 1}, r"no guide or objective 'polit'\. Did you mean 'polite'"),
        ({"shared": 1}, r"Several guides.*'b/shared', 'c/shared'"),
        ({"a": 1, "polite": 2}, "'a' and 'polite' are the same guide: give it one weight"),
        ({"safe": 1, "b/shared": 2}, "same guide"),
        ({"a": math.nan}, "weight of 'a' is nan"),
        (math.inf, "strength is inf"),
        ("high", "must be a strength"),
        (True, "must be a strength"),
        ({"a": "much"}, "weights.a"),
    ],
)
def test_what_cannot_be_applied(given, message):
    with pytest.raises(GuidanceError, match=message):
        resolve(given, GUIDES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"helpful": -1}, r"'helpful' is -1.*'uni' mixes.*from 0"),
        ({"uni": 1, "helpful": 1}, "'uni' and 'helpful' are the same guide: name the guide, or objectives"),
        ({"helpful": 1, "uni": 1}, "'helpful' and 'uni' are the same guide"),
        ({"helpful": 1, "uni/helpful": 1}, "same guide"),
        ({"uni/helpfull": 1}, "Did you mean 'uni/helpful'"),
        ({"polite": 1}, "no guide or objective 'polite'"),
        ({"helpful": 1e308, "harmless": 1e308}, "come to inf|too large|smaller"),
    ],
)
def test_what_a_conditioned_guide_cannot_do(given, message):
    with pytest.raises(GuidanceError, match=message):
        resolve(given, [UNI])


def test_a_guide_named_as_its_objective():
    guide = FakeGuide("helpful", ("helpful", "harmless"), conditioned=True)
    with pytest.raises(GuidanceError, match="a guide and one of its objectives: write helpful/helpful"):
        resolve({"helpful": 1}, [guide])
    assert resolve({"helpful/helpful": 1}, [guide]) == (Pull(1.0, (1.0, 0.0)),)


def test_a_weight_without_a_guide():
    assert resolve(1.5, []) == ()
    with pytest.raises(GuidanceError, match="no guide is loaded"):
        resolve({"a": 1}, [])
