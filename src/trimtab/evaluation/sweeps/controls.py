"""Controls: what guidance must be better than, because a sharper base already looks better to many scorers.

An untrained guide on the base's own weights IS the base, so guiding with it at weight w gives

    softmax((log π_b + w·log π_b)/τ) = softmax(log π_b / (τ/(1 + w))),

the base at temperature τ/(1 + w): nothing has to be trained or run beside it. The untrained form of a guide on another,
smaller model is that model; it is loaded already and joins as a guide of its own. An untrained policy (an aligned model
as a guide) scores log π_ref − log π_ref = 0 everywhere, so what it guides is the base at its own temperature: the
comparison with the base is that with the untrained policy. The second control is the base at the temperature that
brings the guided setting's KL to the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.engine.guidance import resolve
from trimtab.evaluation.sweeps.measuring import LADDER, UNTRAINED
from trimtab.evaluation.sweeps.settings import Role, Setting
from trimtab.rewards.manifest import Objective

if TYPE_CHECKING:
    from trimtab.engine import Engine
    from trimtab.engine.guides import Guide
    from trimtab.models import Text

MOST_TEMPERATURES = 6
"""Guided settings beyond this many share the temperatures of a few of them, spread over their KL."""

NOTHING = ""
"""The untrained form of a policy: its score is 0 everywhere."""


def with_untrained_guides(engine: Engine, prompts: Sequence[Text]) -> tuple[Engine, dict[str, str | None], list[str]]:
    """Give an engine the untrained forms of guides that are not the base itself when untrained.

    Args:
        engine: base and guides.
        prompts: of the run; base and guide must read them alike for an untrained guide to be the base.

    Returns:
        The engine to go on with; guide → name of its untrained form, ``None`` where that is the base, and
        :data:`NOTHING` for a policy; and what could not be had, as sentences.
    """
    from trimtab.engine.engine import Engine as MakeEngine

    core, driver = engine.parts
    forms: dict[str, str | None] = {}
    extra: list[Guide] = []
    missing: list[str] = []
    for guide in core.guides:
        if guide.is_policy:
            forms[guide.name] = NOTHING
        elif is_base_untrained(engine, guide, prompts):
            forms[guide.name] = None
        elif guide.manifest.adapter == "full" or (guide.slot is None and guide.backbone != 0):
            missing.append(
                f"There is no untrained control for the guide {guide.name!r}: its own weights were trained, and what "
                "they were before is not loaded."
            )
        else:
            name = UNTRAINED + guide.name
            forms[guide.name] = name
            # Under its own name only: an objective that two guides serve could not be asked for by its name any more.
            manifest = guide.manifest.model_copy(update={"objectives": (Objective(name=name),)})
            extra.append(dataclasses.replace(guide, name=name, manifest=manifest, slot=None, conditioner=None))
    if not extra:
        return engine, forms, missing
    config = driver.scheduler.config
    driver.close()  # its memory for keys and values is free before the next engine plans its own
    return MakeEngine(dataclasses.replace(core, guides=[*core.guides, *extra]), config), forms, missing


def is_base_untrained(engine: Engine, guide: Guide, prompts: Sequence[Text]) -> bool:
    """Return whether a guide was the base itself before its training, reading every prompt as the base does."""
    core, _ = engine.parts
    if guide.manifest.base.fingerprint != core.base.fingerprint or guide.vocabulary.index is not None:
        return False
    stream = 1 + [g.name for g in core.guides].index(guide.name)
    return all(core.encode(prompt, stream) == core.encode(prompt, 0) for prompt in prompts)


def untrained_controls(
    settings: Sequence[Setting], engine: Engine, forms: Mapping[str, str | None]
) -> tuple[list[Setting], list[str]]:
    """Return the untrained control of every guided setting, equal ones once, and why some have none."""
    found: dict[tuple[float, str | None, tuple[tuple[str, float], ...]], Setting] = {}
    missing: list[str] = []
    for setting in settings:
        if not _wants_controls(setting):
            continue
        weights = pull_weights(setting, engine)
        if any(name not in forms for name in weights):
            continue  # said by with_untrained_guides
        weights = {name: weight for name, weight in weights.items() if forms[name] != NOTHING}
        if setting.temperature == 0 and all(forms[name] is None for name in weights):
            continue  # the likeliest token of a sharper base is the base's
        if not weights and _like_the_base(setting, settings):
            continue  # the base itself, with which every setting is compared
        own = sum(weight for name, weight in weights.items() if forms[name] is None)
        if own <= -1:
            missing.append(
                f"{setting.name!r} has no untrained control: at weight {own:g} the base would be turned upside down."
            )
            continue
        others = {str(forms[name]): weight / (1 + own) for name, weight in weights.items() if forms[name] is not None}
        temperature = setting.temperature / (1 + own)
        role = Role("untrained", setting.name)
        key = (round(temperature, 6), setting.system, tuple(sorted(others.items())))
        if key in found:
            found[key] = dataclasses.replace(found[key], roles=(*found[key].roles, role))
            continue
        name = f"base at temperature {temperature:.4g}" if not others else f"untrained, {setting.name}"
        name += f" ({setting.family})" if any(name == other.name for other in found.values()) else ""
        found[key] = Setting(
            name, "control", "base temperature" if not others else "untrained", others, 1.0 if others else 0.0,
            temperature, system=setting.system, roles=(role,),
        )  # fmt: skip
    return list(found.values()), missing


def _like_the_base(setting: Setting, settings: Sequence[Setting]) -> bool:
    """Return whether a setting is drawn from at the base's temperature, with its system message."""
    return any(
        s.kind == "base" and (s.temperature, s.system) == (setting.temperature, setting.system) for s in settings
    )


def pull_weights(setting: Setting, engine: Engine) -> dict[str, float]:
    """Return guide → w of the guides that pull."""
    guides = list(engine.guides.values())
    pulls = resolve(setting.guidance, guides)
    return {guide.name: pull.weight for guide, pull in zip(guides, pulls, strict=True) if pull.weight}


def temperature_controls(
    settings: Sequence[Setting],
    kl: Mapping[str, float],
    ladders: Mapping[str, Sequence[float]],
    base_temperature: float,
    existing: Sequence[Setting],
) -> tuple[list[Setting], list[Setting], list[str]]:
    """Return the controls of equal KL: new ones, existing ones with their new roles, and why some have none.

    Args:
        settings: all settings.
        kl: setting → mean KL to the base, nats a token.
        ladders: setting → (R,) KL of the base at each temperature of :data:`LADDER`, nats a token.
        base_temperature: τ₀.
        existing: the untrained controls.
    """
    wanted = [s for s in settings if _wants_controls(s) and s.temperature > 0 and s.name in kl]
    chosen = _spread(wanted, kl)
    controls = {_temperature_key(s): s for s in existing if not s.weights}
    new: dict[tuple[float, str | None], Setting] = {}
    missing: list[str] = []
    for setting in chosen:
        temperature, reached = matching_temperature(kl[setting.name], ladders[setting.name], base_temperature)
        if not reached:
            missing.append(
                f"No temperature brings the base as far as {setting.name!r} ({kl[setting.name]:.2f} nats a token): its "
                f"control is the base at {temperature:.4g}."
            )
        role, key = Role("temperature", setting.name), (round(temperature, 3), setting.system)
        home = controls if key in controls else new
        if key in home:
            home[key] = dataclasses.replace(home[key], roles=(*home[key].roles, role))
        else:
            name = f"base at temperature {key[0]:g}" + (", same system message" if setting.system else "")
            new[key] = Setting(
                name, "control", "base temperature", temperature=key[0], system=setting.system, roles=(role,)
            )
    if len(chosen) < len(wanted):
        missing.append(
            f"{len(wanted)} guided settings share {len(new)} temperatures, spread over their KL; between them the "
            "base's reward is interpolated."
        )
    others = [s for s in existing if s.weights]
    return list(new.values()), [*controls.values(), *others], missing


def matching_temperature(kl: float, ladder: Sequence[float], base_temperature: float) -> tuple[float, bool]:
    """Return the temperature at which the base is ``kl`` away from itself, by bisection, and whether there is one.

    KL falls as the temperature rises to the run's own. Between rungs it is interpolated in log T. The distributions
    are those at the base's own answers; answers at the temperature found can lie a little off, and the report shows
    where they do lie.
    """
    rungs, values = np.log(np.array(LADDER)), np.array(ladder, dtype=np.float64)
    if kl >= values[0]:
        return base_temperature * LADDER[0], False
    low, high = rungs[0], rungs[-1]
    for _ in range(60):
        middle = (low + high) / 2
        if np.interp(middle, rungs, values) > kl:
            low = middle
        else:
            high = middle
    return float(base_temperature * np.exp((low + high) / 2)), True


def corrected_ladder(ladder: Sequence[float], reached: Mapping[float, float], base_temperature: float) -> list[float]:
    """Return the ladder as answers of sharper bases walk it.

    The ladder is measured at the base's own answers; a sharper base writes answers at which it has less to sharpen, so
    its KL stays below. Where controls of known temperature ran already, the ladder is scaled to what they reached, and
    between them by the interpolated scale (1 at the base's own temperature).

    Args:
        ladder: (R,), KL at each rung.
        reached: temperature of a control → its KL, nats a token.
        base_temperature: τ₀.
    """
    rungs = np.log(np.array(LADDER))
    known = {0.0: 1.0}
    for temperature, kl in reached.items():
        place = float(np.log(temperature / base_temperature))
        expected = float(np.interp(place, rungs, np.array(ladder)))
        if rungs[0] <= place < 0 and expected > 0:
            known[place] = kl / expected
    places = sorted(known)
    scale = np.interp(rungs, places, [known[place] for place in places])
    return [float(value) for value in np.maximum.accumulate((np.array(ladder) * scale)[::-1])[::-1]]


def _temperature_key(setting: Setting) -> tuple[float, str | None]:
    return round(setting.temperature, 3), setting.system


def _wants_controls(setting: Setting) -> bool:
    return setting.kind in ("guided", "method") and bool(setting.weights) and setting.best_of == 1


def _spread(settings: Sequence[Setting], kl: Mapping[str, float]) -> list[Setting]:
    if len(settings) <= MOST_TEMPERATURES:
        return list(settings)
    ordered = sorted(settings, key=lambda s: kl[s.name])
    places = np.linspace(0, len(ordered) - 1, MOST_TEMPERATURES).round().astype(int)
    return [ordered[i] for i in places]
