"""Whether a scorer may judge a guide: not if it is the guide, saw the guide's pairs, or gave them their labels."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.errors import TrimtabError
from trimtab.evaluation.scorers.common import About, Scorer, pair_accuracy
from trimtab.preferences.records import Comparison, response_text
from trimtab.preferences.splitting import prompt_key
from trimtab.rewards.manifest import DataRef, GuideManifest, read_manifest

AGREES = 0.98
"""A scorer that decides this share of a guide's training pairs as their labels do may as well have given them."""
_ENOUGH = 50
_MOST = 400
_CHEAP = ("length", "concise", "distinct", "repetition", "sentiment", "toxicity", "refusal", "compliance")
"""Scorers of which :func:`dependence` finds out whether they gave the labels; a model would take too long."""


@dataclass(frozen=True)
class GuideFacts:
    """What tells a guide and its training from others.

    Attributes:
        name: of the guide, for messages.
        objectives: what it rewards.
        fingerprint: see :func:`fingerprint`.
        data: what its record says of the training data.
        parts_data: SHA-256 of what each part of a soup was trained on.
        folder: where it lies; its training pairs are read again from where ``config.yaml`` there says they are.
    """

    name: str
    objectives: tuple[str, ...]
    fingerprint: str
    data: DataRef | None
    folder: Path | None = None
    parts_data: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: str | Path) -> GuideFacts:
        """Return what a guide's folder says.

        Raises:
            GuideError: it is not a guide's folder.
        """
        folder = Path(folder).expanduser()
        manifest = read_manifest(folder)
        name = folder.resolve().name
        parts = str(manifest.training.get("parts_data_sha256") or "")
        found = frozenset(parts.split(", ")) if parts else frozenset[str]()
        return cls(name, manifest.objective_names, fingerprint(manifest), manifest.data, folder, found)

    @functools.cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The training pairs, if the files are where they were and hold what they held; else nothing."""
        if self.folder is None or self.data is None:
            return ()
        return training_pairs(self.folder, self.data.sha256)

    @functools.cached_property
    def pairs(self) -> frozenset[str]:
        """Hashes of the training pairs, as far as they can be read."""
        return pair_hashes(self.comparisons)


def fingerprint(manifest: GuideManifest) -> str:
    """Return a short SHA-256 over the hashes of a guide's weights: equal for copies of one guide, whatever its name."""
    listed = json.dumps([manifest.adapter, sorted(manifest.weights_sha256.items())])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def pair_hashes(comparisons: Iterable[Comparison]) -> frozenset[str]:
    """Return a short SHA-256 of each pair's texts; labels and the order of the two answers do not matter."""

    def one(comparison: Comparison) -> str:
        answers = sorted(response_text(r).strip() for r in (comparison.response_a, comparison.response_b))
        return hashlib.sha256(json.dumps([prompt_key(comparison), answers]).encode()).hexdigest()[:16]

    return frozenset(one(comparison) for comparison in comparisons)


def training_pairs(folder: Path, sha256: str) -> tuple[Comparison, ...]:
    """Return the pairs that a training run of ours was given, read from where its ``config.yaml`` names them.

    Args:
        folder: of the guide or the scalar reward model.
        sha256: what its record says of the data; files that hold something else count as not there.

    Returns:
        The pairs; nothing if there is no such record, a file has moved or changed, or it is on the hub.
    """
    import yaml

    from trimtab.preferences import read_comparisons

    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        values = cast("dict[str, Any]", settings if isinstance(settings, dict) else {})
        paths = [Path(str(source)).expanduser() for source in values.get("data") or []]
        if not paths or not all(path.is_file() for path in paths):
            return ()
        limit = values.get("limit")
        unnamed = values.get("objective") or next(iter(values.get("objectives") or []), None)
        read: list[Comparison] = []
        digests: list[str] = []
        for path in paths:
            if limit is not None and len(read) >= limit:
                break
            found = read_comparisons(
                path, objective=unnamed, limit=None if limit is None else limit - len(read)
            )  # fmt: skip
            read += found.comparisons
            digests.append(found.sha256)
    except (OSError, ValueError, TypeError, yaml.YAMLError, TrimtabError):
        return ()
    combined = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return tuple(read) if combined == sha256 else ()


def dependence(scorer: Scorer | About, guides: Sequence[GuideFacts | str | Path]) -> str | None:
    """Return why a scorer is not independent of the guides it shall judge, or ``None`` if nothing speaks against it.

    ``None`` is no proof: what a model from elsewhere was trained on, nobody may know. Four things are looked for: the
    scorer IS one of the guides; it was fitted on the same data or shares pairs with it; the guide's record names it
    as the labeller of its pairs; or, given the scorer itself and one of the quick ones, it decides the guide's pairs
    as their labels do (98 % of 50 or more), as a length does whose labels are lengths.

    Args:
        scorer: the scorer, or what it says about itself.
        guides: the guides, or their folders.

    Raises:
        GuideError: a folder is not a guide's.
    """
    about = scorer if isinstance(scorer, About) else scorer.about
    known = [guide if isinstance(guide, GuideFacts) else GuideFacts.of(guide) for guide in guides]
    for guide in known:
        reason = _recorded(about, guide)
        if reason is None and not isinstance(scorer, About):
            reason = _gave_the_labels(scorer, guide)
        if reason is not None:
            return reason
    return None


def _recorded(about: About, guide: GuideFacts) -> str | None:
    name = about.name or about.objective
    if about.guide is not None and about.guide == guide.fingerprint:
        return (
            f"The scorer {name!r} is the guide {guide.name!r} itself: its score says how far guidance went, not "
            "whether that was good."
        )
    data = guide.data
    if data is None:
        return None
    if data.labelled_by is not None and about.name in (data.labelled_by, *data.labelled_by.split(", ")):
        return f"The scorer {name!r} gave the labels that the guide {guide.name!r} was trained on: it finds itself."
    if not guide.parts_data.union([data.sha256]).isdisjoint(about.fitted_on):
        return (
            f"The scorer {name!r} was fitted on the pairs that the guide {guide.name!r} was trained on "
            f"({', '.join(data.files) or data.sha256[:12]}): it shares their errors."
        )
    shared = len(about.fitted_on_pairs & guide.pairs) if about.fitted_on_pairs else 0
    if shared:
        return (
            f"The scorer {name!r} was fitted on {shared} of the {len(guide.pairs)} pairs that the guide {guide.name!r} "
            "was trained on: it shares their errors. Fit it on others ('trimtab data split' parts a file)."
        )
    return None


def _gave_the_labels(scorer: Scorer, guide: GuideFacts) -> str | None:
    about = scorer.about
    if not about.name.startswith(_CHEAP):
        return None
    for objective in guide.objectives:
        decided = [c for c in guide.comparisons if c.oriented(objective) is not None][:_MOST]
        if len(decided) < _ENOUGH:
            continue
        agreement = pair_accuracy(scorer, decided, objective)
        if agreement >= AGREES:
            return (
                f"The scorer {about.name!r} decides {agreement:.1%} of the pairs that the guide {guide.name!r} was "
                f"trained on as their labels for {objective!r} do: it is the rule that made them."
            )
    return None
