"""PBLoRA's options."""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.rewards.conditioned.config import ConditionedConfig, Shapes, check_rank
from trimtab.rewards.conditioned.registry import add_peft_type

PEFT_TYPE = add_peft_type("PBLORA")
PREFIX = "pblora_"


@dataclass
class PBLoRAConfig(ConditionedConfig):
    """Options of a PBLoRA adapter (see :mod:`trimtab.rewards.pblora.functional` for the equation).

    The paper's setting is r1 = r2 = 4 and lora_alpha = 8 on the attention's q, k and v.

    Raises:
        ConfigError: an option has a value that cannot work.
    """

    r1: int = field(default=4, metadata={"help": "Rank R1 of the part that does not depend on α."})
    r2: int = field(default=4, metadata={"help": "Rank R2 of the part that does."})
    lora_alpha: float = field(default=8, metadata={"help": "Numerator of the scaling s = lora_alpha / r2."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        check_rank("r1", self.r1)
        check_rank("r2", self.r2)

    @property
    def scaling(self) -> float:
        """S = lora_alpha / r2, for both parts."""
        return self.lora_alpha / self.r2

    @property
    def r(self) -> int:
        """R1 + R2, the rank of ΔW."""
        return self.r1 + self.r2

    def factor_shapes(self) -> Shapes:
        """Return the tensors of one adapted layer."""
        return {
            f"{PREFIX}A": (self.r, None),
            f"{PREFIX}B": (None, self.r),
            f"{PREFIX}W1": (self.r1, self.r1),
            f"{PREFIX}C": (self.input_width, self.r2, self.r2),
        }
