"""The engine: base and guides loaded together, answers written, streamed and scored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.engine.config import EngineConfig
    from trimtab.engine.engine import Engine, load
    from trimtab.engine.guidance import Guidance
    from trimtab.engine.guides import Guide
    from trimtab.engine.results import Generation, Score
    from trimtab.engine.stream import Stream

__all__ = ["Engine", "EngineConfig", "Generation", "Guidance", "Guide", "Score", "Stream", "load"]

# Imported when first used: the command line reads the config's options, and torch takes seconds.
_HOMES = {
    "Engine": "engine",
    "EngineConfig": "config",
    "Generation": "results",
    "Guidance": "guidance",
    "Guide": "guides",
    "Score": "results",
    "Stream": "stream",
    "load": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
