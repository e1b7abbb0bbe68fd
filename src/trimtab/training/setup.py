"""From a config to the objects of a run: Trainer's arguments, the trainable model, the pairs, the output folder."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import ConfigError, DataError, OutputError
from trimtab.models import Base, load_base
from trimtab.models.loading import resolve_dtype
from trimtab.preferences.checks import prompt_key
from trimtab.preferences.records import Comparison
from trimtab.rewards.encoding import PairEncoder, PreparedPairs, choose_objective, prepare_pairs
from trimtab.training.config import TrainConfig
from trimtab.validation import refuse_unknown

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"
DEFAULT_OBJECTIVE = "preferred"
"""Objective of formats with one unnamed label (TRL's, HH-RLHF's)."""

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class RunData:
    """The comparisons of a run and where they came from."""

    train: list[Comparison]
    held_out: list[Comparison]
    objective: str
    sha256: str


def read_data(config: TrainConfig, notify: Callable[[str], None]) -> RunData:
    """Read both sets, choose the objective, and say which prompts they share.

    Raises:
        DataError: a file cannot be read, or the objective is not in it.
    """
    unnamed = config.objective or DEFAULT_OBJECTIVE
    train, digests = _read(config.data, unnamed, config.limit, notify)
    held_out, _ = _read(config.eval_data, unnamed, None, notify)
    objective = choose_objective(train, config.objective, source=", ".join(config.data))
    shared = len({prompt_key(c) for c in held_out} & {prompt_key(c) for c in train})
    if shared:
        notify(f"Warning: {shared} held-out prompts are also trained on, so held-out results will look too good.")
    return RunData(train, held_out, objective, _combined(digests))


def prepare(
    data: RunData, config: TrainConfig, base: Base, notify: Callable[[str], None]
) -> tuple[PreparedPairs, PreparedPairs | None]:
    """Return the encoded pairs for training and, if there are any, for evaluation.

    Raises:
        DataError: no pair is left.
    """
    encoder = PairEncoder(
        base.tokenizer,
        chat_template=config.chat_template,
        max_length=min(config.max_length, base.context_length),
        max_prompt_length=min(config.max_prompt_length, base.context_length - 1),
    )
    train = prepare_pairs(data.train, data.objective, encoder)
    notify(f"Training on {train.summary}.")
    if not train.pairs:
        raise DataError(f"No pair is left to train on: of {train.rows} rows, {train.summary}.")
    if not config.eval_data:
        return train, None
    held_out = prepare_pairs(data.held_out, data.objective, encoder)
    notify(f"Held out: {held_out.summary}.")
    if not held_out.pairs:
        raise DataError(f"No pair is left to evaluate on: of {held_out.rows} rows, {held_out.summary}.")
    return train, held_out


def uses_bfloat16(config: TrainConfig) -> bool:
    """Return whether to compute in bfloat16: as asked, else where the hardware multiplies it fast."""
    if any(config.trainer.get(key) for key in ("bf16", "fp16")):
        return False
    return resolve_dtype("auto") is torch.bfloat16 if config.bf16 is None else config.bf16


def load_for_training(config: TrainConfig) -> Base:
    """Load the base: frozen weights in the dtype of computation, weights that will be trained in float32."""
    half = uses_bfloat16(config) and not config.full_finetune
    return load_base(config.base, revision=config.revision, dtype="bfloat16" if half else "float32", device="auto")


def make_lora_config(config: TrainConfig, base: Base) -> Any:
    """Return the ``peft.LoraConfig`` of the run.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or a value PEFT refuses.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    from trimtab.rewards.artifact import check_lora_config

    refuse_unknown(config.lora, (f.name for f in dataclasses.fields(LoraConfig)), what="LoRA option")
    targets: Any = config.lora_target_modules
    own: dict[str, Any] = {
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": targets[0] if targets == ["all-linear"] else targets,
        "task_type": "CAUSAL_LM",
        # GPT-2's layers store their weight transposed.
        "fan_in_fan_out": any(isinstance(m, Conv1D) for m in base.model.modules()),
    }
    try:
        lora: Any = LoraConfig(**{**own, **config.lora})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The LoRA cannot be made: {' '.join(str(error).split())}") from error
    check_lora_config(lora)
    return lora


def add_lora(base: Base, lora: Any) -> Any:
    """Return the base's model with a fresh LoRA in it (float32, whatever the base's dtype).

    Raises:
        ConfigError: the target modules are not in this model.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(base.model, lora)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in base.model.named_modules() if hasattr(m, "weight")})
        raise ConfigError(
            f"The LoRA does not fit {base.id!r}: {' '.join(str(error).split())[:200]} Its modules: {', '.join(names)}."
        ) from error


def make_arguments(config: TrainConfig) -> Any:
    """Return the run's ``TrainingArguments``.

    Raises:
        ConfigError: an unknown option, one that has its own flag, or a value that Trainer refuses.
    """
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    refuse_unknown(config.trainer, known, what="Trainer option")
    twice = next((key for key in config.trainer if key in TrainConfig.model_fields), None)
    if twice:
        raise ConfigError(f"The Trainer option {twice!r} has its own flag: use --{twice.replace('_', '-')}.")
    values = {key: getattr(config, key) for key in TrainConfig.model_fields if key in known}
    values.update(
        output_dir=str(Path(config.output_dir) / CHECKPOINTS),
        bf16=uses_bfloat16(config),
        report_to=config.report_to or "none",
        resume_from_checkpoint=None,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every trained weight takes part in every forward
        disable_tqdm=True,  # our own bar is shown
    )
    # Newer versions of Trainer call it activation checkpointing and warn about the older name.
    name = "activation" if "activation_checkpointing" in known else "gradient"
    if values.pop("gradient_checkpointing"):
        values |= {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
    try:
        arguments: Any = TrainingArguments(**{**values, **config.trainer})
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"Trainer refuses these options: {' '.join(str(error).split())[:300]}") from error
    # One process a GPU (accelerate launch, torchrun); one process driving several GPUs would replicate the model
    # at each step.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def prepare_output(config: TrainConfig, *, make: bool = True) -> Path:
    """Return the output folder, made and checked to be writable.

    Args:
        config: the run's options; written into the folder.
        make: ``False`` in the other processes of a distributed run.

    Raises:
        OutputError: it cannot be written.
        ConfigError: it is not empty and neither resuming nor overwriting was asked for.
    """
    folder = Path(config.output_dir).expanduser()
    if not make:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (config.resume_from_checkpoint or config.overwrite_output_dir):
        raise ConfigError(
            f"The output folder {str(folder)!r} is not empty: choose another, continue with --resume-from-checkpoint "
            "last, or pass --overwrite-output-dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{CONFIG_FILE}.new"
        staged.write_text(config.to_yaml(), encoding="utf-8")
        staged.replace(folder / CONFIG_FILE)
    except OSError as error:
        raise OutputError(
            f"The output folder {str(folder)!r} cannot be written ({error.strerror or error}): name another with "
            "--output-dir."
        ) from error
    return folder


def find_checkpoint(config: TrainConfig) -> str | None:
    """Return the checkpoint to continue from, or ``None`` for a fresh run.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    asked = config.resume_from_checkpoint
    if asked is None:
        return None
    parent = Path(config.output_dir).expanduser() / CHECKPOINTS
    if asked != "last":
        if not (Path(asked) / "trainer_state.json").is_file():
            raise ConfigError(f"{asked!r} is not a checkpoint: it has no trainer_state.json. Use 'last' or its folder.")
        return asked
    found = [(int(m[1]), p) for p in parent.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    if not found:
        raise ConfigError(f"There is no checkpoint to continue from in {str(parent)!r}: start without resuming.")
    return str(max(found)[1])


def _read(
    sources: Sequence[str], unnamed: str, limit: int | None, notify: Callable[[str], None]
) -> tuple[list[Comparison], list[str]]:
    from trimtab.preferences import read_comparisons

    comparisons: list[Comparison] = []
    digests: list[str] = []
    for source in sources:
        rest = None if limit is None else limit - len(comparisons)
        if rest == 0:
            break
        result = read_comparisons(source, objective=unnamed, limit=rest)
        comparisons += result.comparisons
        digests.append(result.sha256)
        if result.bad_rows:
            first = result.bad_rows[0]
            notify(f"Warning: {len(result.bad_rows)} bad rows of {source} are left out, the first: {first}")
    return comparisons, digests


def _combined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
