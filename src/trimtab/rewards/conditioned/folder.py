"""A conditioned guide's files: the class of its config, and whether the tensors are those that the config describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trimtab.errors import GuideError

PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_ANSWER = "copy the guide's folder again, or train it again."

_Shape = tuple[int, ...]
_Expected = tuple[int | None, ...]


def config_class(kind: Any) -> Any:
    """Return the config class for a ``peft_type``, or ``None`` where that is no preference-conditioned method."""
    name = str(getattr(kind, "value", kind))
    if name == "MOSLORA":
        from trimtab.rewards.moslora import MoSLoRAConfig

        return MoSLoRAConfig
    if name == "PBLORA":
        from trimtab.rewards.pblora import PBLoRAConfig

        return PBLoRAConfig
    return None


def check_shapes(path: Path, config: Any, header: dict[str, tuple[str, _Shape]]) -> list[str]:
    """Return the adapted modules, after comparing the tensors with the config: all there, none more, each its shape.

    Args:
        path: the safetensors file, for messages.
        config: MoSLoRA's or PBLoRA's config.
        header: tensor name → (dtype, shape).

    Raises:
        GuideError: names the tensor.
    """
    factors, shared = config.factor_shapes(), config.shared_shapes()
    factor = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.(?P<factor>{'|'.join(factors)})$")
    modules: dict[str, set[str]] = {}
    missing = {_SHARED_PREFIX + name for name in shared}
    for name, (_, shape) in header.items():
        match = factor.match(name)
        if match is not None:
            modules.setdefault(match["module"], set()).add(match["factor"])
            _compare(path, name, shape, factors[match["factor"]])
        elif name in missing:
            missing.discard(name)
            _compare(path, name, shape, shared[name.removeprefix(_SHARED_PREFIX)])
        else:
            raise GuideError(
                f"{path} holds {name[:120]!r}, which is no part of an adapter with these options and would overwrite "
                "the base: train it again."
            )
    for module, found in modules.items():
        missing |= {f"{PREFIX}{module}.{name}" for name in set(factors) - found}
    if missing or not modules:
        raise GuideError(f"{path} lacks {min(missing, default='every factor')[:120]!r}: {_ANSWER}")
    return sorted(modules)


def split_tensors(config: Any, tensors: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return module → factor → tensor, and the shared tensors by name, of tensors that :func:`check_shapes` accepts.

    Factors and shared tensors are named without their prefix: ``"A"``, ``"G"``, ``"objectives"``.
    """
    modules: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    shared_names = {_SHARED_PREFIX + name for name in config.shared_shapes()}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if name in shared_names:
            shared[last] = tensor
        else:
            modules.setdefault(module.removeprefix(PREFIX), {})[last.partition("_")[2]] = tensor
    return modules, shared


def _compare(path: Path, name: str, shape: _Shape, expected: _Expected) -> None:
    fits = len(shape) == len(expected) and all(
        size == wanted or (wanted is None and size > 0) for size, wanted in zip(shape, expected, strict=False)
    )
    if not fits:
        wanted = ["?" if size is None else size for size in expected]
        raise GuideError(
            f"{path} does not fit adapter_config.json: {name[:120]!r} has shape {list(shape)}, not {wanted}: {_ANSWER}"
        )
