"""``trimtab train``: read, train, rank before and after, write the guide."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import OutputError
from trimtab.models import Base, end_of_response_id, tokenizer_hash
from trimtab.rewards.artifact import BaseRef, DataRef, GuideManifest, Objective, save_guide
from trimtab.rewards.encoding import PreparedPairs
from trimtab.rewards.ranking import RankReport, rank, score_margins
from trimtab.rewards.scoring import PairScorer
from trimtab.training.callbacks import MetricsFile, ProgressBar
from trimtab.training.collator import PairCollator, PairDataset
from trimtab.training.config import TrainConfig
from trimtab.training.setup import (
    RunData,
    add_lora,
    find_checkpoint,
    load_for_training,
    make_arguments,
    make_lora_config,
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
        objective: what was learned.
        pairs: pairs trained on.
        metrics: Trainer's own (loss, runtime, pairs a second).
        report: held-out ranking before and after, or ``None`` without held-out data.
        history: every log, in order, by TRL's names.
        manifest: what ``guide.json`` says.
    """

    output_dir: Path
    objective: str
    pairs: int
    metrics: dict[str, float]
    report: RankReport | None
    manifest: GuideManifest
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


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
    notify = notify or log.info
    arguments = make_arguments(config)
    checkpoint = find_checkpoint(config)
    data = read_data(config, notify)
    base = load_for_training(config)
    eos = end_of_response_id(base.tokenizer, data.train[0].prompt, chat_template=config.chat_template)
    reference = BaseRef.of(base)  # before PEFT puts its layers into the model
    train_pairs, held_out = prepare(data, config, base, notify)
    torch.manual_seed(config.seed)
    lora = None if config.full_finetune else make_lora_config(config, base)
    folder = prepare_output(config)
    model = base.model.requires_grad_(True) if lora is None else add_lora(base, lora)
    untrained = _margins(model, held_out, config) if held_out else None
    trainer = _make_trainer(config, arguments, model, train_pairs, held_out, folder)
    outcome = _run(trainer, checkpoint, folder)
    report = None
    if held_out and untrained:
        report = rank(
            model,
            held_out.pairs,
            objective=data.objective,
            beta=config.beta,
            max_length=config.max_length,
            untrained_margins=untrained,
            batch_size=config.per_device_eval_batch_size,
        )
    manifest = _manifest(config, data, base, reference, eos, train_pairs, outcome, report)
    if trainer.is_world_process_zero():
        manifest = save_guide(folder, model, manifest, tokenizer=base.tokenizer if lora is None else None)
    history: list[dict[str, float]] = list(trainer.state.log_history)
    return TrainResult(folder, data.objective, len(train_pairs.pairs), outcome, report, manifest, history)


def _make_trainer(
    config: TrainConfig,
    arguments: Any,
    model: Any,
    train_pairs: PreparedPairs,
    held_out: PreparedPairs | None,
    folder: Path,
) -> GuideTrainer:
    from transformers import PrinterCallback

    if arguments.device != model.device:
        model.to(arguments.device)
    scorer = PairScorer(
        model,
        max_length=config.max_length,
        share_prompt=config.share_prompt,
        head_dtype=torch.bfloat16 if uses_bfloat16(config) else None,
    )
    trainer = GuideTrainer(
        config=config,
        scorer=scorer,
        model=model,
        args=arguments,
        data_collator=PairCollator(scorer),
        train_dataset=PairDataset(train_pairs.pairs),
        eval_dataset=PairDataset(held_out.pairs) if held_out else None,
        callbacks=[MetricsFile(folder), ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: GuideTrainer, checkpoint: str | None, folder: Path) -> dict[str, float]:
    from peft.helpers import disable_input_dtype_casting

    start = time.perf_counter()
    try:
        # Under autocast the LoRA's products run in bfloat16 anyway; without this, PEFT widens their input first.
        with disable_input_dtype_casting(trainer.model, active=bool(trainer.args.bf16)):
            outcome: Any = trainer.train(resume_from_checkpoint=checkpoint)
    except OSError as error:  # a checkpoint or a log that does not fit the disk
        raise OutputError(
            f"The run cannot write to {str(folder)!r} ({error.strerror or error}): free space there, then continue "
            "with --resume-from-checkpoint last."
        ) from error
    metrics: dict[str, float] = {key: float(value) for key, value in outcome.metrics.items()}
    return {**metrics, "wall_seconds": time.perf_counter() - start}


def _margins(model: Any, held_out: PreparedPairs, config: TrainConfig) -> list[float]:
    return score_margins(
        model, held_out.pairs, max_length=config.max_length, batch_size=config.per_device_eval_batch_size
    )  # fmt: skip


def _manifest(
    config: TrainConfig,
    data: RunData,
    base: Base,
    reference: BaseRef,
    eos: int,
    pairs: PreparedPairs,
    outcome: dict[str, float],
    report: RankReport | None,
) -> GuideManifest:
    shown = (
        "method",
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
    )
    metrics: dict[str, Any] = {"train_loss": outcome.get("train_loss")}
    if report is not None:
        metrics["held_out"] = report.to_dict()
    template = config.chat_template or getattr(base.tokenizer, "chat_template", None)
    return GuideManifest(
        adapter="full" if config.full_finetune else "lora",
        objectives=(Objective(name=data.objective),),
        beta=config.beta,
        weight=config.weight,
        base=reference,
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        eos_token_id=eos,
        chat_template=template if data.train[0].is_conversational else None,
        data=DataRef(sha256=data.sha256, files=tuple(config.data), comparisons=len(pairs.pairs)),
        training={key: getattr(config, key) for key in shown},
        metrics=metrics,
    )
