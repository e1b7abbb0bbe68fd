"""MoSLoRA's options; each choice of the method is one, so that it can be ablated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from trimtab.errors import ConfigError
from trimtab.rewards.conditioned.config import ConditionedConfig, Shapes, check_choice, check_rank
from trimtab.rewards.conditioned.registry import add_peft_type
from trimtab.rewards.conditioned.strength import STRENGTH

PEFT_TYPE = add_peft_type("MOSLORA")
PREFIX = "moslora_"
ENCODER = "moslora_encoder"


@dataclass
class MoSLoRAConfig(ConditionedConfig):
    """Options of a MoSLoRA adapter (see :mod:`trimtab.rewards.moslora.functional` for the equations).

    Raises:
        ConfigError: an option has a value that cannot work.
    """

    r: int = field(default=8, metadata={"help": "Rank R."})
    condition: str = field(
        default="text",
        metadata={
            "help": "What p mixes: 'text' (embedded descriptions), 'alpha' (p = α), 'learned' (a trained table)."
        },
    )
    modulation: str = field(default="both", metadata={"help": "What p changes: 'scale' (γ), 'shift' (δ) or 'both'."})
    generator: str = field(
        default="layer", metadata={"help": "'layer': γ and δ from p; 'shared': from tanh(T p), T common to all layers."}
    )
    trunk_dim: int = field(default=16, metadata={"help": "Rows of T, where the generator is 'shared'."})
    objective_dim: int = field(default=16, metadata={"help": "Length of a row where the condition is 'learned'."})
    condition_scale: float = field(
        default=1.0, metadata={"help": "Factor on p; a text embedding has length √D, so smaller ones train slower."}
    )
    descriptions: list[str] = field(
        default_factory=list[str], metadata={"help": "One sentence an objective, where the condition is 'text'."}
    )
    description_token_ids: list[list[int]] = field(
        default_factory=list[list[int]],
        metadata={"help": "The descriptions' token ids, so that no tokenizer is needed."},
    )

    strength_description: str = field(
        default=STRENGTH,
        metadata={"help": "The sentence that log w multiplies, where the condition is 'text' and w is told."},
    )
    strength_token_ids: list[int] = field(default_factory=list[int], metadata={"help": "Its token ids."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        check_choice("condition", self.condition, ("text", "alpha", "learned"))
        check_choice("modulation", self.modulation, ("scale", "shift", "both"))
        check_choice("generator", self.generator, ("layer", "shared"))
        for name in ("r", "trunk_dim", "objective_dim"):
            check_rank(name, getattr(self, name))
        scale: Any = self.condition_scale
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ConfigError(f"'condition_scale' is {scale!r}: use a number.")
        if self.condition == "text":
            self._check_descriptions()

    @classmethod
    def described(cls, objectives: Mapping[str, str], tokenizer: Any, **options: Any) -> MoSLoRAConfig:
        """Return options for objectives given as name → description.

        Args:
            objectives: name → one sentence, in the order in which α shall count them.
            tokenizer: the base's.
            options: every other option.

        Raises:
            ConfigError: a description is empty, or an option has a value that cannot work.
        """
        ids = [encode_description(text, tokenizer) for text in objectives.values()]
        if options.get("conditions_on_strength"):
            sentence = options.setdefault("strength_description", STRENGTH)
            options["strength_token_ids"] = encode_description(sentence, tokenizer)
        return cls(
            objectives=list(objectives),
            descriptions=list(objectives.values()),
            description_token_ids=ids,
            **options,
        )

    @property
    def embedded_token_ids(self) -> list[list[int]]:
        """The token ids of what is embedded where the condition is 'text': the objectives, then log w's sentence."""
        return [*self.description_token_ids, *([self.strength_token_ids] if self.conditions_on_strength else [])]

    @property
    def scaling(self) -> float:
        """S = lora_alpha / r."""
        return self.lora_alpha / self.r

    @property
    def scales(self) -> bool:
        """Whether there is a γ."""
        return self.modulation != "shift"

    @property
    def shifts(self) -> bool:
        """Whether there is a δ."""
        return self.modulation != "scale"

    def factor_shapes(self) -> Shapes:
        """Return the tensors of one adapted layer."""
        width = {"alpha": self.input_width, "learned": self.objective_dim}.get(self.condition)
        generator = (self.r, self.trunk_dim if self.generator == "shared" else width)
        shapes: Shapes = {f"{PREFIX}A": (self.r, None), f"{PREFIX}B": (None, self.r)}
        if self.scales:
            shapes[f"{PREFIX}G"] = generator
        if self.shifts:
            shapes[f"{PREFIX}D"] = generator
        return shapes

    def shared_shapes(self) -> Shapes:
        """Return the tensors that all layers share."""
        width = {"alpha": self.input_width, "learned": self.objective_dim}.get(self.condition)
        shapes: Shapes = {}
        if self.condition != "alpha":
            shapes[f"{ENCODER}.objectives"] = (self.input_width, width)
        if self.generator == "shared":
            shapes[f"{ENCODER}.trunk"] = (self.trunk_dim, width)
        return shapes

    def _check_descriptions(self) -> None:
        lists: list[Any] = list(self.description_token_ids)
        if len(lists) != len(self.objectives) or not all(_are_token_ids(ids) for ids in lists):
            raise ConfigError(
                "condition='text' needs the token ids of one description an objective: make the options with "
                "MoSLoRAConfig.described({name: sentence, ...}, tokenizer)."
            )
        if self.conditions_on_strength and not _are_token_ids(self.strength_token_ids):
            raise ConfigError(
                "condition='text' with conditions_on_strength needs the token ids of a sentence for log w: make the "
                "options with MoSLoRAConfig.described({name: sentence, ...}, tokenizer, conditions_on_strength=True)."
            )


def _are_token_ids(value: Any) -> bool:
    ids = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(ids) and all(type(token) is int and token >= 0 for token in ids)


def encode_description(text: str, tokenizer: Any) -> list[int]:
    """Return a description's token ids, without special tokens.

    Raises:
        ConfigError: it is empty.
    """
    if not text.strip():
        raise ConfigError("A description is empty: write one sentence, for an objective on what is preferred.")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
