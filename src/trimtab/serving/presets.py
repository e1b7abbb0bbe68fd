"""Named guidance, so that clients which can only pick a model can still steer."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.engine.guidance import Guidance


class Presets:
    """Guidance by name.

    Attributes:
        named: name → guidance.
    """

    def __init__(self, named: Mapping[str, Guidance]) -> None:
        self.named = dict(named)
