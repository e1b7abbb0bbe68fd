"""The model card (README.md) of a guide."""

from __future__ import annotations

from trimtab.rewards.manifest import GuideManifest


def render(manifest: GuideManifest) -> str:
    """Return the model card's text."""
    return f"# {', '.join(manifest.objective_names)}\n"
