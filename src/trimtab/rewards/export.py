"""A conditioned guide at one preference, as a plain LoRA that stock PEFT and vLLM load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trimtab._version import __version__
from trimtab.errors import ConfigError
from trimtab.preferences.vectors import Preference, preference_vector
from trimtab.rewards.adapter import PREFIX
from trimtab.rewards.artifact import check_objectives, check_weights, stage_adapter, write_guide
from trimtab.rewards.conditioned.tensors import LoraFactors, load_tensors
from trimtab.rewards.folder import check_folder
from trimtab.rewards.manifest import GuideManifest, Objective, read_manifest

Consumer = Literal["peft", "vllm"]


def export_lora(
    guide: str | Path,
    preference: Preference,
    output: str | Path,
    *,
    consumer: Consumer = "peft",
    normalise: bool = False,
    strength: float | None = None,
) -> GuideManifest:
    """Write a MoSLoRA or PBLoRA guide at one preference as a plain LoRA guide.

    The base is not needed. Where the guide shifts features (δ ≠ 0) the LoRA gets a bias (``lora_bias``): PEFT computes
    with it on any base, and can merge it into layers that have a bias of their own; vLLM has no such bias.

    Args:
        guide: the guide's folder.
        preference: weights of its objectives (see :func:`trimtab.preferences.vectors.preference_vector`).
        output: the folder to write, whole or not at all.
        consumer: ``"vllm"`` refuses what only PEFT can load.
        normalise: divide the weights by their sum.
        strength: w, for a guide that is told its pull: the LoRA is made for decoding with it, and recommends it.

    Returns:
        The new guide's manifest: one objective, the mixture, with where it comes from under ``training``.

    Raises:
        ConfigError: the guide is not a conditioned one, or ``consumer`` cannot load what it would become, or
            ``strength`` is missing, or given where it means nothing.
        GuidanceError: the preference does not fit the guide's objectives, or ``strength`` is not above 0.
        GuideError: the guide's folder is damaged or unsafe.
        OutputError: the output cannot be written.
    """
    folder, output = Path(guide), Path(output)
    check_folder(folder)
    manifest = read_manifest(folder)
    if manifest.adapter not in ("moslora", "pblora"):
        raise ConfigError(
            f"The guide {str(folder)!r} is of kind {manifest.adapter!r} and takes no preference, so there is nothing "
            "to fix: use it as it is, with a weight."
        )
    if output.resolve() == folder.resolve():
        raise ConfigError("The guide cannot be exported into its own folder: choose another --output.")
    check_weights(manifest, folder)
    tensors = load_tensors(folder)
    check_objectives(manifest, tensors.config, folder)
    _check_strength(manifest, strength, folder)
    alpha = preference_vector(preference, manifest.objective_names, normalise=normalise)
    # float64, so that what is rounded once at the end is all the error there is
    layers = {module: {k: t.double() for k, t in factors.items()} for module, factors in tensors.layers.items()}
    shared = {name: tensor.double() for name, tensor in tensors.shared.items()}
    factors = type(tensors)(tensors.config, layers, shared).at(tensors.inputs(alpha.double(), strength))
    if consumer == "vllm":
        _refuse_biases(factors)
    config = _lora_config(tensors.config, factors)
    state = _state(factors, config.lora_bias)
    made = _manifest(manifest, alpha, strength)
    return write_guide(output, made, lambda staged: stage_adapter(staged, config, state, made))


def _check_strength(manifest: GuideManifest, strength: float | None, folder: Path) -> None:
    if manifest.conditions_on_strength and strength is None:
        raise ConfigError(
            f"The guide {str(folder)!r} is told how strongly it pulls, and a plain LoRA is not: say which pull "
            f"(--strength {manifest.weight:g}) the LoRA shall be decoded with."
        )
    if not manifest.conditions_on_strength and strength is not None:
        raise ConfigError(
            f"The guide {str(folder)!r} is not told how strongly it pulls, so its LoRA is the same for every pull: "
            "leave --strength out, and choose the pull when decoding."
        )


def _refuse_biases(factors: dict[str, LoraFactors]) -> None:
    shifted = next((m for m, f in factors.items() if f.bias is not None and bool(f.bias.any())), None)
    if shifted is not None:
        raise ConfigError(
            f"The guide shifts features (δ ≠ 0 in {shifted!r}), which needs a bias in the LoRA, and vLLM's LoRA has "
            "none: export for PEFT (--consumer peft), or train with modulation='scale' or method 'parm'."
        )


def _lora_config(config: Any, factors: dict[str, LoraFactors]) -> Any:
    from peft import LoraConfig

    # s is in A already. lora_alpha = r makes PEFT's own scaling 1, and stays the whole number that vLLM asks for.
    return LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        fan_in_fan_out=config.fan_in_fan_out,
        lora_bias=any(f.bias is not None and bool(f.bias.any()) for f in factors.values()),
        task_type="CAUSAL_LM",
    )


def _state(factors: dict[str, LoraFactors], with_bias: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for module, (A, B, bias) in factors.items():
        state[f"{PREFIX}{module}.lora_A.weight"] = A.float()
        state[f"{PREFIX}{module}.lora_B.weight"] = B.float()
        if with_bias:
            state[f"{PREFIX}{module}.lora_B.bias"] = (B.new_zeros(B.shape[0]) if bias is None else bias).float()
    return state


def _manifest(manifest: GuideManifest, alpha: Tensor, strength: float | None) -> GuideManifest:
    weights = dict(zip(manifest.objective_names, (round(float(a), 6) for a in alpha), strict=True))
    used = {name: weight for name, weight in weights.items() if weight}
    mixture = Objective(
        name="+".join(f"{weight:g}*{name}" for name, weight in used.items()),
        description="; ".join(
            f"{weights[o.name]:g} of {o.name}" + (f" ({o.description})" if o.description else "")
            for o in manifest.objectives
            if o.name in used
        ),
    )
    source = {
        "exported_from": manifest.adapter,
        "preference": ",".join(f"{name}={weight:g}" for name, weight in weights.items()),
        "source_sha256": ", ".join(manifest.weights_sha256.values()),
        **({} if strength is None else {"strength": strength}),
    }
    return manifest.model_copy(
        update={
            "adapter": "lora",
            "objectives": (mixture,),
            "conditions_on_strength": False,
            "weight": manifest.weight if strength is None else strength,
            "training": {**manifest.training, **source},
            "metrics": {},  # measured on the conditioned guide, at other preferences
            "library_version": __version__,
        }
    )


__all__ = ["Consumer", "export_lora"]
