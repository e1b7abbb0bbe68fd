"""Which judge compares a run's settings, and which of them. No client in here, so that the command line is fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from trimtab.errors import ConfigError
from trimtab.evaluation.judges.config import JudgeConfig
from trimtab.evaluation.sweeps.config import split
from trimtab.validation import validated

_PREFIX = "judge_"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class SweepJudge(JudgeConfig):
    """A judge of a run: how it is asked, and about which answers."""

    samples: int = Field(1, ge=1, description="Answers a prompt that are judged, from the first on.")
    limit: int | None = Field(None, ge=1, description="Judge only the answers to the first N prompts.")
    against: Annotated[tuple[Literal["base", "untrained", "temperature"], ...], BeforeValidator(split)] = Field(
        ("base", "untrained"),
        min_length=1,
        description="What each setting is compared with, as A,B: base, untrained (its untrained control), temperature "
        "(the base at the temperature of equal KL).",
    )
    settings: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="Name of a setting that is judged (repeatable). Default: all but base and controls."
    )


def flag_name(name: str) -> str:
    """Return what a field of :class:`SweepJudge` is called among a run's options."""
    return name if name.startswith(_PREFIX) else _PREFIX + name


def _flags() -> type[BaseModel]:
    """Return the fields of :class:`SweepJudge` under the names of options, none of them needed."""
    fields: dict[str, Any] = {}
    for name, info in SweepJudge.model_fields.items():
        kind: Any = info.annotation
        default: Any = None if info.is_required() else info.get_default(call_default_factory=True)
        if info.is_required():
            kind = kind | None
        if info.metadata:
            kind = Annotated[kind, *info.metadata]
        fields[flag_name(name)] = (
            kind,
            Field(default, description=info.description, json_schema_extra={"panel": "Judge"}),
        )
    return create_model("JudgeFlags", __config__=ConfigDict(frozen=True, extra="forbid"), **fields)


JudgeFlags = _flags()
"""The options ``judge_url``, ``judge_model``, ``judge_rubric``, … of ``trimtab evaluate``."""


def judge_of(options: BaseModel, **changes: Any) -> SweepJudge | None:
    """Return the judge that options ask for; ``None`` where they ask for none.

    Args:
        options: with the fields of :data:`JudgeFlags`.
        changes: fields of :class:`SweepJudge` to use instead.

    Raises:
        ConfigError: options of a judge without its address or name, or an address with a password in it.
    """
    values = {name: getattr(options, flag_name(name)) for name in SweepJudge.model_fields} | changes
    if values["judge_url"] is None or values["judge_model"] is None:
        given = sorted(name for name in options.model_fields_set if name.startswith(_PREFIX))
        given = [name for name in given if getattr(options, name) not in (None, (), {})]
        if not given:
            return None
        missing = "judge_url" if values["judge_url"] is None else "judge_model"
        raise ConfigError(
            f"{given[0]} belongs to a judge, but there is no {missing}: give --{missing.replace('_', '-')}."
        )
    if "@" in str(values["judge_url"]).partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "The address in --judge-url holds a password, and the run's files would too: leave it out, and name the "
            "variable that holds the key with --judge-api-key-env."
        )
    return validated(SweepJudge, values)
