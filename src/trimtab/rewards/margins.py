"""The margins of pairs under each objective of one or several guides: what ranking and fitting preferences start from.

One conditioned guide holds all its objectives and is scored at chosen preferences; of plain guides each holds one
objective, and is scored as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ConfigError, NumericalError
from trimtab.models import Base, load_base
from trimtab.preferences.records import Comparison
from trimtab.rewards.artifact import load_guide_model, read_manifest
from trimtab.rewards.encoding import EncodedPair, PairEncoder
from trimtab.rewards.manifest import GuideManifest
from trimtab.rewards.scoring import PairScorer, sequence_logprobs

__all__ = ["Guides", "PairMargins", "base_of", "encoder_of", "read_guides", "score_pairs"]

CONDITIONED = ("moslora", "pblora")
_MAX_LENGTH, _MAX_PROMPT_LENGTH = 1024, 512


@dataclass(frozen=True)
class Guides:
    """One conditioned guide, or plain guides of one objective each.

    Attributes:
        folders: where they lie.
        manifests: what they say.
        objectives: the names that a preference counts, in its order.
        conditioned: whether it is one conditioned guide.
    """

    folders: tuple[Path, ...]
    manifests: tuple[GuideManifest, ...]
    objectives: tuple[str, ...]
    conditioned: bool

    @property
    def betas(self) -> tuple[float, ...]:
        """β_r of each objective."""
        if self.conditioned:
            return self.manifests[0].betas
        return tuple(manifest.betas[0] for manifest in self.manifests)


@dataclass(frozen=True)
class PairMargins:
    """What N pairs score: log π(a|x) − log π(b|x), nats, in the order in which the answers are written.

    Of a policy it is log π − log π_ref, π_ref its base, whose own log π_ref then stands for "untrained".

    Attributes:
        guided: (A, N) at A preferences of a conditioned guide, or (K, N) of K plain guides.
        untrained: (1, N) or (K, N), the same without the guides' training.
        lengths: (tokens of a, tokens of b) of each pair, with the first guide's tokenizer and limits.
        truncated: whether a pair lost a part of prompt or answer.
        equal: whether a pair's answers are the same tokens for every guide, so that it says nothing.
    """

    guided: Tensor
    untrained: Tensor
    lengths: list[tuple[int, int]]
    truncated: list[bool]
    equal: list[bool]


def read_guides(folders: Sequence[str | Path]) -> Guides:
    """Return what the guides' folders say, put in order.

    Raises:
        ConfigError: no guide, several guides of which one is conditioned or has several objectives, or two guides
            for one objective.
        GuideError: a folder is no guide, or is damaged.
    """
    paths = tuple(Path(folder) for folder in folders)
    if not paths:
        raise ConfigError("No guide is given: name at least one guide's folder.")
    manifests = tuple(read_manifest(path) for path in paths)
    if len(paths) == 1 and manifests[0].adapter in CONDITIONED:
        return Guides(paths, manifests, manifests[0].objective_names, True)
    names: list[str] = []
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest.adapter in CONDITIONED:
            raise ConfigError(
                f"The guide {str(path)!r} takes a preference itself, over {', '.join(manifest.objective_names)}: use "
                "it alone, or fix its preference first with 'trimtab export'."
            )
        if len(manifest.objectives) > 1:
            raise ConfigError(
                f"The guide {str(path)!r} rewards several objectives ({', '.join(manifest.objective_names)}) at once "
                "and cannot weigh them: use a guide for each, or one of method 'uniarm' or 'parm'."
            )
        if manifest.objective_names[0] in names:
            raise ConfigError(f"Two guides reward {manifest.objective_names[0]!r}: give one guide an objective.")
        names.append(manifest.objective_names[0])
    return Guides(paths, manifests, tuple(names), False)


def base_of(manifest: GuideManifest, base: Base | str | None = None) -> Base:
    """Return a guide's base: the one given, else the one that its manifest names.

    Raises:
        ModelError: it cannot be loaded.
    """
    if base is None:
        return load_base(manifest.base.id, revision=manifest.base.revision)
    return load_base(base) if isinstance(base, str) else base


def encoder_of(manifest: GuideManifest, base: Base) -> tuple[PairEncoder, int]:
    """Return an encoder with a guide's own template and limits, and the longest sequence it makes, tokens."""
    longest = min(int(manifest.training.get("max_length", _MAX_LENGTH)), base.context_length)
    longest_prompt = int(manifest.training.get("max_prompt_length", _MAX_PROMPT_LENGTH))
    encoder = PairEncoder(
        base.tokenizer,
        chat_template=manifest.chat_template,
        max_length=longest,
        max_prompt_length=min(longest_prompt, longest - 1),
    )
    return encoder, longest


def score_pairs(
    guides: Guides,
    comparisons: Sequence[Comparison],
    alphas: Tensor | None = None,
    *,
    base: Base | str | None = None,
    batch_size: int = 16,
) -> PairMargins:
    """Return the pairs' margins with every guide and without its training.

    Args:
        guides: from :func:`read_guides`.
        comparisons: N pairs; their labels are not used.
        alphas: (A, K), the preferences to score a conditioned guide at.
        base: the guides' base, or another name for it; default: the one each manifest names.
        batch_size: pairs in one forward.

    Raises:
        GuideError: a guide is damaged or for another base.
        NumericalError: a margin is NaN or infinite.
    """
    if guides.conditioned == (alphas is None):
        raise ConfigError("Preferences are for a conditioned guide, and it needs them.")
    loaded: dict[tuple[str, str | None] | None, Base] = {}
    parts: list[_Part] = []
    for folder, manifest in zip(guides.folders, guides.manifests, strict=True):
        key = None if base is not None else (manifest.base.id, manifest.base.revision)
        own = loaded[key] = loaded.get(key) or base_of(manifest, base)
        parts.append(_score(folder, manifest, own, comparisons, alphas, batch_size))
    guided, untrained = (torch.cat(side) for side in zip(*((p.guided, p.untrained) for p in parts), strict=True))
    if not bool(guided.isfinite().all() and untrained.isfinite().all()):
        raise NumericalError("A log-probability is NaN or infinite: the model or a guide is damaged.")
    first = parts[0].pairs
    return PairMargins(
        guided=guided,
        untrained=untrained,
        lengths=[(len(p.a_ids), len(p.b_ids)) for p in first],
        truncated=[any(part.pairs[n].truncated for part in parts) for n in range(len(first))],
        equal=[all(part.pairs[n].equal for part in parts) for n in range(len(first))],
    )


@dataclass(frozen=True)
class _Part:
    """One guide's share of :class:`PairMargins`."""

    guided: Tensor
    untrained: Tensor
    pairs: list[EncodedPair]


def _score(
    folder: Path,
    manifest: GuideManifest,
    base: Base,
    comparisons: Sequence[Comparison],
    alphas: Tensor | None,
    batch_size: int,
) -> _Part:
    encoder, longest = encoder_of(manifest, base)
    pairs = [encoder.encode(c.prompt, c.response_a, c.response_b, id=c.id or c.source) for c in comparisons]
    model: Any = load_guide_model(folder, base)
    full = manifest.adapter == "full"
    other = base.model if full else model
    off: Callable[[], AbstractContextManager[Any]] = nullcontext if full else model.disable_adapter
    own: dict[str, Any] = {"guided_by": manifest.decoded_weight, "base": base.model if full else None}
    policy = manifest.kind == "policy"
    scored: list[Tensor] = []
    try:
        for alpha in [None] if alphas is None else alphas:
            with nullcontext() if alpha is None else told(model, alpha, manifest):
                scored.append(_margins(model, pairs, longest, batch_size, **own, against_base=policy))
        with off():
            untrained = _margins(other, pairs, longest, batch_size, **own)
    finally:
        if not full:
            model.unload()  # the next guide may stand on the same base
    return _Part(torch.stack(scored), untrained[None], pairs)


def told(model: Any, alpha: Tensor, manifest: GuideManifest) -> AbstractContextManager[None]:
    """Return a context in which a conditioned guide reads at α, and where it is told its pull, at its own weight."""
    from trimtab.rewards.conditioned import condition_input, preference

    inputs = condition_input(model.active_peft_config, alpha, manifest.weight)
    return preference(model, inputs, precompute=True)


def _margins(
    model: Any, pairs: Sequence[EncodedPair], longest: int, batch_size: int, *, base: Any, **reading: Any
) -> Tensor:
    """Return (N,) float64; a pair of equal answers has exactly 0 and costs nothing."""
    margins = torch.zeros(len(pairs), dtype=torch.float64)
    unequal = [n for n, pair in enumerate(pairs) if not pair.equal]
    if unequal:
        scorer = PairScorer(model, max_length=longest, base=base)
        chosen = [pairs[n] for n in unequal]
        a, b = sequence_logprobs(model, chosen, scorer=scorer, batch_size=batch_size, **reading)
        margins[unequal] = (a - b).double()
    return margins
