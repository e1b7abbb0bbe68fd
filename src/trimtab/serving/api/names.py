"""What a request means by its model's name and its guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI

from trimtab.engine.answers import applied
from trimtab.engine.guidance import Guidance
from trimtab.errors import GuidanceError, did_you_mean
from trimtab.serving.api.schema.requests import GuidanceChange
from trimtab.serving.errors import ApiError
from trimtab.serving.gateway import Gateway
from trimtab.serving.presets import DEFAULT, PLAIN, Presets


@dataclass(frozen=True)
class Named:
    """What a model's name stands for.

    Attributes:
        id: the name.
        preset: name of its preset, ``None`` for recommended weights.
        guidance: what it applies.
    """

    id: str
    preset: str | None
    guidance: Guidance


def served_name(gateway: Gateway) -> str:
    """Return the name of the model in the API: as configured, else the base's, without the folders it lies in."""
    base = gateway.engine.base
    return gateway.config.served_model_name or (
        PurePath(base.folder).name if PurePath(base.id).is_absolute() else base.id
    )


def served(app: FastAPI) -> dict[str, Named]:
    """Return every model name that is served, the default first."""
    gateway: Gateway = app.state.gateway
    presets: Presets = app.state.presets
    name = served_name(gateway)
    default = presets.default
    first = Named(name, None if default is None else DEFAULT, default or Guidance())
    models = [first]
    if gateway.engine.guides:
        models.append(Named(f"{name}:{PLAIN}", PLAIN, Guidance(strength=0.0)))
        models += [Named(f"{name}:{preset}", preset, what) for preset, what in presets.named.items()]
    return {model.id: model for model in models}


def find_model(app: FastAPI, name: str | None) -> Named:
    """Return what a name stands for; without one, the default.

    Raises:
        ApiError: 404.
    """
    models = served(app)
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f"The model {name[:200]!r} is not served here.{did_you_mean(name, models)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return models[name]


def chosen_guidance(gateway: Gateway, named: Guidance, asked: GuidanceChange | None, at: str = "guidance") -> Guidance:
    """Return what to apply: what was asked for, over what the model's name says.

    Args:
        gateway: the engine's.
        named: what the model's name says, or what is applied already.
        asked: what the request says.
        at: the field it says it in, for messages.

    Raises:
        ApiError: 400, naming the field that cannot be applied.
    """
    guidance = asked.over(named) if asked is not None else named
    weights: Mapping[str, float] = (asked.weights if asked is not None else None) or {}
    where = f"{at}." if at else ""
    for name, weight in weights.items():
        _check(gateway, Guidance(weights={name: weight}, strength=0.0), f"{where}weights.{name}")
    strength = asked is not None and asked.strength is not None
    total = f"{where}weights" if weights or not strength else f"{where}strength"
    _check(gateway, guidance, total)
    return guidance


def describe_applied(gateway: Gateway, guidance: Guidance, preset: str | None) -> dict[str, Any]:
    """Return what answers say of the guidance that was applied."""
    core = gateway.engine.parts[0]
    said = applied(core.guides, gateway.check(guidance))
    return {**said, "strength": guidance.strength, "preset": preset}


def _check(gateway: Gateway, guidance: Guidance, param: str) -> None:
    try:
        gateway.check(guidance)
    except GuidanceError as error:
        raise ApiError(400, str(error), param=param) from None
