"""A guide's LoRA: its ``adapter_config.json`` and its tensors, read without trusting either."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.errors import ConfigError, GuideError, did_you_mean
from trimtab.models.quantized import QuantizedLinear
from trimtab.rewards.conditioned import folder as conditioned
from trimtab.rewards.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Header, read_header
from trimtab.rewards.manifest import read_json

MAX_RANK = 65536
PREFIX = "base_model.model."
"""What PEFT puts before the base's own module names."""

_FACTOR = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB])(?:\.weight)?$")
_ADAPTED = re.compile(
    rf"^{re.escape(PREFIX)}(?P<module>.+)\.(?P<kind>(?:lora_(?:embedding_)?|moslora_|pblora_)[AB])(?:\.weight)?$"
)
_PLAIN = re.compile(r"^[\w.^$\\-]{1,200}$")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_ONLY_FOR_INITIALISATION = ("loftq_config", "eva_config", "corda_config", "lora_ga_config")
_NEVER = {
    "megatron_config": "it names code to import",
    "layer_replication": "it rebuilds the base's layers, but a guide shares them with the unguided base",
    "target_parameters": "trimtab guides through whole modules only",
    "arrow_config": "it needs other adapters",
}


def check_lora_config(config: Any) -> None:
    """Refuse LoRA options that would change the base itself; call it before training, not after.

    Args:
        config: a ``peft.LoraConfig``.

    Raises:
        ConfigError: names the option, why it cannot work, and what to use instead.
    """
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise ConfigError(f"A guide's adapter is a LoRA, not {config.peft_type!r}: use peft.LoraConfig.")
    for name, why in _NEVER.items():
        if getattr(config, name, None):
            raise ConfigError(f"The LoRA option {name!r} cannot be used in a guide ({why}): leave it out.")
    if config.bias != "none":
        raise ConfigError(
            f"The LoRA option 'bias' is {config.bias!r}, which trains the base's own biases; a guide must leave the "
            "base as it is: use bias='none', or lora_bias=True for biases of the adapter's own."
        )
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise ConfigError(
            f"The LoRA option 'init_lora_weights' is {init!r}, which changes the base's weights; a guide must leave "
            "the base as it is: use True, 'gaussian', 'eva' or 'orthogonal'."
        )
    ranks = {"r": config.r, **{f"rank_pattern[{k!r}]": v for k, v in dict(config.rank_pattern or {}).items()}}
    for name, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
            raise ConfigError(f"The LoRA rank {name} is {rank!r}: use a whole number from 1 to {MAX_RANK}.")


def check_adapter_config(config: Any) -> None:
    """Refuse an adapter of a kind, or with options, that a guide cannot have; see :func:`check_lora_config`.

    Raises:
        ConfigError: names the option, why it cannot work, and what to use instead.
    """
    if conditioned.config_class(config.peft_type) is None:  # MoSLoRA's and PBLoRA's configs check themselves
        check_lora_config(config)


def portable_config(config: Any, base_id: str, revision: str | None) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``: no path of this machine, nothing that acts when it is loaded."""
    config = copy.deepcopy(config)
    config.base_model_name_or_path = base_id
    config.revision = revision
    config.inference_mode = True
    setattr(config, "init_lora_weights" if hasattr(config, "init_lora_weights") else "init_weights", True)
    config.task_type = config.task_type or "CAUSAL_LM"
    content = cast("dict[str, Any]", config.to_dict())
    for name in _ONLY_FOR_INITIALISATION:
        if name in content:
            content[name] = {} if name == "loftq_config" else None
    return {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(content.items())}


def load_adapter_config(folder: str | Path) -> Any:
    """Return the guide's PEFT config (LoRA, MoSLoRA or PBLoRA), ready for loading; its ranks fit the stored tensors.

    Raises:
        GuideError: the file is missing or damaged, is of another kind, asks for something unsafe, or does not describe
            the tensors beside it.
    """
    folder = Path(folder)
    config = _parse_config(folder / ADAPTER_CONFIG)
    header = read_header(folder / ADAPTER_WEIGHTS)
    if conditioned.config_class(config.peft_type) is None:
        modules = _check_shapes(folder, config, header)
    else:
        modules = conditioned.check_shapes(folder / ADAPTER_WEIGHTS, config, header)
    if isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str):
        # A string is a regular expression, and one from a folder may be made to run for ever: names say the same.
        config.target_modules = set(modules)
        config.exclude_modules = None
        config.layers_to_transform = None
        config.layers_pattern = None
    return config


def load_adapter_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Return the adapter's tensors by PEFT's names, on the CPU, in their stored dtype.

    Raises:
        GuideError: the file is missing, cut off, does not fit ``adapter_config.json``, or holds NaN or infinity.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    load_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    tensors = load_file(path)
    refuse_not_finite(tensors, path)
    return tensors


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinity.

    Raises:
        GuideError: names the file and the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GuideError(
                f"{path} holds NaN or infinity (in {name[:120]!r}): its training diverged; train it again."
            )


def check_fits(tensors: Mapping[str, Tensor], model: Any, folder: Path, base_name: str) -> None:
    """Refuse LoRA factors for modules that the base does not have, or of another width.

    Raises:
        GuideError: names the module and both shapes.
    """
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        match = _ADAPTED.match(name)
        if match is None:
            continue
        shape = _weight_shape(modules.get(match["module"]))
        if shape is None:
            raise GuideError(
                f"{folder / ADAPTER_WEIGHTS} adapts {match['module'][:120]!r}, which the base {base_name!r} does not "
                "have: load it with the base it was trained on."
            )
        width = tensor.shape[1] if match["kind"].endswith("A") else tensor.shape[0]
        if tensor.ndim == 2 and len(shape) == 2 and width not in shape:
            raise GuideError(
                f"{folder / ADAPTER_WEIGHTS} has {name[:120]!r} of shape {list(tensor.shape)}, but that module of the "
                f"base {base_name!r} is {list(shape)}: load it with the base it was trained on."
            )


def _weight_shape(module: Any) -> tuple[int, ...] | None:
    if isinstance(module, QuantizedLinear):
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    return None if weight is None else tuple(weight.shape)


def _parse_config(path: Path) -> Any:
    from peft import LoraConfig

    if not path.is_file():
        raise GuideError(f"{path} is missing: copy the guide's folder again, or train it again.")
    content = read_json(path)
    kind = content.get("peft_type")
    config_class: Any = LoraConfig if kind == "LORA" else conditioned.config_class(kind)
    if config_class is None:
        raise GuideError(
            f"{path} is of type {kind!r}; a guide's adapter is a LoRA (or a MoSLoRA or PBLoRA): train it again."
        )
    known = set(config_class.__dataclass_fields__)
    for key in sorted(set(content) - known):
        if content[key]:  # PEFT drops unknown options; one that is switched on would change what the adapter means
            near = did_you_mean(key, known)
            raise GuideError(
                f"{path} sets {key!r}, which the installed PEFT does not know.{near} If a newer PEFT wrote it, "
                "upgrade with 'pip install -U peft'."
            )
        del content[key]
    content.pop("runtime_config", None)
    try:
        config = config_class(**content)
        check_adapter_config(config)
        _check_kinds(config)
        _check_patterns(config)
    except (TypeError, ValueError, AttributeError) as error:  # ConfigError is a ValueError
        raise GuideError(f"{path} cannot be used: {' '.join(str(error).split())[:300]}") from error
    setattr(config, "init_lora_weights" if kind == "LORA" else "init_weights", True)
    for name in _ONLY_FOR_INITIALISATION:
        if hasattr(config, name):
            setattr(config, name, {} if name == "loftq_config" else None)
    return config


def _check_kinds(config: Any) -> None:
    """Refuse values that PEFT takes as they come and that fail only inside the model."""
    scales = {"lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    scales.update({f"alpha_pattern[{k!r}]": v for k, v in _patterns(config, "alpha_pattern").items()})
    for option, value in scales.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{option} is {value!r}, not a number.")
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        value = getattr(config, option, None)
        is_names = isinstance(value, list | set | tuple) and all(isinstance(v, str) for v in cast("list[Any]", value))
        if value is not None and not is_names and not isinstance(value, str):
            raise ValueError(f"{option} is {value!r}, not a list of names.")


def _check_patterns(config: Any) -> None:
    """Refuse names that PEFT would run as regular expressions with groups or repeats (they can run for ever)."""
    layers = config.layers_pattern or []
    named = {
        "rank_pattern": list(_patterns(config, "rank_pattern")),
        "alpha_pattern": list(_patterns(config, "alpha_pattern")),
        "layers_pattern": [layers] if isinstance(layers, str) else list(layers),
    }
    for option, keys in named.items():
        for key in keys:
            if not _PLAIN.match(str(key)):
                raise ValueError(f"{option} has {str(key)[:80]!r}, which is not a module's name.")


def _patterns(config: Any, option: str) -> dict[Any, Any]:
    return dict(getattr(config, option, None) or {})


def _check_shapes(folder: Path, config: Any, header: Header) -> list[str]:
    """Return the adapted modules, after comparing each factor's rank with the config's."""
    from peft.utils.other import get_pattern_key

    path = folder / ADAPTER_WEIGHTS
    kinds: dict[str, set[str]] = {}
    patterns = dict(config.rank_pattern or {})
    for name, (_, shape) in header.items():
        match = _FACTOR.match(name)
        if match is None:
            _check_own(path, name, config)
            continue
        module, kind = match["module"], match["kind"]
        rank = patterns.get(get_pattern_key(list(patterns), module), config.r)
        axis = 0 if kind.endswith("A") else 1
        if len(shape) <= axis or shape[axis] != rank:
            raise GuideError(
                f"{path} does not fit {ADAPTER_CONFIG}: {name[:120]!r} has shape {list(shape)}, but the rank there is "
                f"{rank}: copy the guide's folder again, or train it again."
            )
        kinds.setdefault(module, set()).add(kind[-1])
    if not kinds:
        raise GuideError(f"{path} holds no LoRA tensors: copy the guide's folder again, or train it again.")
    incomplete = next((module for module, found in kinds.items() if found != {"A", "B"}), None)
    if incomplete is not None:
        raise GuideError(f"{path} lacks one of the two factors of {incomplete[:120]!r}: copy the guide's folder again.")
    return sorted(kinds)


def _check_own(path: Path, name: str, config: Any) -> None:
    """Refuse a tensor that is not the adapter's: PEFT would write it over the base's own."""
    module = name.removeprefix(PREFIX).rpartition(".")[0]
    parts = module.split(".")
    above = [".".join(parts[: i + 1]) for i in range(len(parts))]
    whole = tuple(str(m) for m in config.modules_to_save or [] if m)
    is_whole_module = bool(whole) and any(path.endswith(whole) for path in above)  # PEFT's own way of matching
    if not is_whole_module and not any(part.startswith(("lora_", "trainable_tokens_")) for part in name.split(".")):
        raise GuideError(
            f"{path} holds {name[:120]!r}, which is no part of an adapter and would overwrite the base: train it again."
        )
