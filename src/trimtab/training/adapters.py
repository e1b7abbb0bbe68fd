"""The adapter a method trains: GenARM's and DPO's LoRA, PARM's PBLoRA, UniARM's MoSLoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from trimtab.errors import ConfigError
from trimtab.models import Base
from trimtab.training.config import Method, TrainConfig
from trimtab.validation import refuse_unknown

ADAPTERS: dict[Method, Literal["lora", "pblora", "moslora"]] = {
    "genarm": "lora",
    "dpo": "lora",
    "parm": "pblora",
    "uniarm": "moslora",
}
"""Method → the manifest's word for its adapter."""


CONDITION = "alpha"
"""UniARM's condition unless another is asked for: the best of those compared (studies/two_objectives)."""


def describe(config: TrainConfig, objective: str) -> str:
    """Return one sentence on what an objective prefers: the one given, or one made of its name."""
    given = config.descriptions.get(objective)
    return given or (f"The answer is {objective}." if config.conditioned else "")


def make_adapter_config(config: TrainConfig, base: Base, objectives: Sequence[str]) -> Any:
    """Return the PEFT config of the run: ``LoraConfig``, ``PBLoRAConfig`` or ``MoSLoRAConfig``.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or a value PEFT refuses.
    """
    from transformers.pytorch_utils import Conv1D

    from trimtab.rewards.artifact import check_lora_config

    targets: Any = config.lora_target_modules
    own: dict[str, Any] = {
        "lora_dropout": config.lora_dropout,
        "target_modules": targets[0] if targets == ["all-linear"] else targets,
        "task_type": "CAUSAL_LM",
        **({"conditions_on_strength": True} if config.told_weight else {}),
        # GPT-2's layers store their weight transposed.
        "fan_in_fan_out": any(isinstance(m, Conv1D) for m in base.model.modules()),
    }
    made: Any = _MAKERS[config.method](config, base, objectives, own)
    if ADAPTERS[config.method] == "lora":
        check_lora_config(made)
    return made


def add_adapter(base: Base, adapter: Any) -> Any:
    """Return the base's model with a fresh adapter in it (float32, whatever the base's dtype).

    Raises:
        ConfigError: the target modules are not in this model.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(base.model, adapter)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        names = sorted({n.rsplit(".", 1)[-1] for n, m in base.model.named_modules() if hasattr(m, "weight")})
        raise ConfigError(
            f"The adapter does not fit {base.id!r}: {' '.join(str(error).split())[:200]} Its modules: "
            f"{', '.join(names)}."
        ) from error


def make_scalar_config(config: TrainConfig, base: Base, fresh: Sequence[str]) -> Any:
    """Return the ``LoraConfig`` of a scalar reward model, whose head is trained and saved whole.

    Args:
        config: the run's options.
        base: the sequence classifier.
        fresh: its modules that no file has weights for: the head.

    Raises:
        ConfigError: as :func:`make_adapter_config`.
    """
    from transformers.pytorch_utils import Conv1D

    from trimtab.rewards.artifact import check_lora_config

    targets: Any = config.lora_target_modules
    own: dict[str, Any] = {
        "lora_dropout": config.lora_dropout,
        "target_modules": targets[0] if targets == ["all-linear"] else targets,
        "task_type": "SEQ_CLS",
        # PEFT adds the usual names of a head ("score", "classifier") by itself.
        "modules_to_save": [name for name in fresh if name not in ("score", "classifier")] or None,
        "fan_in_fan_out": any(isinstance(m, Conv1D) for m in base.model.modules()),
    }
    made = _lora(config, base, (), own)
    check_lora_config(made)
    return made


def _lora(config: TrainConfig, base: Base, objectives: Sequence[str], own: dict[str, Any]) -> Any:
    from peft import LoraConfig

    alpha = config.lora_alpha or 2 * config.lora_r
    return _made(LoraConfig, config, {"r": config.lora_r, "lora_alpha": alpha, **own})


def _pblora(config: TrainConfig, base: Base, objectives: Sequence[str], own: dict[str, Any]) -> Any:
    from trimtab.rewards.pblora import PBLoRAConfig

    r2 = config.lora.get("r2", config.lora_r // 2)
    if config.lora_r < 2:
        raise ConfigError("PBLoRA divides the rank into two parts: use --lora-r 2 or more.")
    alpha = config.lora_alpha or 2 * r2
    ranks = {"r1": config.lora_r - config.lora_r // 2, "r2": r2}
    return _made(PBLoRAConfig, config, {**ranks, "lora_alpha": alpha, "objectives": list(objectives), **own})


def _moslora(config: TrainConfig, base: Base, objectives: Sequence[str], own: dict[str, Any]) -> Any:
    from trimtab.rewards.moslora import MoSLoRAConfig

    chosen = {name: value for name in ("modulation", "generator") if (value := getattr(config, name))}
    chosen["condition"] = config.condition or CONDITION
    own |= {"r": config.lora_r, "lora_alpha": config.lora_alpha or 2 * config.lora_r, **chosen}
    own["condition_scale"] = condition_scale(config, base)
    if chosen["condition"] != "text":
        return _made(MoSLoRAConfig, config, {**own, "objectives": list(objectives)})
    sentences = {name: describe(config, name) for name in objectives}

    def described(**options: Any) -> Any:
        return MoSLoRAConfig.described(sentences, base.tokenizer, **options)

    return _made(MoSLoRAConfig, config, own, described)


def condition_scale(config: TrainConfig, base: Base) -> float:
    """Return the factor on UniARM's mixed vector p: such that γ and δ learn about as fast whatever p is made of.

    A step of AdamW changes G p by up to learning rate × Σ|p|. That sum is about 0.8·D for an embedded description,
    which has unit variance in each of D dimensions, and 1 for α itself; the factor makes it about 20. Behind a shared
    trunk the text may be larger, because tanh bounds what reaches γ and δ.
    """
    width = base.model.get_input_embeddings().weight.shape[1]
    shared = config.generator == "shared"
    return {"text": (5.0 if shared else 1.0) / width**0.5, "alpha": 16.0, "learned": 1.0}[config.condition or CONDITION]


def _made(kind: Any, config: TrainConfig, own: dict[str, Any], make: Any = None) -> Any:
    refuse_unknown(
        config.lora,
        (f.name for f in dataclasses.fields(kind)),
        what=f"{kind.__name__.removesuffix('Config').replace('Lora', 'LoRA')} option",
    )
    try:
        return (make or kind)(**{**own, **config.lora})
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The adapter cannot be made: {' '.join(str(error).split())}") from error


_MAKERS = {"genarm": _lora, "dpo": _lora, "parm": _pblora, "uniarm": _moslora}
