"""Steer a frozen language model, token by token, with a small autoregressive reward model (a *guide*)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trimtab._version import __version__

if TYPE_CHECKING:
    from trimtab.decoding.config import Sampling
    from trimtab.engine import Engine, EngineConfig, Generation, Guidance, Score, Stream, load
    from trimtab.engine.custom_generate import custom_generate
    from trimtab.errors import TrimtabError
    from trimtab.rewards.fit_report import PreferenceFit
    from trimtab.rewards.fitting import fit
    from trimtab.rewards.soup import soup
    from trimtab.training import TrainConfig, TrainResult, train

# Public name → the module that has it, imported when the name is first used: torch takes seconds, and
# `import trimtab` must not.
_HOMES = {
    "Engine": "trimtab.engine",
    "EngineConfig": "trimtab.engine",
    "Generation": "trimtab.engine",
    "Guidance": "trimtab.engine",
    "PreferenceFit": "trimtab.rewards.fit_report",
    "Sampling": "trimtab.decoding.config",
    "Score": "trimtab.engine",
    "Stream": "trimtab.engine",
    "TrainConfig": "trimtab.training",
    "TrainResult": "trimtab.training",
    "TrimtabError": "trimtab.errors",
    "custom_generate": "trimtab.engine.custom_generate",
    "fit": "trimtab.rewards.fitting",
    "load": "trimtab.engine",
    "soup": "trimtab.rewards.soup",
    "train": "trimtab.training",
}

__all__ = [
    "Engine",
    "EngineConfig",
    "Generation",
    "Guidance",
    "PreferenceFit",
    "Sampling",
    "Score",
    "Stream",
    "TrainConfig",
    "TrainResult",
    "TrimtabError",
    "__version__",
    "custom_generate",
    "fit",
    "load",
    "soup",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
