"""Training a guide: config, losses, collator, trainer.

Names are loaded when they are first used, so that the command line's help does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.training.config import TrainConfig
    from trimtab.training.losses import preference_loss
    from trimtab.training.run import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "preference_loss", "train"]

_HOMES = {"TrainConfig": "config", "TrainResult": "run", "preference_loss": "losses", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
