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
from trimtab.rewards.encoding import PairEncoder, choose_objective, prepare_pairs
from trimtab.rewards.labelled import LabelledPair, choose_objectives, prepare_labelled
from trimtab.training.config import TrainConfig
from trimtab.validation import refuse_unknown

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"
DEFAULT_OBJECTIVE = "preferred"
"""Objective of formats with one unnamed label (TRL's, HH-RLHF's)."""

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class RunData:
    """The comparisons of a run, where they came from, and what is learned from them (K objectives)."""

    train: list[Comparison]
    held_out: list[Comparison]
    objectives: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class RunPairs:
    """The encoded pairs of a run; where one objective is learned, the answer that it prefers comes first.

    Attributes:
        train: pairs to train on.
        held_out: pairs to evaluate on; empty where there is no such data.
    """

    train: list[LabelledPair]
    held_out: list[LabelledPair]


def read_data(config: TrainConfig, notify: Callable[[str], None]) -> RunData:
    """Read both sets, choose what to learn, and say which prompts they share.

    Raises:
        DataError: a file cannot be read, or an objective is not in it.
        ConfigError: an option is for an objective that is not learned.
    """
    unnamed = config.objective or (config.objectives or [DEFAULT_OBJECTIVE])[0]
    train, digests = _read(config.data, unnamed, config.limit, notify)
    held_out, _ = _read(config.eval_data, unnamed, None, notify)
    source = ", ".join(config.data)
    if config.conditioned:
        objectives = choose_objectives(train, config.objectives, source=source)
    else:
        objectives = (choose_objective(train, config.objective, source=source),)
    for option, names in (("betas", config.betas), ("descriptions", config.descriptions)):
        refuse_unknown(names, objectives, what=f"objective in {option}")
    shared = len({prompt_key(c) for c in held_out} & {prompt_key(c) for c in train})
    if shared:
        notify(f"Warning: {shared} held-out prompts are also trained on, so held-out results will look too good.")
    return RunData(train, held_out, objectives, _combined(digests))


def prepare(data: RunData, config: TrainConfig, base: Base, notify: Callable[[str], None]) -> RunPairs:
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
    train, summary = _encode(data.train, data, config, encoder)
    notify(f"Training on {summary}.")
    if not train:
        raise DataError(f"No pair is left to train on: of {len(data.train)} rows, {summary}.")
    if not config.eval_data:
        return RunPairs(train, [])
    held_out, summary = _encode(data.held_out, data, config, encoder)
    notify(f"Held out: {summary}.")
    if not held_out:
        raise DataError(f"No pair is left to evaluate on: of {len(data.held_out)} rows, {summary}.")
    return RunPairs(train, held_out)


def _encode(
    comparisons: Sequence[Comparison], data: RunData, config: TrainConfig, encoder: PairEncoder
) -> tuple[list[LabelledPair], str]:
    if config.conditioned:
        labelled = prepare_labelled(comparisons, data.objectives, encoder, ties=config.ties)
        return labelled.pairs, labelled.summary
    prepared = prepare_pairs(comparisons, data.objectives[0], encoder)
    return [LabelledPair(pair, (1.0,), number) for number, pair in enumerate(prepared.pairs)], prepared.summary


def uses_bfloat16(config: TrainConfig) -> bool:
    """Return whether to compute in bfloat16: as asked, else where the hardware multiplies it fast."""
    if any(config.trainer.get(key) for key in ("bf16", "fp16")):
        return False
    if config.bf16 is None and config.method == "scalar":
        return False  # a margin is a small difference of two like rewards, and bfloat16 has three digits
    return resolve_dtype("auto") is torch.bfloat16 if config.bf16 is None else config.bf16


def load_for_training(config: TrainConfig) -> Base:
    """Load the base: frozen weights in the dtype of computation, weights that will be trained in float32."""
    half = uses_bfloat16(config) and not config.full_finetune
    return load_base(config.base, revision=config.revision, dtype="bfloat16" if half else "float32", device="auto")


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
