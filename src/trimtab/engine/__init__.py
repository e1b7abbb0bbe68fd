"""The engine: base and guides loaded together, answers written, streamed and scored."""

from trimtab.engine.engine import Engine, Stream, load
from trimtab.engine.guidance import Guidance
from trimtab.engine.guides import Guide
from trimtab.engine.results import Generation, Score

__all__ = ["Engine", "Generation", "Guidance", "Guide", "Score", "Stream", "load"]
