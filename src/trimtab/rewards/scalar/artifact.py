"""The folder of a scalar reward model: written whole or not at all, loaded with every check.

::

    reward/
      adapter_config.json, adapter_model.safetensors   a PEFT adapter with the head; or a whole model (config.json, …)
      tokenizer.json, …                                the tokenizer, with the padding token that it reads by
      scalar.json                                      what it scores, on which base (see rewards/scalar/manifest.py)
      README.md                                        a model card with the lines that load it in plain transformers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.errors import GuideError, ModelError, NumericalError
from trimtab.models import Base, tokenizer_hash
from trimtab.rewards.adapter import load_adapter_config, load_adapter_tensors, portable_config, refuse_not_finite
from trimtab.rewards.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_folder,
    check_hashes,
    weights_hashes,
    write_whole,
)
from trimtab.rewards.scalar import card
from trimtab.rewards.scalar.manifest import SCALAR_FILE, ScalarManifest, read_scalar
from trimtab.rewards.scalar.model import ScalarEncoder, load_backbone

README = "README.md"


def save_scalar(folder: str | Path, model: Any, manifest: ScalarManifest, *, tokenizer: Any) -> ScalarManifest:
    """Write a scalar reward model's folder; other files that it holds (checkpoints, logs) stay.

    Args:
        folder: where it shall lie; made if it is not there.
        model: a ``PeftModel`` around a sequence classifier, or a whole one.
        manifest: what to say about it; ``weights_sha256`` is filled in here.
        tokenizer: with the padding token that the model reads by.

    Returns:
        The manifest as it was written.

    Raises:
        NumericalError: the weights hold NaN or infinity.
        OutputError: the folder cannot be written; it is then as it was before.
    """

    def everything(staged: Path) -> ScalarManifest:
        tokenizer.save_pretrained(staged)
        if manifest.adapter == "lora":
            _stage_adapter(staged, model, manifest)
        else:
            _refuse_diverged(dict(model.named_parameters()))
            model.save_pretrained(staged)
        written = manifest.model_copy(update={"weights_sha256": weights_hashes(staged)})
        (staged / README).write_text(card.render(written), encoding="utf-8")
        (staged / SCALAR_FILE).write_text(written.to_json(), encoding="utf-8")
        return written

    return write_whole(folder, everything, what="reward model", last=(README, SCALAR_FILE))


def _stage_adapter(staged: Path, model: Any, manifest: ScalarManifest) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    name = model.active_adapter
    state: Any = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in sorted(state.items())}
    _refuse_diverged(tensors)
    content = portable_config(model.peft_config[name], manifest.base.id, manifest.base.revision)
    content["modules_to_save"] = sorted(set(content["modules_to_save"] or []))
    (staged / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (staged / ADAPTER_WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _refuse_diverged(tensors: dict[str, Any]) -> None:
    try:
        refuse_not_finite(tensors, Path("The reward model"))
    except GuideError as error:
        raise NumericalError(
            "The reward model's weights hold NaN or infinity, so it is not saved: lower the learning rate or train in "
            "float32."
        ) from error


def load_scalar(
    folder: str | Path, *, dtype: str = "float32", device: str = "auto"
) -> tuple[Base, ScalarEncoder, ScalarManifest]:
    """Load a scalar reward model that trimtab trained.

    Args:
        folder: its folder.
        dtype: of the weights.
        device: ``"auto"`` (CUDA if there is one), or a torch device.

    Returns:
        The model (as a :class:`Base`, in eval mode), how it reads, and what its folder says.

    Raises:
        GuideError: the folder is unsafe or damaged, or the base that it names has other weights.
        ModelError: the base cannot be loaded.
    """
    folder = Path(folder).expanduser()
    check_folder(folder)
    manifest = read_scalar(folder)
    check_hashes(folder, manifest.weights_sha256, listed_in=SCALAR_FILE)
    full = manifest.adapter == "full"
    name, revision = (str(folder), None) if full else (manifest.base.id, manifest.base.revision)
    try:
        base, fresh = load_backbone(name, revision=revision, dtype=dtype, device=device)
    except ModelError as error:
        raise GuideError(f"The base of the reward model {str(folder)!r} cannot be loaded: {error}") from error
    if tokenizer_hash(base.tokenizer) != manifest.tokenizer_hash:
        raise GuideError(f"The reward model {str(folder)!r} was trained with another tokenizer than {name!r} has.")
    base.model.config.pad_token_id = manifest.pad_token_id
    if full and fresh:
        raise GuideError(f"{str(folder)!r} has no weights for {', '.join(fresh)}: copy the folder again.")
    if not full:
        if base.fingerprint != manifest.base.fingerprint:
            raise GuideError(
                f"The reward model {str(folder)!r} was trained on {manifest.base.id!r} with weights "
                f"{manifest.base.fingerprint}, but what goes by that name here has {base.fingerprint}."
            )
        base = Base(
            _with_adapter(base, folder), base.tokenizer, base.id, base.revision, base.folder, None, base.fingerprint
        )
    encoder = ScalarEncoder(
        base,
        chat_template=manifest.chat_template,
        segments=manifest.segments,
        max_length=manifest.max_length,
        max_prompt_length=manifest.max_prompt_length,
    )
    return base, encoder, manifest


def _with_adapter(base: Base, folder: Path) -> Any:
    from peft import PeftModelForSequenceClassification
    from peft.utils.save_and_load import set_peft_model_state_dict

    config = load_adapter_config(folder)
    config.inference_mode = True
    tensors = load_adapter_tensors(folder)
    try:
        model: Any = PeftModelForSequenceClassification(base.model, config)
        outcome: Any = set_peft_model_state_dict(model, tensors)
    except Exception as error:  # PEFT raises many classes here; each means config and tensors do not fit this base
        reason = " ".join(str(error).split())[:200]
        raise GuideError(f"{folder / ADAPTER_WEIGHTS} does not fit {base.id!r} ({reason}).") from error
    # A head that is not in the file would be the base's own, and score noise.
    wanted = [key for key in outcome.missing_keys if "lora_" in key or "modules_to_save" in key]
    if wanted or outcome.unexpected_keys:
        name = [*wanted, *outcome.unexpected_keys][0][:120]
        raise GuideError(f"{folder / ADAPTER_WEIGHTS} does not fit {ADAPTER_CONFIG} ({name!r}): copy the folder again.")
    return model.to(base.device).eval()
