"""Named guidance, so that clients which can only pick a model can still steer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field

from trimtab.engine.guidance import Guidance, Weighted, as_guidance, resolve
from trimtab.errors import ConfigError, TrimtabError
from trimtab.validation import refuse_unknown, validated

DEFAULT = "default"
PLAIN = "plain"
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_LONGEST = 2**20  # bytes of a presets file
_MOST = 1000
_DEEPEST = 8  # levels of mappings and lists


class Preset(Guidance):
    """Guidance as a presets file writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str | None = Field(None, max_length=1000, description="What it is for, in a sentence.")


class Presets:
    """Guidance by name.

    Attributes:
        named: name → guidance; ``default`` is that of the model's bare name.
        descriptions: name → what it is for, where the file says so.
    """

    def __init__(self, named: Mapping[str, Guidance], *, descriptions: Mapping[str, str] | None = None) -> None:
        self.named = dict(named)
        self.descriptions = dict(descriptions or {})

    @property
    def default(self) -> Guidance | None:
        """Guidance of the model's bare name; ``None``: each guide's recommended weight."""
        return self.named.get(DEFAULT)

    @classmethod
    def load(cls, path: Path, guides: Sequence[Weighted], *, most: float | None = None) -> Presets:
        """Return the presets of a YAML file, each checked against the guides that are loaded.

        Args:
            path: the file, ``name: {weights: {…}, strength: x, description: text}``.
            guides: what is loaded.
            most: what the absolute weights of one preset may sum to, strength included; default: anything.

        Raises:
            ConfigError: the file cannot be read, or a preset cannot be applied; the message names which.
        """
        presets = {name: _preset(path, name, value, guides, most) for name, value in _read(path).items()}
        named = {name: Guidance(weights=p.weights, strength=p.strength) for name, p in presets.items()}
        return cls(named, descriptions={name: p.description for name, p in presets.items() if p.description})


def _preset(path: Path, name: str, value: Any, guides: Sequence[Weighted], most: float | None) -> Preset:
    where = f"preset {name!r} of {path}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The {where[:200]} cannot be part of a model's name: use up to 64 of a-z, 0-9, '_' and '-'.")
    if name == PLAIN:
        raise ConfigError(f"The {where} cannot have this name, which always means the plain base: choose another.")
    if not isinstance(value, dict):
        raise ConfigError(f"The {where} must be a mapping such as {{weights: {{helpful: 1.0}}}}.")
    given: dict[Any, Any] = value
    try:
        refuse_unknown([str(key) for key in given], Preset.model_fields, what="key", source=f"the {where}")
        preset = validated(Preset, {str(key): item for key, item in given.items()})
        pulls = resolve(as_guidance(preset), guides)
    except TrimtabError as error:
        message = str(error)
        raise ConfigError(message if where in message else f"The {where} cannot be applied: {message}") from error
    total = sum(abs(pull.weight) for pull in pulls)
    if most is not None and total > most:
        raise ConfigError(
            f"The weights of the {where} come to {total:g}, strength included, and --max-guidance allows {most:g}."
        )
    return preset


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ConfigError(f"The presets file {path} is longer than {_LONGEST} bytes.")
        text = content.decode("utf-8")
        _refuse_deep(path, text)
        _refuse_twice(path, yaml.compose(text, Loader=yaml.SafeLoader))
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The presets file {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"The presets file {path} must be a mapping of names to guidance.")
    presets: dict[Any, Any] = found
    if len(presets) > _MOST:
        raise ConfigError(f"The presets file {path} has {len(presets)} presets, and at most {_MOST} are served.")
    return {str(name): value for name, value in presets.items()}


def _refuse_deep(path: Path, text: str) -> None:
    """Refuse what would take long to read, or never end, while it is still a row of events."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):  # what refers to itself, or unfolds to billions of values
            raise ConfigError(f"The presets file {path} uses an alias (*name): write the values out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError(f"The presets file {path} cannot be read: it is nested more than {_DEEPEST} levels deep.")


def _refuse_twice(path: Path, node: Any) -> None:
    """Refuse a key that comes twice in one mapping: the first would be lost without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(getattr(key, "value", ""))
            if name in seen:
                raise ConfigError(f"The presets file {path} has {name!r} twice (line {key.start_mark.line + 1}).")
            seen.add(name)
            _refuse_twice(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(path, item)
