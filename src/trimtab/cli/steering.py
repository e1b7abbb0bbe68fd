"""What ``generate``, ``chat`` and ``serve`` share: which model, which guides, how strong, and how to sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from trimtab.cli.console import note
from trimtab.cli.quiet import quiet_libraries
from trimtab.engine.config import EngineConfig
from trimtab.errors import GuidanceError

if TYPE_CHECKING:
    from trimtab.decoding.config import Sampling
    from trimtab.engine import Engine, Guidance
    from trimtab.engine.guidance import Pull
    from trimtab.engine.guides import Guide


class ModelOptions(EngineConfig):
    """The model and its guides, and how the engine runs them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field("smollm2", description="The model to steer: 'smollm2', a folder or a hub id.")
    guide: list[str] = Field(default_factory=list, description="Guide folder (repeatable). None: the plain base.")
    weights: str | None = Field(
        None, description="NAME=W,… for objectives, guides or GUIDE/OBJECTIVE; what is not named has weight 0."
    )
    strength: float = Field(1.0, description="Multiplies every weight; 0 is the base, exactly.")
    guide_base: dict[str, str] = Field(
        default_factory=dict, description="GUIDE=MODEL: where to load the model a guide was trained on (repeatable)."
    )
    revision: str | None = Field(None, description="Hub revision of the base.")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16.")
    device: str = Field("auto", description="auto, cpu, cuda or another torch device.")
    quantization: str | None = Field(
        None, description="int8 (nearly exact) or int4 (small models suffer): weights that are faster to read."
    )
    guide_quantization: str | None = Field(
        "auto", description="The same for models that guides bring along, and one that drafts; auto: as the base."
    )


class SteeringOptions(ModelOptions):
    """The same, for verbs that put the prompts together themselves."""

    system: str | None = Field(None, description="System message put before the prompt.")


def parse_weights(text: str | None) -> dict[str, float]:
    """Return the weights in ``name=w,name=w``.

    Raises:
        GuidanceError: an entry has no '=', its weight is no number, or its name comes twice.
    """
    weights: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, number = (part.strip() for part in entry.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            equals = ""
            value = 0.0
        if not equals or not name:
            raise GuidanceError(f"A weight is written NAME=NUMBER, such as polite=1.5; got {entry!r}.")
        if name in weights:
            raise GuidanceError(f"The weight of {name!r} is given twice.")
        weights[name] = value
    return weights


def guidance_of(options: ModelOptions) -> Guidance:
    """Return the guidance that the flags describe.

    Raises:
        GuidanceError: malformed weights, NaN or infinity.
    """
    from trimtab.engine.guidance import Guidance, as_guidance

    return as_guidance(Guidance(weights=parse_weights(options.weights), strength=options.strength))


def sampling_of(options: Sampling) -> Sampling:
    """Return the sampling part of a command's options."""
    from trimtab.decoding.config import Sampling

    return Sampling(**{name: getattr(options, name) for name in Sampling.model_fields})


def load_engine(options: ModelOptions) -> Engine:
    """Load base and guides."""
    with quiet_libraries():
        from trimtab.engine import load

        engine = load(
            options.base,
            options.guide,
            revision=options.revision,
            guide_bases=options.guide_base,
            dtype=options.dtype,
            device=options.device,
            quantization=options.quantization,
            guide_quantization=options.guide_quantization,
            config={name: getattr(options, name) for name in EngineConfig.model_fields},
        )
    if not options.guide:
        note(f"No --guide: this is the plain base {options.base!r}.")
    return engine


def describe(engine: Engine, guidance: Guidance) -> str:
    """Return what is applied, strength included, as ``name=w, name=w (objective 0.7, objective 0.3)``.

    Raises:
        GuidanceError: a weight names no guide.
    """
    from trimtab.engine.guidance import resolve

    guides = list(engine.guides.values())
    pulls = resolve(guidance, guides)
    return ", ".join(_shown(guide, pull) for guide, pull in zip(guides, pulls, strict=True)) or "no guide"


def _shown(guide: Guide, pull: Pull) -> str:
    mixture = ", ".join(f"{name} {share:.3g}" for name, share in guide.preference(pull).items() if share)
    return f"{guide.name}={pull.weight:g}" + (f" ({mixture})" if mixture and pull.weight else "")
