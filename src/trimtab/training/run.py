"""``trimtab train``: read, train, rank before and after, write the guide."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from trimtab.errors import OutputError
from trimtab.models import Base, end_of_response_id, tokenizer_hash
from trimtab.rewards.artifact import BaseRef, DataRef, GuideManifest, Objective, save_guide
from trimtab.rewards.ranking import RankReport
from trimtab.rewards.scalar.manifest import ScalarManifest
from trimtab.rewards.scoring import PairScorer
from trimtab.training.adapters import ADAPTERS, add_adapter, describe, make_adapter_config
from trimtab.training.callbacks import MetricsFile, ProgressBar
from trimtab.training.collator import PairCollator, PairDataset
from trimtab.training.config import TrainConfig
from trimtab.training.drawing import at_fixed_preferences, fixed_preferences
from trimtab.training.held_out import HeldOut, reading_at
from trimtab.training.setup import (
    CHECKPOINTS,
    RunData,
    RunPairs,
    find_checkpoint,
    load_for_training,
    make_arguments,
    prepare,
    prepare_output,
    read_data,
    uses_bfloat16,
)
from trimtab.training.trainer import GuideTrainer
from trimtab.validation import validated

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        output_dir: the guide's folder.
        objectives: what was learned.
        pairs: pairs trained on.
        metrics: Trainer's own (loss, runtime, pairs a second).
        reports: objective → held-out ranking before and after (at the preference for that objective alone, where the
            guide takes one); empty without held-out data.
        history: every log, in order, by TRL's names.
        manifest: what ``guide.json`` says, or ``scalar.json``.
    """

    output_dir: Path
    objectives: tuple[str, ...]
    pairs: int
    metrics: dict[str, float]
    reports: dict[str, RankReport]
    manifest: GuideManifest | ScalarManifest
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @property
    def report(self) -> RankReport | None:
        """The first objective's held-out ranking, or ``None`` without held-out data."""
        return self.reports.get(self.objectives[0])


def train(
    config: TrainConfig | None = None, *, notify: Callable[[str], None] | None = None, **options: Any
) -> TrainResult:
    """Train a guide and write its folder.

    Args:
        config: the run's options; or give them as keywords (see :class:`TrainConfig`).
        notify: called with each message line; default: the ``trimtab`` logger.
        **options: fields of :class:`TrainConfig`, in place of or over those of ``config``.

    Raises:
        ConfigError: an option cannot work.
        DataError: the data cannot be read, or nothing is left of it.
        ModelError: the base cannot be loaded.
        NumericalError: the loss became NaN or infinite.
        OutputError: the folder cannot be written.
    """
    config = validated(TrainConfig, {**(config.model_dump(exclude_unset=True) if config else {}), **options})
    arguments = make_arguments(config)
    notify = (notify or log.info) if arguments.process_index == 0 else log.debug
    if config.method == "scalar":
        from trimtab.training.scalar import train_scalar

        return train_scalar(config, notify, arguments)
    checkpoint = find_checkpoint(config)
    data = read_data(config, notify)
    base = load_for_training(config)
    eos = end_of_response_id(base.tokenizer, data.train[0].prompt, chat_template=config.chat_template)
    reference = BaseRef.of(base)  # before PEFT puts its layers into the model
    pairs = prepare(data, config, base, notify)
    torch.manual_seed(config.seed)
    adapter = None if config.full_finetune else make_adapter_config(config, base, data.objectives)
    with arguments.main_process_first(local=False, desc="making the output folder"):
        folder = prepare_output(config, make=arguments.process_index == 0)
    # A loss that reads the base needs it beside a fully trained model: a frozen copy.
    frozen = copy.deepcopy(base.model) if adapter is None and config.reads_base else None
    model = base.model.requires_grad_(True) if adapter is None else add_adapter(base, adapter)
    ranking = HeldOut(pairs.held_out, data.objectives, config, frozen)
    ranking.before(model)
    trainer = _make_trainer(config, arguments, model, frozen, data.objectives, pairs, folder)
    outcome = run_trainer(trainer, checkpoint, folder)
    reports = ranking.after(model)
    manifest = _manifest(config, data, base, reference, eos, len(pairs.train), outcome, reports)
    if trainer.is_world_process_zero():
        manifest = save_guide(folder, model, manifest, tokenizer=base.tokenizer if adapter is None else None)
    return finish(trainer, folder, data.objectives, len(pairs.train), outcome, reports, manifest)


def finish(
    trainer: GuideTrainer,
    folder: Path,
    objectives: tuple[str, ...],
    pairs: int,
    outcome: dict[str, float],
    reports: dict[str, RankReport],
    manifest: GuideManifest | ScalarManifest,
) -> TrainResult:
    """Tidy the folder of a run that is over, and return what it made."""
    checkpoints = folder / CHECKPOINTS
    if trainer.is_world_process_zero() and checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()  # Trainer makes it even where nothing is to be saved
    history: list[dict[str, float]] = list(trainer.state.log_history)
    return TrainResult(folder, objectives, pairs, outcome, reports, manifest, history)


def _make_trainer(
    config: TrainConfig,
    arguments: Any,
    model: Any,
    frozen: Any,
    objectives: Sequence[str],
    pairs: RunPairs,
    folder: Path,
) -> GuideTrainer:
    from transformers import PrinterCallback

    if arguments.device != model.device:
        for moved in filter(None, (model, frozen)):
            moved.to(arguments.device)
    k = len(objectives)
    with reading_at(model, fixed_preferences(k)[-1], config):
        scorer = PairScorer(
            model,
            max_length=config.max_length,
            share_prompt=config.share_prompt,
            head_dtype=torch.bfloat16 if uses_bfloat16(config) else None,
            base=frozen,
        )
    trainer = GuideTrainer(
        config=config,
        scorer=scorer,
        objectives=objectives,
        model=model,
        args=arguments,
        data_collator=PairCollator(scorer, share_root=config.one_preference_a_batch),
        train_dataset=PairDataset(pairs.train),
        eval_dataset=PairDataset(at_fixed_preferences(pairs.held_out, k)) if pairs.held_out else None,
        callbacks=[MetricsFile(folder), ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_trainer(trainer: GuideTrainer, checkpoint: str | None, folder: Path) -> dict[str, float]:
    """Train, from a checkpoint if one is given, and return Trainer's metrics with the seconds it took.

    Raises:
        OutputError: the folder cannot be written.
    """
    from peft.helpers import disable_input_dtype_casting

    start = time.perf_counter()
    try:
        # Under autocast the LoRA's products run in bfloat16 anyway; without this, PEFT widens their input first.
        with disable_input_dtype_casting(cast("Any", trainer.model), active=bool(trainer.args.bf16)):
            outcome: Any = trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        # A full disk arrives as one of three classes, depending on which file of a checkpoint did not fit.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OutputError(
            f"The run cannot write to {str(folder)!r} ({reason}): free space there, then continue with "
            "--resume-from-checkpoint last, or start again with --overwrite-output-dir."
        ) from error
    metrics: dict[str, float] = {key: float(value) for key, value in outcome.metrics.items()}
    return {**metrics, "wall_seconds": time.perf_counter() - start}


def _manifest(
    config: TrainConfig,
    data: RunData,
    base: Base,
    reference: BaseRef,
    eos: int,
    pairs: int,
    outcome: dict[str, float],
    reports: dict[str, RankReport],
) -> GuideManifest:
    shown = [
        "method",
        "loss",
        "beta",
        "loss_type",
        "learning_rate",
        "lr_scheduler_type",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "max_prompt_length",
        "seed",
    ]
    shown += ["betas", "drawn_per", "alpha_concentration", "global_weight", "ties"] if config.conditioned else []
    shown += ["decode_weights", "decode_weight_range"] if config.loss == "decode-aware" else []
    metrics: dict[str, Any] = {"train_loss": outcome.get("train_loss")}
    found = {name: report.to_dict() for name, report in reports.items()}
    if found:
        metrics["held_out"] = found if config.conditioned else found[data.objectives[0]]
    template = config.chat_template or getattr(base.tokenizer, "chat_template", None)
    return GuideManifest(
        kind="policy" if config.method == "dpo" else "arm",
        adapter="full" if config.full_finetune else ADAPTERS[config.method],
        objectives=tuple(
            Objective(name=name, description=describe(config, name), beta=config.betas.get(name))
            for name in data.objectives
        ),
        beta=config.beta,
        weight=config.weight,
        conditions_on_strength=config.told_weight,
        base=reference,
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=eos,
        chat_template=template if data.train[0].is_conversational else None,
        data=DataRef(sha256=data.sha256, files=tuple(config.data), comparisons=pairs, labelled_by=config.labelled_by),
        training={key: getattr(config, key) for key in shown},
        metrics=metrics,
    )
