"""A training run of a few steps, as the tests of every method begin it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def few_steps(data: str, base: Path, output: Path, **others: Any) -> dict[str, Any]:
    """Options of ``trimtab.train``: no dropout, so that runs can be compared."""
    return {
        "data": [data],
        "base": str(base),
        "output_dir": str(output),
        "max_length": 96,
        "max_prompt_length": 64,
        "per_device_train_batch_size": 4,
        "lora_dropout": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "learning_rate": 1e-2,
        **others,
    }
