"""How an interval is written, and what it says by the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTROLS = ("base", "untrained")
Row = Mapping[str, Any]


def shown(interval: Row) -> str:
    """Return a number with its interval."""
    return f"{interval['value']:z.3f} [{interval['low']:z.3f}, {interval['high']:z.3f}]"


def gain(interval: Row | None) -> str:
    """Return a difference with its interval."""
    if not interval:
        return ""
    return f"{interval['value']:+z.3f} [{interval['low']:+z.3f}, {interval['high']:+z.3f}]"


def side(interval: Row) -> str:
    """Return what a difference says: only an interval that leaves zero out says anything."""
    if interval["low"] > 0:
        return "greater"
    return "smaller" if interval["high"] < 0 else "no clear difference"
