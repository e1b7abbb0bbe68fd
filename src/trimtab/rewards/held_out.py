"""Ranking the pairs of a file with a guide on disk: what ``trimtab rank`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.models import Base
from trimtab.preferences.records import Comparison
from trimtab.rewards.artifact import load_guide_model, read_manifest
from trimtab.rewards.encoding import PreparedPairs, choose_objective, prepare_pairs
from trimtab.rewards.manifest import GuideManifest
from trimtab.rewards.margins import base_of, encoder_of
from trimtab.rewards.ranking import RankReport, rank


def rank_guide(
    guide: str | Path,
    comparisons: Sequence[Comparison],
    *,
    objective: str | None = None,
    base: Base | str | None = None,
    source: str = "the data",
    batch_size: int = 16,
) -> tuple[RankReport, PreparedPairs]:
    """Rank comparisons with a guide, beside the untrained model and length alone.

    Args:
        guide: the guide's folder.
        comparisons: held-out pairs.
        objective: which label to compare with; default: the guide's own, else the data's only one.
        base: the guide's base, or another name for it; default: the one its manifest names. For a full fine-tune:
            what it is compared with as untrained.
        source: what to call the comparisons in messages.
        batch_size: pairs in one forward.

    Returns:
        The report, and the pairs with what was left out.

    Raises:
        DataError: there is no pair to rank.
        GuideError: the guide is damaged or for another base.
    """
    manifest = read_manifest(guide)
    wanted = choose_objective(comparisons, _objective(comparisons, manifest, objective), source=source)
    base = base_of(manifest, base)
    encoder, max_length = encoder_of(manifest, base)
    prepared = prepare_pairs(comparisons, wanted, encoder)
    if not prepared.pairs:
        raise DataError(f"No pair of {source} is left to rank: {prepared.summary}.")
    model: Any = load_guide_model(guide, base)
    full = manifest.adapter == "full"
    report = rank(
        model,
        prepared.pairs,
        objective=wanted,
        beta=manifest.beta,
        max_length=max_length,
        untrained=base.model if full else None,
        batch_size=batch_size,
        guided_by=manifest.decoded_weight,
        against_base=manifest.kind == "policy",
        base=base.model if full else None,
    )
    return report, prepared


def _objective(comparisons: Sequence[Comparison], manifest: GuideManifest, asked: str | None) -> str | None:
    if asked is not None:
        return asked
    known = {name for comparison in comparisons for name in comparison.labels}
    return next((name for name in manifest.objective_names if name in known), None)
