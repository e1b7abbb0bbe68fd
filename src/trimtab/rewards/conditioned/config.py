"""The options that MoSLoRA and PBLoRA share, named as PEFT's LoRA names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftConfig

from trimtab.errors import ConfigError

MAX_RANK = 4096

Shapes = dict[str, tuple[int | None, ...]]
"""Tensor name → its shape, ``None`` where the base decides the size."""


@dataclass
class ConditionedConfig(PeftConfig):
    """Options of an adapter that is conditioned on a preference vector.

    Raises:
        ConfigError: an option has a value that cannot work.
    """

    objectives: list[str] = field(
        default_factory=list[str], metadata={"help": "Names of the objectives, in the order in which α counts them."}
    )
    conditions_on_strength: bool = field(
        default=False,
        metadata={"help": "Whether it is also told the pull w: its input is [α, log w], and log w = 0 is α alone."},
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt, 'all-linear', or a regular expression, as for LoRA."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out, as for LoRA."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the transformer layers to adapt; all by default."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, where layers_to_transform needs it."}
    )
    lora_alpha: float = field(default=16, metadata={"help": "Numerator of the scaling s."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input in training."})
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Filled in: whether the base stores weights transposed (GPT-2's Conv1D)."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start at the base (B zero); False draws B too, for tests."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        if not _are_names(self.objectives) or len(set(self.objectives)) < len(self.objectives):
            raise ConfigError(f"'objectives' must name at least one objective, each once; got {self.objectives!r}.")
        told: Any = self.conditions_on_strength
        if not isinstance(told, bool):
            raise ConfigError(f"'conditions_on_strength' is {told!r}: use true or false.")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"'lora_dropout' is {self.lora_dropout!r}: use a number from 0 to below 1.")

    @property
    def input_width(self) -> int:
        """K, or K + 1 for a guide that is told its pull: the length of what its layers are conditioned on."""
        return len(self.objectives) + self.conditions_on_strength

    @property
    def scaling(self) -> float:
        """s, the factor on the adapter's output."""
        raise NotImplementedError

    def factor_shapes(self) -> Shapes:
        """Return the tensors of one adapted layer."""
        raise NotImplementedError

    def shared_shapes(self) -> Shapes:
        """Return the tensors that all layers share."""
        return {}


def _are_names(value: Any) -> bool:
    names = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(names) and all(isinstance(name, str) and name for name in names)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ConfigError: names the option and the choices.
    """
    if value not in choices:
        raise ConfigError(f"{name!r} is {value!r}: use {', '.join(map(repr, choices))}.")


def check_rank(name: str, value: Any) -> None:
    """Refuse a rank or width that is no whole number from 1 to 4096.

    Raises:
        ConfigError: names the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise ConfigError(f"{name!r} is {value!r}: use a whole number from 1 to {MAX_RANK}.")
