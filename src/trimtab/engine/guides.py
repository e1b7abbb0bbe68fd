"""Loading guides onto backbones: on the base's own weights where they share it, else on weights of their own."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.adapters import NotSliceableError, read_deltas
from trimtab.engine.backbone import Backbone
from trimtab.engine.conditioned import Conditioner, read_conditioned
from trimtab.engine.config import Kernels
from trimtab.engine.guidance import Pull
from trimtab.errors import GuidanceError, GuideError, ModelError, did_you_mean
from trimtab.models import Base, Text, VocabularyMap, encode_prompt, load_base, reconcile
from trimtab.rewards.artifact import (
    GuideManifest,
    check_base,
    check_fits,
    check_folder,
    check_objectives,
    check_weights,
    load_adapter_config,
    load_adapter_tensors,
    load_guide_model,
    read_manifest,
)
from trimtab.rewards.conditioned.tensors import make_tensors

log = logging.getLogger("trimtab")

GuideFolders = Sequence[str | Path] | Mapping[str, str | Path]
"""Guide folders; each is named after its folder, or by its key in a mapping."""


@dataclass(frozen=True)
class Guide:
    """A guide that is ready to run.

    Attributes:
        name: what its weight is given by.
        folder: where it was loaded from.
        manifest: its ``guide.json``.
        backbone: number of the backbone its rows run through (0 is the base's).
        slot: its adapter there, or ``None`` where the backbone's weights are the guide.
        tokenizer: the tokenizer of its prompts.
        vocabulary: how its scores reach the base's token ids.
        conditioner: turns preferences into what its layers need; ``None`` for a guide that takes no preference.
        reference: the model that a policy was trained from, as another guide without adapter that reads what the policy
            reads; ``None`` for one whose reference is the engine's base, and for guides that are no policies.
    """

    name: str
    folder: Path
    manifest: GuideManifest = dataclasses.field(repr=False)
    backbone: int
    slot: int | None
    tokenizer: Any = dataclasses.field(repr=False)
    vocabulary: VocabularyMap = dataclasses.field(repr=False)
    conditioner: Conditioner | None = dataclasses.field(default=None, repr=False)
    reference: Guide | None = dataclasses.field(default=None, repr=False)

    @property
    def is_policy(self) -> bool:
        """Whether it is an aligned model, whose score is log π − log π_ref."""
        return self.manifest.kind == "policy"

    @property
    def objectives(self) -> Sequence[str]:
        """Names of what it rewards."""
        return self.manifest.objective_names

    @property
    def recommended_weight(self) -> float:
        """The weight it is used with unless the caller says otherwise."""
        return self.manifest.weight

    @property
    def conditioned(self) -> bool:
        """Whether it follows a preference over its objectives."""
        return self.conditioner is not None

    def conditions(self, pull: Pull) -> Tensor | None:
        """Return what its layers need of a preference, for one row; ``None`` where there is none."""
        if self.conditioner is None or pull.alpha is None:
            return None
        return self.conditioner(pull.alpha, pull.weight)

    def condition_key(self, pull: Pull) -> tuple[float, ...] | None:
        """Return what its reading of a text depends on beside the text; ``None`` where nothing does."""
        if self.conditioner is None or pull.alpha is None:
            return None
        return self.conditioner.key(pull.alpha, pull.weight)

    def preference(self, pull: Pull) -> dict[str, float]:
        """Return a pull's preference as objective → α; empty where there is none."""
        return dict(zip(self.objectives, pull.alpha, strict=True)) if pull.alpha is not None else {}

    def encode_prompt(self, prompt: Text) -> list[int]:
        """Return the prompt's ids as this guide reads it: its own chat template, its own tokenizer."""
        return encode_prompt(self.tokenizer, prompt, chat_template=self.manifest.chat_template)

    def own_id(self, token: int) -> int:
        """Return the guide's id of a base token.

        Raises:
            GuidanceError: the guide does not know it.
        """
        index = self.vocabulary.index
        own = token if index is None else int(index[token])
        if own < 0:
            raise GuidanceError(
                f"The text holds token {token}, which the guide {self.name!r} does not know: it cannot score it."
            )
        return own


def load_guides(
    base: Base,
    folders: GuideFolders,
    bases: Mapping[str, str],
    *,
    dtype: str,
    device: str,
    kernels: Kernels = "auto",
    quantization: str | None = None,
) -> tuple[list[Backbone], list[Guide]]:
    """Load guides; return the backbones (the base's first) and the guides.

    Args:
        base: the base model.
        folders: guide folders.
        bases: guide name → the model to load instead of the one ``guide.json`` names.
        dtype: for backbones other than the base's.
        device: likewise.
        quantization: likewise.
        kernels: what runs every backbone.

    Raises:
        GuideError: a folder is missing, damaged, unsafe, or its own base cannot be loaded.
        VocabularyMismatchError: a guide writes with other tokens than the base.
        GuidanceError: ``bases`` names an unknown guide.
    """
    named = name_folders(folders)
    for name in bases:
        if name not in named:
            raise GuidanceError(f"There is no guide {name!r} to give a base to.{did_you_mean(name, named)}")
    loader = _Loader(base, dtype=dtype, device=device, kernels=kernels, quantization=quantization)
    guides = [loader.load(name, folder, bases.get(name)) for name, folder in named.items()]
    return loader.backbones, guides


def name_folders(folders: GuideFolders) -> dict[str, Path]:
    """Return name → folder; folders of one name are told apart by ``-2``, ``-3``, …."""
    if isinstance(folders, Mapping):
        return {str(name): Path(folder) for name, folder in folders.items()}
    named: dict[str, Path] = {}
    for item in folders:
        folder = Path(item).expanduser()
        stem = folder.resolve().name or "guide"
        name, count = stem, 1
        while name in named:
            count += 1
            name = f"{stem}-{count}"
        named[name] = folder
    return named


class _Loader:
    """Keeps track of which weights are loaded, so that guides of one base share them."""

    def __init__(self, base: Base, *, kernels: Kernels, **options: Any) -> None:
        self.base = base
        self.options = options  # how to load another base
        self.kernels: Kernels = kernels
        self.backbones = [Backbone(base.model, kernels=kernels)]
        self._bases = {base.fingerprint: (0, base)}
        self._references: dict[tuple[int, str | None], Guide] = {}

    def load(self, name: str, folder: Path, other_base: str | None) -> Guide:
        check_folder(folder)
        manifest = read_manifest(folder)
        check_weights(manifest, folder)
        if manifest.adapter == "full":
            return self._load_full(name, folder, manifest, other_base)
        own = self._base_of(name, manifest, other_base)
        check_base(manifest, own, folder)
        if manifest.adapter == "lora":
            number, slot = self._place_adapter(folder, name, own)
            return self._guide(name, folder, manifest, number, slot, own.tokenizer)
        number, slot, conditioner = self._place_conditioned(folder, name, manifest, own)
        return self._guide(name, folder, manifest, number, slot, own.tokenizer, conditioner)

    def _guide(
        self,
        name: str,
        folder: Path,
        manifest: GuideManifest,
        number: int,
        slot: int | None,
        tokenizer: Any,
        conditioner: Conditioner | None = None,
    ) -> Guide:
        vocabulary = self._vocabulary(tokenizer, number, name)
        guide = Guide(name, folder, manifest, number, slot, tokenizer, vocabulary, conditioner)
        if not guide.is_policy or manifest.base.fingerprint == self.base.fingerprint:
            return guide
        return dataclasses.replace(guide, reference=self._reference(guide))

    def _vocabulary(self, tokenizer: Any, number: int, name: str) -> VocabularyMap:
        return reconcile(
            self.base.tokenizer,
            tokenizer,
            base_size=self.base.vocabulary_size,
            guide_size=self.backbones[number].vocabulary_size,
            base_name=self.base.id,
            guide_name=name,
        )

    def _reference(self, policy: Guide) -> Guide:
        """Return the model that a policy was trained from, one for all policies that read their prompts alike."""
        number, own = self._bases[policy.manifest.base.fingerprint]
        template = policy.manifest.chat_template or getattr(policy.tokenizer, "chat_template", None)
        if (number, template) not in self._references:
            name = f"{policy.name}'s reference"
            manifest = policy.manifest.model_copy(update={"kind": "arm", "chat_template": template})
            vocabulary = self._vocabulary(own.tokenizer, number, own.id)
            # Without a slot the backbone's weights are the model: the base as it was before the policy was trained.
            made = Guide(name, policy.folder, manifest, number, None, own.tokenizer, vocabulary)
            self._references[number, template] = made
        return self._references[number, template]

    def _load_full(self, name: str, folder: Path, manifest: GuideManifest, other_base: str | None) -> Guide:
        if manifest.kind == "policy":
            found = self._base_of(name, manifest, other_base).fingerprint
            if found != manifest.base.fingerprint:
                raise GuideError(
                    f"The guide {name!r} is an aligned model that scores against the base it was trained from, "
                    f"{manifest.base.id!r}, but {other_base or manifest.base.id!r} has other weights ({found}): name "
                    f"the right model with guide_bases={{{name!r}: …}} or --guide-base {name}=…."
                )
        try:
            own = load_base(str(folder), **self.options)
        except ModelError as error:
            raise GuideError(f"The guide {str(folder)!r} cannot be loaded: {error}") from error
        return self._guide(name, folder, manifest, self._add(own.model), None, own.tokenizer)

    def _base_of(self, name: str, manifest: GuideManifest, other: str | None) -> Base:
        """Return the base the guide was trained on: one that is loaded already, or loaded now."""
        known = self._bases.get(manifest.base.fingerprint)
        if known is not None:
            return known[1]
        wanted = other or manifest.base.id
        revision = None if other else manifest.base.revision
        try:
            own = load_base(wanted, revision=revision, **self.options)
        except ModelError as error:
            raise GuideError(
                f"The guide {name!r} was trained on {manifest.base.id!r}, whose weights are not those of "
                f"{self.base.id!r}, and that model could not be loaded ({error}) Name a place to load it from: "
                f"guide_bases={{{name!r}: …}} or --guide-base {name}=…."
            ) from error
        if own.fingerprint == manifest.base.fingerprint:
            self._bases[own.fingerprint] = (self._add(own.model), own)
        return own

    def _place_adapter(self, folder: Path, name: str, own: Base) -> tuple[int, int | None]:
        """Put a LoRA on the rows of its base's backbone or, where it is more than that, on a copy of its own."""
        number = self._bases[own.fingerprint][0]
        backbone = self.backbones[number]
        try:
            deltas = read_deltas(load_adapter_config(folder), load_adapter_tensors(folder), backbone.model)
            return number, backbone.adapters.add(deltas)
        except NotSliceableError as reason:
            log.warning("Guide %r gets a copy of its base of its own (more memory, slower): %s.", name, reason)
        alone = dataclasses.replace(own, model=copy.deepcopy(own.model))
        adapted: Any = load_guide_model(folder, alone)
        # A bias cannot be merged into a layer that has none; the adapter's layers then stay as PEFT made them.
        keep = adapted.active_peft_config.lora_bias
        model = adapted.get_base_model() if keep else adapted.merge_and_unload()
        model.eval().requires_grad_(False)
        return self._add(model), None

    def _place_conditioned(
        self, folder: Path, name: str, manifest: GuideManifest, own: Base
    ) -> tuple[int, int, Conditioner]:
        """Put a MoSLoRA or PBLoRA on the rows of its base's backbone."""
        number = self._bases[own.fingerprint][0]
        backbone = self.backbones[number]
        config, tensors = load_adapter_config(folder), load_adapter_tensors(folder)
        check_objectives(manifest, config, folder)
        check_fits(tensors, backbone.model, folder, own.id)
        try:
            deltas, conditioner = read_conditioned(make_tensors(config, tensors), backbone.model)
            return number, backbone.adapters.add(deltas), conditioner
        except NotSliceableError as reason:
            # Merged, it would have one preference for all rows; only slices give each row its own.
            raise GuideError(
                f"The guide {name!r} follows a preference in each request, which works on plain linear layers that see "
                f"the batch row by row, but {reason}: write it at one preference with 'trimtab export' and load that."
            ) from reason

    def _add(self, model: Any) -> int:
        # On a GPU it computes beside the base.
        stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        self.backbones.append(Backbone(model, kernels=self.kernels, stream=stream))
        return len(self.backbones) - 1
