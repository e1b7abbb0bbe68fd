"""Choosing the model that drafts: one that a guide brings along, or one that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.engine.backbone import Backbone
from trimtab.engine.config import EngineConfig
from trimtab.engine.core import DraftModel
from trimtab.engine.guides import Guide
from trimtab.engine.memory import weight_bytes
from trimtab.errors import ConfigError
from trimtab.models import Base, reconcile

_SMALL = 0.6  # of the base's bytes: a model that is larger drafts too slowly to be tried unasked


def choose_draft(
    config: EngineConfig,
    base: Base,
    backbones: list[Backbone],
    guides: Sequence[Guide],
    load: Callable[[str], Base],
) -> DraftModel | None:
    """Return what drafts; a model that is named is loaded and its backbone added to ``backbones``.

    Raises:
        ConfigError: ``small`` or ``draft`` is asked for, and there is no such model.
        ModelError: the model that is named cannot be loaded.
        VocabularyMismatchError: it does not share the base's tokenizer.
    """
    if config.speculation in ("off", "ngram"):
        return None
    if config.draft_model is not None and config.speculation != "small":
        model = load(config.draft_model)
        backbones.append(Backbone(model.model, kernels=config.kernels))
        vocabulary = reconcile(
            base.tokenizer,
            model.tokenizer,
            base_size=base.vocabulary_size,
            guide_size=model.vocabulary_size,
            base_name=base.id,
            guide_name=model.id,
        )
        return DraftModel(len(backbones) - 1, vocabulary)
    if config.speculation == "draft":
        raise ConfigError("speculation='draft' needs a model that drafts: name it with draft_model.")
    # A guide that is a whole model of its own has no bare weights to draft with; what a policy was trained from is.
    small = [guide for guide in guides if guide.backbone and guide.slot is not None]
    small += [guide.reference for guide in guides if guide.reference is not None]
    if not small and config.speculation == "small":
        raise ConfigError(
            "speculation='small' drafts with the model of a guide that was trained on a smaller base, and no such "
            "guide is loaded: use 'draft' with draft_model, 'ngram' or 'off'."
        )
    sizes = [weight_bytes(backbone.model) for backbone in backbones]
    best = min(small, key=lambda guide: sizes[guide.backbone], default=None)
    if best is None or (config.speculation == "auto" and sizes[best.backbone] > _SMALL * sizes[0]):
        return None
    return DraftModel(best.backbone, best.vocabulary)
