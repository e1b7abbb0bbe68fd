"""Rewarded soups (arXiv 2306.04488): several LoRA guides of one base as one guide whose weights are mixed at any α.

Each part adds s_i·B_i A_i to a layer, and the soup θ(α) = Σ_i α_i θ_i adds Σ_i α_i·s_i·B_i A_i. With the A_i on top of
each other and the s_i·B_i side by side that is B diag(γ) A, in which every feature is scaled by the α of the part that
owns it: a MoSLoRA with condition 'alpha' and modulation 'scale'. Its γ = 1 + G α is that where G[r, i] is 0 for the
owner i of feature r and -1 for all others, because Σ_i α_i = 1. So nothing is approximated, and a soup is chosen in
each request as any preference is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab._version import __version__
from trimtab.errors import ConfigError
from trimtab.rewards.adapter import PREFIX, load_adapter_config, load_adapter_tensors
from trimtab.rewards.artifact import check_weights, stage_adapter, write_guide
from trimtab.rewards.folder import check_folder
from trimtab.rewards.manifest import DataRef, GuideManifest, read_manifest
from trimtab.rewards.moslora import PREFIX as MOSLORA
from trimtab.rewards.moslora import MoSLoRAConfig

_FACTOR = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<kind>[AB])\.weight$")
# What says how a LoRA was trained, or what the tensors and their scaling tell; any other option would change what it
# computes (DoRA, aLoRA, …) and has to have its default.
_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_TOLD = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "rank_pattern", "lora_alpha", "alpha_pattern", "lora_dropout", "use_rslora"),
    *("fan_in_fan_out", "init_lora_weights", "loftq_config", "eva_config", "runtime_config", *_WHERE),
    *("megatron_config", "megatron_core", "qalora_group_size"),
}


@dataclass(frozen=True)
class _Part:
    """One guide of a soup.

    Attributes:
        folder: where it lies.
        manifest: its ``guide.json``.
        config: its LoRA's options.
        layers: module → (A, s·B), (R, D_IN) and (D_OUT, R), float64.
    """

    folder: Path
    manifest: GuideManifest
    config: Any
    layers: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """The most features of a layer."""
        return max(A.shape[0] for A, _ in self.layers.values())


def soup(guides: Sequence[str | Path], output_dir: str | Path) -> GuideManifest:
    """Write several plain LoRA guides of one base as one guide that mixes their weights by a preference.

    The base is not needed. At any α the guide is the model whose weights are Σ_i α_i θ_i, at one objective alone that
    guide itself. Layers that a part does not adapt count as unchanged by it.

    Args:
        guides: folders of two or more guides with one objective each, all ARMs or all policies.
        output_dir: the folder to write, whole or not at all.

    Returns:
        The new guide's manifest: its objectives are those of the parts, in their order, and so is α.

    Raises:
        ConfigError: fewer than two guides, or guides that cannot be mixed: of different bases, tokenizers, templates or
            kinds, of one objective, of several, conditioned or fully fine-tuned ones, LoRAs that do more than add a
            low-rank product to linear layers.
        GuideError: a folder is damaged or unsafe.
        OutputError: the output cannot be written.
    """
    folders = [Path(guide) for guide in guides]
    if len(folders) < 2:
        raise ConfigError(f"A soup is made of two guides or more, and there is {len(folders) or 'none'}: name others.")
    output = Path(output_dir)
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ConfigError("The soup cannot be written into the folder of one of its guides: choose another one.")
    manifests = [_read(folder) for folder in folders]
    _check_alike(folders, manifests)
    parts = [_part(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    config = _config(parts)
    state = _state(parts)
    made = _manifest(parts)
    return write_guide(output, made, lambda staged: stage_adapter(staged, config, state, made))


def _read(folder: Path) -> GuideManifest:
    check_folder(folder)
    manifest = read_manifest(folder)
    if manifest.adapter == "full":
        raise ConfigError(
            f"The guide {str(folder)!r} is a fully fine-tuned model, and a soup is made of LoRAs: train it without "
            "--full-finetune."
        )
    if manifest.adapter != "lora":
        raise ConfigError(
            f"The guide {str(folder)!r} follows a preference already ({manifest.adapter}): write it at one with "
            "'trimtab export', and mix that."
        )
    if len(manifest.objectives) != 1:
        names = ", ".join(manifest.objective_names)
        raise ConfigError(f"The guide {str(folder)!r} rewards {names} as one: a soup mixes guides of one objective.")
    check_weights(manifest, folder)
    return manifest


def _check_alike(folders: Sequence[Path], manifests: Sequence[GuideManifest]) -> None:
    """Refuse guides whose weights do not belong together."""
    first = manifests[0]
    for folder, other in zip(folders[1:], manifests[1:], strict=True):
        pair = f"The guides {str(folders[0])!r} and {str(folder)!r}"
        if other.kind != first.kind:
            raise ConfigError(f"{pair} are of kinds {first.kind!r} and {other.kind!r}: mix guides of one kind.")
        if other.base.fingerprint != first.base.fingerprint:
            raise ConfigError(
                f"{pair} were trained on different bases ({first.base.id}, weights {first.base.fingerprint}; "
                f"{other.base.id}, weights {other.base.fingerprint}): only changes of the same weights can be mixed."
            )
        for name, what in (
            ("tokenizer_hash", "tokenizers"),
            ("chat_template", "chat templates"),
            ("eos_token_id", "tokens that end answers"),
        ):
            if getattr(other, name) != getattr(first, name):
                raise ConfigError(f"{pair} were trained with different {what}, so no prompt would suit both.")
    names = [manifest.objective_names[0] for manifest in manifests]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(
            f"Two of the guides reward {twice!r}, and a soup's objectives need names of their own: leave one out, or "
            "rename its objective in guide.json."
        )


def _part(folder: Path, manifest: GuideManifest) -> _Part:
    config, tensors = load_adapter_config(folder), load_adapter_tensors(folder)
    _check_plain(config, tensors, folder)
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.match(name)
        if match is not None:
            # float64, so that what is rounded once at the end is all the error there is
            factors.setdefault(match["module"], {})[match["kind"]] = tensor.double()
    layers = {
        module: (found["A"], _scaling(config, module, found["A"].shape[0]) * found["B"])
        for module, found in factors.items()
    }
    return _Part(folder, manifest, config, layers)


def _check_plain(config: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    from peft import LoraConfig

    default: dict[str, Any] = LoraConfig().to_dict()
    options: dict[str, Any] = config.to_dict()
    changed = next((k for k, v in options.items() if k not in _TOLD and v and v != default.get(k)), None)
    foreign = next((name for name in tensors if _FACTOR.match(name) is None), None)
    if changed is not None or foreign is not None:
        what = f"sets {changed!r}" if changed is not None else f"holds {str(foreign)[:120]!r}"
        raise ConfigError(
            f"The LoRA of {str(folder)!r} {what}, so that it does more than add a low-rank product to linear layers, "
            "and a soup of it would not be the mix of its weights: train it without."
        )


def _scaling(config: Any, module: str, rank: int) -> float:
    """Return s of a layer, as PEFT finds it."""
    from peft.utils.other import get_pattern_key

    patterns = dict(config.alpha_pattern or {})
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def _config(parts: Sequence[_Part]) -> MoSLoRAConfig:
    rank = sum(part.rank for part in parts)
    first = parts[0]
    where: dict[str, Any] = {name: getattr(first.config, name) for name in _WHERE}
    alike = all(part.layers.keys() == first.layers.keys() for part in parts)
    if not alike or any({name: getattr(part.config, name) for name in _WHERE} != where for part in parts):
        modules = {module for part in parts for module in part.layers}
        where = {
            "target_modules": modules,
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    return MoSLoRAConfig(
        objectives=[part.manifest.objective_names[0] for part in parts],
        r=rank,
        lora_alpha=rank,  # s is in B already
        condition="alpha",
        modulation="scale",
        generator="layer",
        fan_in_fan_out=first.config.fan_in_fan_out,
        task_type="CAUSAL_LM",
        **where,
    )


def _state(parts: Sequence[_Part]) -> dict[str, Tensor]:
    owners = torch.tensor([i for i, part in enumerate(parts) for _ in range(part.rank)])
    G = torch.nn.functional.one_hot(owners, len(parts)).float() - 1
    state: dict[str, Tensor] = {}
    for module in sorted({module for part in parts for module in part.layers}):
        # A part that adapts this layer with fewer features, or not at all, has zeros for the others.
        d_in, d_out = next((p.layers[module][0].shape[1], p.layers[module][1].shape[0])
                           for p in parts if module in p.layers)  # fmt: skip
        A = [torch.zeros(part.rank, d_in, dtype=torch.float64) for part in parts]
        B = [torch.zeros(d_out, part.rank, dtype=torch.float64) for part in parts]
        for i, part in enumerate(parts):
            if module in part.layers:
                a, b = part.layers[module]
                if (a.shape[1], b.shape[0]) != (d_in, d_out):
                    raise ConfigError(
                        f"The layer {module!r} is {b.shape[0]} × {a.shape[1]} in {str(part.folder)!r} and {d_out} × "
                        f"{d_in} in another guide: they are not of one base."
                    )
                A[i][: a.shape[0]], B[i][:, : b.shape[1]] = a, b
        for name, tensor in (("A", torch.cat(A)), ("B", torch.cat(B, dim=1)), ("G", G.clone())):
            state[f"{PREFIX}{module}.{MOSLORA}{name}"] = tensor.float()
    return state


def _manifest(parts: Sequence[_Part]) -> GuideManifest:
    manifests = [part.manifest for part in parts]
    first = manifests[0]
    weights = [manifest.weight for manifest in manifests]
    return first.model_copy(
        update={
            "adapter": "moslora",
            "objectives": tuple(
                m.objectives[0].model_copy(update={"beta": None if m.betas[0] == first.beta else m.betas[0]})
                for m in manifests
            ),
            "weight": weights[0] if len(set(weights)) == 1 else math.fsum(weights) / len(weights),
            "data": _data(manifests),
            "training": _training(parts),
            "metrics": _metrics(manifests),
            "license": first.license if len({m.license for m in manifests}) == 1 else None,
            "library_version": __version__,
        }
    )


def _data(manifests: Sequence[GuideManifest]) -> DataRef | None:
    """Return what the parts were trained on; ``None`` where that is not known of each of them."""
    found = [manifest.data for manifest in manifests if manifest.data is not None]
    if len(found) < len(manifests):
        return None
    hashes = list(dict.fromkeys(data.sha256 for data in found))
    together = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    labellers = dict.fromkeys(data.labelled_by for data in found if data.labelled_by is not None)
    return DataRef(
        sha256=hashes[0] if len(hashes) == 1 else together,
        files=tuple(dict.fromkeys(file for data in found for file in data.files)),
        comparisons=sum(data.comparisons for data in found),
        labelled_by=", ".join(labellers) or None,
    )


def _training(parts: Sequence[_Part]) -> dict[str, Any]:
    """Return the settings that the parts have in common, and what each of them is."""
    settings = [part.manifest.training for part in parts]
    common = {key: value for key, value in settings[0].items() if all(key in s and s[key] == value for s in settings)}
    if len({part.manifest.weight for part in parts}) > 1:
        common.pop("loss", None)  # trained for one weight in decoding each, and no weight is that of all
    longest = {
        key: max(s[key] for s in settings)
        for key in ("max_length", "max_prompt_length")
        if all(isinstance(s.get(key), int) for s in settings)
    }
    data = [part.manifest.data for part in parts]
    return {
        **common,
        **longest,
        "method": "soup",
        "parts_method": ", ".join(dict.fromkeys(str(s.get("method", "unknown")) for s in settings)),
        "rank": sum(part.rank for part in parts),
        "parts_sha256": ", ".join(h for part in parts for h in part.manifest.weights_sha256.values()),
        "parts_data_sha256": ", ".join(dict.fromkeys(d.sha256 for d in data if d is not None)),
    }


def _metrics(manifests: Sequence[GuideManifest]) -> dict[str, Any]:
    """Return the held-out results by objective: at one objective alone a soup is that part."""
    found = {manifest.objective_names[0]: manifest.metrics.get("held_out") for manifest in manifests}
    return {"held_out": found} if all(found.values()) else {}


__all__ = ["soup"]
