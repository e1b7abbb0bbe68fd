"""How strongly each guide pulls: what a caller may say, and the weights it means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.errors import GuidanceError, did_you_mean
from trimtab.validation import validation_line


class Guidance(BaseModel):
    """Weights by guide or objective, and a strength that multiplies them all.

    A guide that ``weights`` does not name keeps its recommended weight; strength 0 is the base, exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, float] = Field(default_factory=dict, description="Guide or objective name → weight w, any real.")
    strength: float = Field(default=1.0, description="Multiplies every weight; 0 is the base, exactly.")


GuidanceLike = Guidance | Mapping[str, float] | float | None
"""``None`` (recommended weights), a strength, weights by name, or both in a :class:`Guidance`."""


class Weighted(Protocol):
    """What resolving needs to know of a guide."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def objectives(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def recommended_weight(self) -> float: ...  # noqa: D102


def as_guidance(value: GuidanceLike) -> Guidance:
    """Return any accepted form as a :class:`Guidance`.

    Raises:
        GuidanceError: it is none of the accepted forms, or holds NaN or infinity.
    """
    if value is None:
        return Guidance()
    if isinstance(value, Guidance):
        guidance = value
    elif isinstance(value, Mapping):
        guidance = _validated(weights=dict(value))
    elif isinstance(cast("Any", value), bool) or not isinstance(cast("Any", value), (int, float)):
        raise GuidanceError(
            f"Guidance must be a strength, a mapping from name to weight, or a Guidance, not {value!r}."
        )
    else:
        guidance = _validated(strength=value)
    for name, number in [("strength", guidance.strength), *guidance.weights.items()]:
        if not math.isfinite(number):
            what = "The strength" if name == "strength" else f"The weight of {name!r}"
            raise GuidanceError(f"{what} is {number}: give a finite number.")
    return guidance


def resolve_weights(value: GuidanceLike, guides: Sequence[Weighted]) -> tuple[float, ...]:
    """Return each guide's weight, strength included, in the order of ``guides``.

    A name is first looked up among guides, then among their objectives.

    Raises:
        GuidanceError: an unknown name (the nearest is named), a name that means several guides, a guide named
            twice, NaN or infinity, or weights where no guide is loaded.
    """
    guidance = as_guidance(value)
    weights = [guide.recommended_weight for guide in guides]
    named: dict[int, str] = {}
    for name, weight in guidance.weights.items():
        j = _find(name, guides)
        if j in named:
            raise GuidanceError(f"{named[j]!r} and {name!r} are the same guide: give it one weight.")
        named[j] = name
        weights[j] = weight
    return tuple(weight * guidance.strength + 0.0 for weight in weights)


def _find(name: str, guides: Sequence[Weighted]) -> int:
    if not guides:
        raise GuidanceError(f"There is a weight for {name!r}, but no guide is loaded: load one with guides=[…].")
    for j, guide in enumerate(guides):
        if guide.name == name:
            return j
    owners = [j for j, guide in enumerate(guides) if name in guide.objectives]
    if len(owners) > 1:
        names = ", ".join(repr(guides[j].name) for j in owners)
        raise GuidanceError(f"Several guides serve the objective {name!r}: use a guide's name instead ({names}).")
    if not owners:
        known = {guide.name for guide in guides} | {o for guide in guides for o in guide.objectives}
        raise GuidanceError(f"There is no guide or objective {name!r}.{did_you_mean(name, known)}")
    return owners[0]


def _validated(**values: Any) -> Guidance:
    try:
        return Guidance(**values)
    except ValidationError as error:
        raise GuidanceError(validation_line(error)) from error
