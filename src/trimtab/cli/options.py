"""Command-line flags made from a config model, so that file and flags share one vocabulary and one help text."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trimtab.errors import ConfigError
from trimtab.validation import validated

M = TypeVar("M", bound=BaseModel)


def command_from(
    model: type[BaseModel], run: Callable[..., None], *, extra: list[inspect.Parameter] | None = None
) -> Callable[..., None]:
    """Return a typer command whose flags are the fields of ``model``.

    A flag that is not given is absent, so that a value from ``--config`` stands; the model's own default is shown.

    Args:
        model: a pydantic model; each field's ``description`` is its help, ``json_schema_extra["panel"]`` its group. A
            field with ``json_schema_extra["flag"]`` false is in the file only.
        run: called as ``run(given, **extra)`` with ``given`` the flags that were set.
        extra: further parameters that are not configuration (such as ``--json``).
    """
    extra = extra or []
    parameters = [_parameter(name, info) for name, info in model.model_fields.items() if _has_flag(info)]

    def command(**values: Any) -> None:
        others = {p.name: values.pop(p.name) for p in extra}
        given = {name: _parse_pairs(model, name, value) for name, value in values.items() if value not in (None, [])}
        run(given, **others)

    command.__signature__ = inspect.Signature([*parameters, *extra])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *extra]}
    command.__doc__ = run.__doc__
    return command


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Return a parameter of a command that is not configuration."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def flag(name: str, text: str, *declarations: str) -> inspect.Parameter:
    """Return such a parameter that is off unless one of its declarations is given."""
    return parameter(name, Annotated[bool, typer.Option(*declarations, help=text)], False)


def config_file(text: str = "YAML file with these options; flags win.") -> inspect.Parameter:
    """Return ``--config``, the file that :func:`resolve_config` reads."""
    return parameter("config", Annotated[Path | None, typer.Option("--config", "-c", help=text)], None)


def resolve_config(model: type[M], given: dict[str, Any], file: Path | None) -> M:
    """Return the validated config: the file's values, overridden by the flags that were given.

    Raises:
        ConfigError: unknown key (the nearest known one is named), or a value that cannot work.
    """
    values = {**(_read_yaml(file) if file else {}), **given}
    return validated(model, values, source=str(file) if file else "")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The config {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"The config {file} must be a mapping of option names to values.")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _has_flag(info: FieldInfo) -> bool:
    return not isinstance(info.json_schema_extra, dict) or info.json_schema_extra.get("flag") is not False


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    kind = _plain_type(info.annotation)
    declarations = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    panel = info.json_schema_extra.get("panel") if isinstance(info.json_schema_extra, dict) else None
    option = typer.Option(
        *declarations,
        help=_help(info),
        show_default=False,
        metavar=_metavar(info.annotation, kind),
        rich_help_panel=str(panel) if panel else None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(annotation: Any, kind: Any) -> str | None:
    if get_origin(annotation) is dict:
        return "KEY=VALUE"
    return "<str>" if kind == list[str] else None


def _help(info: FieldInfo) -> str:
    """Return a field's description with its default, which the flag itself does not have (see ``command_from``)."""
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if info.is_required():
        return f"{info.description} (required, here or in --config)"
    if default is None or default is False or default in ([], {}, (), ""):
        return info.description or ""
    shown = ", ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
    return f"{info.description} (default: {shown})"


def _plain_type(annotation: Any) -> Any:
    """Reduce a field's annotation to what a flag can carry; validation proper is the model's."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = [a for a in get_args(annotation) if a is not type(None)]
        return _plain_type(kinds[0]) if len(kinds) == 1 else str
    if origin is Literal:
        return str
    if origin in (list, tuple, dict):
        return list[str]
    return annotation if annotation in (bool, int, float, str, Path) else str


def _parse_pairs(model: type[BaseModel], name: str, value: Any) -> Any:
    if get_origin(model.model_fields[name].annotation) is not dict:
        return value
    pairs: dict[str, Any] = {}
    for item in value:
        key, equals, text = str(item).partition("=")
        if not equals:
            raise ConfigError(f"--{name.replace('_', '-')} takes KEY=VALUE, got {item!r}.")
        pairs[key.strip()] = yaml.safe_load(text)
    return pairs
