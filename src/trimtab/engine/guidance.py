"""How strongly each guide pulls, and towards what: what a caller may say, and what it means for each guide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.errors import GuidanceError, did_you_mean
from trimtab.validation import validation_line


class Guidance(BaseModel):
    """Weights by guide or objective, and a strength that multiplies them all.

    Weights that are given say everything: what they do not name has weight 0. With none given, each guide pulls with
    its recommended weight, a conditioned one towards all its objectives alike. Strength 0 is the base, exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Objective, guide or GUIDE/OBJECTIVE → weight, any real (an objective of a conditioned guide: "
        "from 0); what is not named has weight 0.",
    )
    strength: float = Field(default=1.0, description="Multiplies every weight; 0 is the base, exactly.")


GuidanceLike = Guidance | Mapping[str, float] | float | None
"""``None`` (recommended weights), a strength, weights by name, or both in a :class:`Guidance`."""


@dataclass(frozen=True)
class Pull:
    """What is asked of one guide: log π_b + w·log π_r(· | α).

    Attributes:
        weight: w, strength included.
        alpha: α, one weight an objective in the guide's order, summing to one; ``None`` for a guide that takes no
            preference.
    """

    weight: float
    alpha: tuple[float, ...] | None = None


class Weighted(Protocol):
    """What resolving needs to know of a guide."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def objectives(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def recommended_weight(self) -> float: ...  # noqa: D102

    @property
    def conditioned(self) -> bool: ...  # noqa: D102


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


def resolve(value: GuidanceLike, guides: Sequence[Weighted]) -> tuple[Pull, ...]:
    """Return what is asked of each guide, in the order of ``guides``.

    ``{"helpful": 0.7, "harmless": 0.3}`` means a pull of 0.7 towards helpful and of 0.3 towards harmless, whatever the
    guides are made of: two ARMs get these weights; one guide conditioned on both gets their sum W as its weight and
    α = (0.7, 0.3) / W.

    A name is first looked up among the guides, then among their objectives, then as GUIDE/OBJECTIVE. A conditioned
    guide's own name weighs it at its default preference, all objectives alike.

    Raises:
        GuidanceError: an unknown name (the nearest is named), a name that means several guides, a guide weighed
            twice, a negative weight for an objective of a conditioned guide, NaN or infinity, or weights where no
            guide is loaded.
    """
    guidance = as_guidance(value)
    if not guidance.weights:
        pulls = [Pull(guide.recommended_weight, _even(guide)) for guide in guides]
    else:
        asked: list[_Asked] = [{} for _ in guides]
        for name, weight in guidance.weights.items():
            j, objective = _find(name, guides)
            _add(asked[j], objective, name, weight, guides[j])
        pulls = [_pull(guide, found) for guide, found in zip(guides, asked, strict=True)]
    return tuple(_times(pull, guidance.strength, guide) for pull, guide in zip(pulls, guides, strict=True))


_Asked = dict[str | None, tuple[str, float]]
"""For one guide: objective (``None`` for the guide itself) → the name that the caller used, and the weight."""


def _add(asked: _Asked, objective: str | None, name: str, weight: float, guide: Weighted) -> None:
    if asked and (objective is None or None in asked or objective in asked):
        other = next(iter(asked.values()))[0]
        what = "give it one weight" if not guide.conditioned else "name the guide, or objectives of it"
        raise GuidanceError(f"{other!r} and {name!r} are the same guide: {what}.")
    if objective is not None and weight < 0:
        raise GuidanceError(
            f"The weight of {name!r} is {weight:g}, but the guide {guide.name!r} mixes its objectives with weights "
            f"from 0: to steer away from all of them, give {guide.name!r} itself or the strength a negative number."
        )
    asked[objective] = (name, weight)


def _pull(guide: Weighted, asked: _Asked) -> Pull:
    if None in asked:
        return Pull(asked[None][1], _even(guide))
    total = sum(weight for _, weight in asked.values())
    if total == 0:
        return Pull(0.0, _even(guide))
    return Pull(total, tuple(asked[name][1] / total + 0.0 if name in asked else 0.0 for name in guide.objectives))


def _even(guide: Weighted) -> tuple[float, ...] | None:
    return (1 / len(guide.objectives),) * len(guide.objectives) if guide.conditioned else None


def _times(pull: Pull, strength: float, guide: Weighted) -> Pull:
    weight = pull.weight * strength + 0.0  # never a negative zero
    if not math.isfinite(weight):
        raise GuidanceError(f"The weights of the guide {guide.name!r} come to {weight}: give smaller numbers.")
    return Pull(weight, pull.alpha)


def _find(name: str, guides: Sequence[Weighted]) -> tuple[int, str | None]:
    """Return the guide that a name means, and which of its objectives where it takes a preference."""
    if not guides:
        raise GuidanceError(f"There is a weight for {name!r}, but no guide is loaded: load one with guides=[…].")
    for j, guide in enumerate(guides):
        if guide.name == name:
            if guide.conditioned and name in guide.objectives:
                raise GuidanceError(
                    f"{name!r} is a guide and one of its objectives: write {name}/{name} for the objective, or load "
                    "the guide under another name to weigh it as a whole."
                )
            return j, None
    owners = [(j, name) for j, guide in enumerate(guides) if name in guide.objectives]
    owners = owners or [
        (j, objective)
        for j, guide in enumerate(guides)
        for objective in guide.objectives
        if name == f"{guide.name}/{objective}"
    ]
    if len(owners) > 1:
        names = ", ".join(repr(f"{guides[j].name}/{objective}") for j, objective in owners)
        raise GuidanceError(f"Several guides serve the objective {name!r}: say which one ({names}).")
    if not owners:
        raise GuidanceError(f"There is no guide or objective {name!r}.{did_you_mean(name, _known(name, guides))}")
    j, objective = owners[0]
    return j, objective if guides[j].conditioned else None


def _known(name: str, guides: Sequence[Weighted]) -> set[str]:
    if "/" in name:
        return {f"{guide.name}/{objective}" for guide in guides for objective in guide.objectives}
    return {guide.name for guide in guides} | {o for guide in guides for o in guide.objectives}


def _validated(**values: Any) -> Guidance:
    try:
        return Guidance(**values)
    except ValidationError as error:
        raise GuidanceError(validation_line(error)) from error
