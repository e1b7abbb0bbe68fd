"""The settings of a comparison: the base, guidance at several strengths or preferences, and other methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.engine.guidance import Guidance, Weighted, resolve
from trimtab.errors import ConfigError, GuidanceError, did_you_mean
from trimtab.evaluation.sweeps.config import Method, SweepConfig

Kind = Literal["base", "guided", "method", "control", "candidates"]
GUIDED = "guided"
"""The family of the settings that strengths and alphas of the config itself make."""


@dataclass(frozen=True)
class Role:
    """Why a control is there.

    Attributes:
        kind: ``"untrained"`` (the same guide before training, at the same weight) or ``"temperature"`` (the base at the
            temperature that brings the same KL to the base).
        of: the setting that it is the control of.
    """

    kind: Literal["untrained", "temperature"]
    of: str


@dataclass(frozen=True)
class Setting:
    """One way of answering every prompt.

    Attributes:
        name: unique, and what tables call it.
        kind: what it is in the comparison.
        family: settings of one family are points of one curve or front.
        weights: by guide or objective, before the strength; empty for the base.
        strength: multiplies the weights.
        temperature: of sampling.
        alpha: the preference, where it is a point of a grid.
        system: system message put before prompts.
        best_of: answers written, of which ``scorer`` picks one.
        scorer: what picks.
        roles: of a control, what for.
    """

    name: str
    kind: Kind
    family: str
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    strength: float = 0.0
    temperature: float = 1.0
    alpha: Mapping[str, float] | None = None
    system: str | None = None
    best_of: int = 1
    scorer: str | None = None
    roles: tuple[Role, ...] = ()

    @property
    def guidance(self) -> Guidance:
        """What the engine is asked for. Strength 0 where nothing pulls, which is the base exactly."""
        return Guidance(weights=dict(self.weights), strength=self.strength if self.weights else 0.0)

    @property
    def label(self) -> str:
        """The name, and for a control what it is the control of."""
        words = {"untrained": "the untrained guide for", "temperature": "the KL of"}
        return self.name + "".join(f" = {words[role.kind]} {role.of}" for role in self.roles)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "family": self.family,
            "weights": dict(self.weights),
            "strength": self.strength,
            "temperature": self.temperature,
            "alpha": dict(self.alpha) if self.alpha is not None else None,
            "system": self.system,
            "best_of": self.best_of,
            "picked_by": self.scorer,
            "roles": [{"kind": role.kind, "of": role.of} for role in self.roles],
        }


def expand(
    config: SweepConfig,
    guides: Sequence[Weighted],
    *,
    weights: Mapping[str, float] | None = None,
    strength: float = 1.0,
    system: str | None = None,
) -> list[Setting]:
    """Return the settings that a config describes, the base first; controls are not among them.

    Args:
        config: what is compared.
        guides: the guides at hand.
        weights: of the strengths; default: each guide's recommended weight.
        strength: used where the config names none.
        system: system message of every setting that has none of its own.

    Raises:
        ConfigError: a grid that does not fit the guides, two settings of one name, or nothing to compare.
        GuidanceError: unknown guides or objectives, weights that cannot be applied.
    """
    settings = [Setting("base", "base", "base", temperature=config.temperature, system=system)]
    strengths = config.strengths or (strength,)
    if guides and (config.strengths or config.alphas or not config.methods):
        own = Method.model_validate(
            {
                "name": GUIDED,
                "weights": dict(weights) if weights and not config.alphas else None,
                "strengths": tuple(s for s in strengths if s != 0) or (1.0,),
                "alphas": config.alphas,
            }
        )
        if any(strengths):
            settings += _expand_method(own, guides, config.temperature, system, "guided")
    elif config.alphas or any(config.strengths):
        raise ConfigError("Strengths and alphas need a guide: give --guide FOLDER.")
    for method in config.methods:
        settings += _expand_method(method, guides, config.temperature, method.system or system, "method")
    _check(settings, guides)
    return settings


def _expand_method(
    method: Method, guides: Sequence[Weighted], temperature: float, system: str | None, kind: Kind
) -> Iterator[Setting]:
    chosen = guides if method.guides is None else [_named(name, guides) for name in method.guides]
    temperature = temperature if method.temperature is None else method.temperature
    if method.alphas is not None:
        mixes = parse_alphas(method.alphas, objectives_of(chosen))
        points = [(_shown(alpha), alpha, _qualified(alpha, chosen, guides)) for alpha in mixes]
    else:
        weights = method.weights
        if weights is None and (method.guides is not None or kind == "guided" or _plain(method)):
            weights = {guide.name: guide.recommended_weight for guide in chosen}
        points = [("", None, weights or {})]
    for shown, alpha, weights in points:
        for strength in method.strengths:
            parts = [shown] if shown else []
            if len(method.strengths) > 1 or not (shown or kind == "method"):
                parts.append(f"strength {strength:g}")
            name = ", ".join(parts)
            if kind == "method":
                name = f"{method.name}: {name}" if name else method.name
            yield Setting(
                name, kind, method.name, weights if strength else {}, strength if weights else 0.0, temperature, alpha,
                system, method.best_of, method.scorer,
            )  # fmt: skip


def _plain(method: Method) -> bool:
    """Whether a method says nothing but its name and how strongly guides pull, so that all of them do."""
    return method.system is None and method.best_of == 1 and method.temperature is None


def objectives_of(guides: Sequence[Weighted]) -> list[str]:
    """Return the objectives of all guides, each once, in their order."""
    return list(dict.fromkeys(name for guide in guides for name in guide.objectives))


def parse_alphas(text: str, objectives: Sequence[str]) -> list[dict[str, float]]:
    """Return the preferences that ``grid:N``, ``lattice:M`` or ``helpful=0.7,harmless=0.3;…`` names.

    Raises:
        ConfigError: neither of these, or a grid for another number of objectives than two.
        GuidanceError: a preference that is not one over these objectives.
    """
    from trimtab.preferences.vectors import lattice, preference_vector

    kind, colon, number = text.partition(":")
    if colon and kind in ("grid", "lattice"):
        least = 2 if kind == "grid" else 1
        if not number.strip().isdigit() or not least <= int(number) <= 1000:
            raise ConfigError(f"alphas {text!r}: write {kind}:N with a whole number N from {least}.")
        if kind == "grid" and len(objectives) != 2:
            raise ConfigError(
                f"alphas {text!r} is a grid between two objectives, but the guides have {len(objectives)} "
                f"({', '.join(objectives) or 'none'}): use lattice:M, or name preferences."
            )
        steps = int(number) - 1 if kind == "grid" else int(number)
        rows = lattice(len(objectives), steps).double() if objectives else []
        return [{name: round(float(v), 9) for name, v in zip(objectives, row, strict=True)} for row in rows]
    texts = [part.strip() for part in text.split(";") if part.strip()]
    if not texts or any("=" not in part for part in texts):
        raise ConfigError(
            f"alphas {text!r} cannot be read: write grid:11, lattice:4, or preferences such as "
            "helpful=0.7,harmless=0.3;helpful=0.3,harmless=0.7."
        )
    rows = [preference_vector(part, objectives).double() for part in texts]
    return [{name: round(float(v), 7) for name, v in zip(objectives, row, strict=True)} for row in rows]


def _qualified(alpha: Mapping[str, float], chosen: Sequence[Weighted], guides: Sequence[Weighted]) -> dict[str, float]:
    """Return α as weights; an objective that several guides serve is asked of the chosen one."""
    weights: dict[str, float] = {}
    for objective, value in alpha.items():
        owners = [guide for guide in chosen if objective in guide.objectives]
        if len(owners) > 1:
            raise ConfigError(
                f"Several guides serve {objective!r} ({', '.join(g.name for g in owners)}): compare them as methods, "
                "each with its guides."
            )
        several = sum(objective in guide.objectives for guide in guides) > 1
        weights[f"{owners[0].name}/{objective}" if several else objective] = value
    return weights


def _named(name: str, guides: Sequence[Weighted]) -> Weighted:
    found = [guide for guide in guides if guide.name == name]
    if not found:
        raise GuidanceError(f"There is no guide {name!r}.{did_you_mean(name, [g.name for g in guides])}")
    return found[0]


def _shown(alpha: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in alpha.items())


def _check(settings: Sequence[Setting], guides: Sequence[Weighted]) -> None:
    seen: set[str] = set()
    for setting in settings:
        if setting.name in seen:
            raise ConfigError(f"Two settings are called {setting.name!r}: give methods names of their own.")
        seen.add(setting.name)
        resolve(setting.guidance, guides)
    if len(settings) == 1:
        raise ConfigError(
            "There is only the base to evaluate: give --guide FOLDER with --strengths or --alphas, or methods in the "
            "config file."
        )
