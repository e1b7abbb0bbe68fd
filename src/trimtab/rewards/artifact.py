"""The guide's folder: writing it whole or not at all, and loading it with every check.

::

    guide/
      adapter_config.json         PEFT's, so stock PEFT and vLLM load the folder as a LoRA
      adapter_model.safetensors   the LoRA factors; a full fine-tune has a model and tokenizer instead
      guide.json                  what it rewards, on which base and tokenizer (see rewards/manifest.py)
      README.md                   a model card
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, GuideError, ModelError, NumericalError
from trimtab.models import Base, load_base, tokenizer_hash
from trimtab.rewards import card
from trimtab.rewards.adapter import (
    check_adapter_config,
    check_fits,
    check_lora_config,
    load_adapter_config,
    load_adapter_tensors,
    portable_config,
    refuse_not_finite,
)
from trimtab.rewards.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_folder,
    check_hashes,
    weights_hashes,
    write_whole,
)
from trimtab.rewards.manifest import GUIDE_FILE, BaseRef, DataRef, GuideManifest, Objective, read_manifest

__all__ = [
    "GUIDE_FILE",
    "BaseRef",
    "DataRef",
    "GuideManifest",
    "Objective",
    "check_base",
    "check_folder",
    "check_lora_config",
    "check_objectives",
    "check_weights",
    "load_adapter_config",
    "load_adapter_tensors",
    "load_guide_model",
    "read_manifest",
    "save_guide",
]

README = "README.md"


def save_guide(folder: str | Path, model: Any, manifest: GuideManifest, *, tokenizer: Any = None) -> GuideManifest:
    """Write a guide's folder: everything is written beside its place first, then renamed into it.

    Other files that the folder already holds (checkpoints, logs) stay.

    Args:
        folder: where the guide shall lie; made if it is not there.
        model: a ``PeftModel`` with a LoRA, MoSLoRA or PBLoRA, or a transformers model for a full fine-tune.
        manifest: what to say about it; ``weights_sha256`` is filled in here.
        tokenizer: saved with a full fine-tune, which needs its own; not used for a LoRA.

    Returns:
        The manifest as it was written.

    Raises:
        ConfigError: the model and ``manifest.adapter`` do not belong together.
        NumericalError: the weights hold NaN or infinity.
        OutputError: the folder cannot be written; it is then as it was before.
    """
    is_adapter = hasattr(model, "peft_config")
    if is_adapter != (manifest.adapter != "full"):
        raise ConfigError(
            f"The manifest says adapter={manifest.adapter!r}, but the model is a {type(model).__name__}: "
            "'lora' needs a PeftModel, 'full' a plain transformers model."
        )
    if not is_adapter and tokenizer is None:
        raise ConfigError("A full fine-tune is saved with its tokenizer: pass tokenizer=…")

    def stage(staged: Path) -> None:
        if is_adapter:
            _stage_adapter(staged, model, manifest)
        else:
            _stage_full(staged, model, tokenizer)

    return write_guide(folder, manifest, stage)


def write_guide(folder: str | Path, manifest: GuideManifest, stage: Callable[[Path], None]) -> GuideManifest:
    """Write a guide's folder from files that ``stage`` makes, whole or not at all (see :func:`save_guide`).

    Args:
        folder: where the guide shall lie; made if it is not there.
        manifest: what to say about it; ``weights_sha256`` is filled in here.
        stage: writes config and weights into the folder it is given.

    Returns:
        The manifest as it was written.

    Raises:
        OutputError: the folder cannot be written; it is then as it was before.
    """

    def everything(staged: Path) -> GuideManifest:
        stage(staged)
        written = manifest.model_copy(update={"weights_sha256": weights_hashes(staged)})
        (staged / README).write_text(card.render(written), encoding="utf-8")
        (staged / GUIDE_FILE).write_text(written.to_json(), encoding="utf-8")
        return written

    return write_whole(folder, everything, what="guide", last=(README, GUIDE_FILE))


def check_base(manifest: GuideManifest, base: Base, folder: str | Path) -> None:
    """Refuse a base other than the one a guide was trained on, or another tokenizer.

    A full fine-tune brings its own weights and tokenizer, so any base may be guided by it as far as the
    vocabularies allow (:func:`trimtab.models.reconcile` decides that).

    Raises:
        GuideError: names both bases or both tokenizers.
    """
    if manifest.adapter == "full":
        return
    if manifest.base.fingerprint != base.fingerprint:
        theirs = manifest.base.id + (f"@{manifest.base.revision}" if manifest.base.revision else "")
        raise GuideError(
            f"The guide {str(folder)!r} was trained on the base {theirs!r} (weights {manifest.base.fingerprint}), but "
            f"{base.id!r} has other weights ({base.fingerprint}): load it with its own base, or train it on this one."
        )
    found = tokenizer_hash(base.tokenizer)
    if manifest.tokenizer_hash != found:
        raise GuideError(
            f"The guide {str(folder)!r} was trained with another tokenizer ({manifest.tokenizer_hash}) than "
            f"{base.id!r} has ({found}): the same weights need the tokenizer files they were trained with."
        )


def check_weights(manifest: GuideManifest, folder: str | Path) -> None:
    """Compare the weights files with the hashes that ``guide.json`` gives.

    Raises:
        GuideError: a file is missing or is not the one that was saved.
    """
    check_hashes(folder, manifest.weights_sha256, listed_in=GUIDE_FILE)


def check_objectives(manifest: GuideManifest, config: Any, folder: str | Path) -> None:
    """Refuse an adapter of another kind, or with another input (objectives, their order, w), than ``guide.json`` says.

    Raises:
        GuideError: names both.
    """
    found = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if found != manifest.adapter:
        raise GuideError(
            f"{Path(folder) / GUIDE_FILE} says adapter={manifest.adapter!r}, but {ADAPTER_CONFIG} is of type "
            f"{found!r}: copy the guide's folder again."
        )
    own = getattr(config, "objectives", None)
    if own is not None and tuple(own) != manifest.objective_names:
        raise GuideError(
            f"{Path(folder) / GUIDE_FILE} orders the objectives {', '.join(manifest.objective_names)}, but "
            f"{ADAPTER_CONFIG} {', '.join(own)}: a preference would be misread; copy the guide's folder again."
        )
    told = bool(getattr(config, "conditions_on_strength", False))
    if told != manifest.conditions_on_strength:
        raise GuideError(
            f"{Path(folder) / GUIDE_FILE} says conditions_on_strength={manifest.conditions_on_strength}, but "
            f"{ADAPTER_CONFIG} {told}: its input would be misread; copy the guide's folder again."
        )
    if told and manifest.weight <= 0:
        raise GuideError(
            f"{Path(folder) / GUIDE_FILE} recommends weight={manifest.weight:g} for a guide that is told log w: a pull "
            "above 0 is needed; correct it."
        )


def load_guide_model(folder: str | Path, base: Base, *, trainable: bool = False) -> Any:
    """Return a guide as a model whose log-probabilities are its reward, after every check.

    PEFT puts the adapter INTO ``base.model``, which then answers with the adapter; use the returned model's
    ``disable_adapter()`` for the plain base.

    Args:
        folder: the guide's folder.
        base: the base it was trained on (for a full fine-tune only its dtype and device are used).
        trainable: whether the adapter's weights shall have gradients.

    Returns:
        A ``PeftModel`` on ``base.model``; for a full fine-tune a transformers model of its own.

    Raises:
        GuideError: the folder is unsafe, damaged, or made for another base or tokenizer.
    """
    folder = Path(folder)
    check_folder(folder)
    manifest = read_manifest(folder)
    check_base(manifest, base, folder)
    check_weights(manifest, folder)
    if manifest.adapter == "full":
        return _load_full(folder, base, trainable)
    return _load_adapter(folder, manifest, base, trainable)


def _load_adapter(folder: Path, manifest: GuideManifest, base: Base, trainable: bool) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if base.quantization is not None:
        raise GuideError(
            f"The guide {str(folder)!r} needs PEFT's own layers here, which want plain weights, but the base "
            f"{base.id!r} is loaded in {base.quantization}: load it without a quantization."
        )
    if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
        raise GuideError(
            f"The base {base.id!r} already carries an adapter, and {str(folder)!r} would be added to it: load the "
            "base again with load_base, or call unload() on the model that carries it."
        )
    config = load_adapter_config(folder)
    check_objectives(manifest, config, folder)
    tensors = load_adapter_tensors(folder)
    check_fits(tensors, base.model, folder, base.id)
    config.inference_mode = not trainable
    try:
        model = _inject(base.model, config, tensors)
    except Exception as error:  # PEFT raises many classes here; each means config and tensors do not fit this base
        _restore(base.model)
        raise GuideError(
            f"{folder / ADAPTER_WEIGHTS} does not fit {ADAPTER_CONFIG} ({_one_line(error)}): copy the guide's folder "
            "again, or train it again."
        ) from error
    model.to(base.device)
    return model.train() if trainable else model.eval()


def _inject(model: Any, config: Any, tensors: dict[str, Any]) -> Any:
    from peft import PeftModelForCausalLM
    from peft.utils.save_and_load import set_peft_model_state_dict

    if hasattr(model, "peft_config"):  # left over by unload(); PEFT would take it for a second adapter
        del model.peft_config
    own = [(table, name, tensor) for table in _tables(model) for name, tensor in table.items()]
    # On the meta device first: sizes come from the folder, and nothing is allocated for tensors that are not there.
    adapted: Any = PeftModelForCausalLM(model, config, low_cpu_mem_usage=True)
    outcome: Any = set_peft_model_state_dict(adapted, tensors, low_cpu_mem_usage=True)
    absent = [name for name, parameter in adapted.named_parameters() if parameter.is_meta]
    for names, what in ((absent, "is missing"), (outcome.unexpected_keys, "is not wanted")):
        if names:
            raise ValueError(f"{names[0][:120]!r} {what}")
    overwritten = [(table, name, tensor) for table, name, tensor in own if table[name] is not tensor]
    for table, name, tensor in overwritten:
        table[name] = tensor
    if overwritten:
        raise ValueError(f"a tensor in it would overwrite the base's own {overwritten[0][1]!r}")
    return adapted


def _tables(model: Any) -> list[dict[str, Any]]:
    """Return where each module of a model keeps its parameters and buffers, by name."""
    return [table for module in model.modules() for table in (module._parameters, module._buffers)]


def _restore(model: Any) -> None:
    """Take everything that PEFT has put into a model out of it again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        inner = None
        if isinstance(module, BaseTunerLayer):
            inner = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inner = module.original_module
        if inner is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, inner)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(False)


def _load_full(folder: Path, base: Base, trainable: bool) -> Any:
    dtype = str(base.model.dtype).removeprefix("torch.")
    try:
        model = load_base(str(folder), dtype=dtype, device=str(base.device)).model
    except ModelError as error:
        raise GuideError(f"The guide {str(folder)!r} cannot be loaded: {error}") from error
    refuse_not_finite(dict(model.named_parameters()), folder)
    model.requires_grad_(trainable)
    return model.train() if trainable else model.eval()


def _stage_adapter(staged: Path, model: Any, manifest: GuideManifest) -> None:
    from peft import get_peft_model_state_dict

    name = model.active_adapter
    config = model.peft_config[name]
    check_adapter_config(config)
    try:
        check_objectives(manifest, config, "")
    except GuideError as error:
        raise ConfigError(
            f"The manifest says adapter={manifest.adapter!r} with objectives {', '.join(manifest.objective_names)} and "
            f"conditions_on_strength={manifest.conditions_on_strength}; the model's adapter is another: {error}"
        ) from error
    # The embedding is the base's own, whatever PEFT's "auto" thinks of it: only the adapter is saved.
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    stage_adapter(staged, config, state, manifest)


def stage_adapter(staged: Path, config: Any, state: Mapping[str, Any], manifest: GuideManifest) -> None:
    """Write an adapter's config and tensors into a folder.

    Raises:
        NumericalError: the tensors hold NaN or infinity.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in sorted(state.items())}
    _refuse_diverged(tensors)
    content = portable_config(config, manifest.base.id, manifest.base.revision)
    (staged / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (staged / ADAPTER_WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _stage_full(staged: Path, model: Any, tokenizer: Any) -> None:
    from safetensors import SafetensorError

    _refuse_diverged(dict(model.named_parameters()))
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    except SafetensorError as error:  # a full disk arrives as this class
        raise OSError(_one_line(error)) from error


def _refuse_diverged(tensors: dict[str, Any]) -> None:
    try:
        refuse_not_finite(tensors, Path("The guide"))
    except GuideError as error:
        raise NumericalError(
            "The guide's weights hold NaN or infinity, so it is not saved: lower the learning rate or train in float32."
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
