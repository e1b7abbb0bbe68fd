"""Steer a frozen language model, token by token, with a small autoregressive reward model (a *guide*)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trimtab._version import __version__

if TYPE_CHECKING:
    from trimtab.decoding.config import Sampling
    from trimtab.engine import Engine, Generation, Guidance, Score, Stream, load

# Public name → the module that has it, imported when the name is first used: torch takes seconds, and
# `import trimtab` must not.
_HOMES = {
    "Engine": "trimtab.engine",
    "Generation": "trimtab.engine",
    "Guidance": "trimtab.engine",
    "Sampling": "trimtab.decoding.config",
    "Score": "trimtab.engine",
    "Stream": "trimtab.engine",
    "load": "trimtab.engine",
}

__all__ = ["Engine", "Generation", "Guidance", "Sampling", "Score", "Stream", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
