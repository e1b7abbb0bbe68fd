"""``trimtab train --method scalar``: a reward model of one number, by Bradley–Terry on a head over a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.errors import DataError
from trimtab.models import end_of_response_id, tokenizer_hash
from trimtab.models.loading import Base
from trimtab.rewards.encoding import EncodedPair, prepare_pairs
from trimtab.rewards.labelled import LabelledPair
from trimtab.rewards.manifest import BaseRef, DataRef, Objective
from trimtab.rewards.ranking import RankReport, report_from_margins
from trimtab.rewards.scalar.artifact import save_scalar
from trimtab.rewards.scalar.manifest import ScalarManifest
from trimtab.rewards.scalar.model import ScalarEncoder, limits, load_backbone, uses_segments
from trimtab.rewards.scalar.sequences import padded, reward_of, rewards_of
from trimtab.training.adapters import add_adapter, describe, make_scalar_config
from trimtab.training.callbacks import MetricsFile, ProgressBar
from trimtab.training.collator import PairCollator, PairDataset
from trimtab.training.config import TrainConfig
from trimtab.training.run import TrainResult, finish, run_trainer
from trimtab.training.setup import RunData, find_checkpoint, prepare_output, read_data, uses_bfloat16
from trimtab.training.trainer import GuideTrainer

_SHOWN = (
    "method",
    "loss_type",
    "margin",
    "label_smoothing",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "full_finetune",
    "lora_r",
    "seed",
)


class ScalarPairScorer:
    """Rewards of both answers of every pair, in the place of the log-probabilities that guides are trained by."""

    def __init__(self, encoder: ScalarEncoder, pad: int) -> None:
        self._encoder = encoder
        self._pad = pad

    def layout(self, pairs: Sequence[EncodedPair], *, share_root: bool = True) -> dict[str, Any]:
        """Return the batch of ``pairs``: 2P rows, an answer a row, those of a pair one after the other."""
        rows = [sequence for pair in pairs for sequence in self._encoder.sequences(pair)]
        # Trainer takes the first tensor's length for the batch size.
        index = {"pair_index": torch.arange(len(pairs))}
        return {**index, **padded(rows, self._pad), "ids": [pair.id for pair in pairs]}

    def __call__(
        self, model: Any, batch: Any, *, common_gradient: bool = True, guided_by: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return r(x, a) and r(x, b), two (P,) float32 tensors, nats."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        rewards = reward_of(model(**{name: batch[name] for name in names if name in batch}).logits)
        return rewards[0::2], rewards[1::2]


class ScalarTrainer(GuideTrainer):
    """GuideTrainer with rewards that are nats already: β is 1, and there are no log-probabilities to log."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._betas = torch.ones(1)

    def _record(self, kind: str, first: Tensor, second: Tensor, strengths: Tensor, alpha: Tensor) -> None:
        super()._record(kind, first, second, strengths, alpha)
        for name in ("logps/chosen", "logps/rejected"):
            self._sums[kind].pop(name, None)


def train_scalar(config: TrainConfig, notify: Callable[[str], None], arguments: Any) -> TrainResult:
    """Train a scalar reward model and write its folder (see :func:`trimtab.training.run.train`)."""
    from transformers import PrinterCallback

    checkpoint = find_checkpoint(config)
    data = read_data(config, notify)
    torch.manual_seed(config.seed)
    half = uses_bfloat16(config) and not config.full_finetune
    base, fresh = load_backbone(config.base, revision=config.revision, dtype="bfloat16" if half else "float32")
    reference = BaseRef.of(base)
    encoder = _encoder(config, base)
    pairs, held_out = _prepare(data, config, encoder, notify)
    torch.manual_seed(config.seed)
    if config.full_finetune:
        model = base.model.requires_grad_(True)
    else:
        model = add_adapter(base, make_scalar_config(config, base, fresh))
    with arguments.main_process_first(local=False, desc="making the output folder"):
        folder = prepare_output(config, make=arguments.process_index == 0)
    if arguments.device != model.device:
        model.to(arguments.device)
    scorer: Any = ScalarPairScorer(encoder, base.model.config.pad_token_id)
    trainer = ScalarTrainer(
        config=config,
        scorer=scorer,
        objectives=data.objectives,
        model=model,
        args=arguments,
        data_collator=PairCollator(scorer),
        train_dataset=PairDataset(_labelled(pairs)),
        eval_dataset=PairDataset(_labelled(held_out)) if held_out else None,
        callbacks=[MetricsFile(folder), ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)
    outcome = run_trainer(trainer, checkpoint, folder)
    report = held_out_report(model, encoder, held_out, data.objectives[0]) if held_out else None
    manifest = _manifest(config, data, base, reference, encoder, len(pairs), outcome, report)
    if trainer.is_world_process_zero():
        manifest = save_scalar(folder, model, manifest, tokenizer=base.tokenizer)
    return finish(trainer, folder, data.objectives, len(pairs), outcome, _by_objective(report), manifest)


def held_out_report(
    model: Any, encoder: ScalarEncoder, pairs: Sequence[EncodedPair], objective: str
) -> RankReport:  # fmt: skip
    """Return how well a reward model ranks pairs (chosen answer first), beside length alone.

    The untrained model's margins are zero: its last layer is.
    """
    margins = margins_of(model, encoder, pairs)
    lengths = [(len(pair.a_ids), len(pair.b_ids)) for pair in pairs]
    truncated = sum(pair.truncated for pair in pairs)
    return report_from_margins(objective, margins, [0.0] * len(pairs), lengths, beta=1.0, truncated=truncated)


def margins_of(model: Any, encoder: ScalarEncoder, pairs: Sequence[EncodedPair]) -> list[float]:
    """Return r(x, a) − r(x, b) of each pair, nats."""
    rows = [sequence for pair in pairs for sequence in encoder.sequences(pair)]
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    rewards = rewards_of(model, rows, inner.config.pad_token_id)
    return cast("list[float]", (rewards[0::2] - rewards[1::2]).tolist())


def _encoder(config: TrainConfig, base: Base) -> ScalarEncoder:
    longest, prompt = limits(base, config.max_length, config.max_prompt_length)
    return ScalarEncoder(
        base,
        chat_template=config.chat_template,
        segments=uses_segments(base),
        max_length=longest,
        max_prompt_length=prompt,
    )


def _prepare(
    data: RunData, config: TrainConfig, encoder: ScalarEncoder, notify: Callable[[str], None]
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    train = prepare_pairs(data.train, data.objectives[0], encoder)
    notify(f"Training on {train.summary}.")
    if not train.pairs:
        raise DataError(f"No pair is left to train on: of {len(data.train)} rows, {train.summary}.")
    if not config.eval_data:
        return train.pairs, []
    held_out = prepare_pairs(data.held_out, data.objectives[0], encoder)
    notify(f"Held out: {held_out.summary}.")
    if not held_out.pairs:
        raise DataError(f"No pair is left to evaluate on: of {len(data.held_out)} rows, {held_out.summary}.")
    return train.pairs, held_out.pairs


def _labelled(pairs: Sequence[EncodedPair]) -> list[LabelledPair]:
    return [LabelledPair(pair, (1.0,), number) for number, pair in enumerate(pairs)]


def _by_objective(report: RankReport | None) -> dict[str, RankReport]:
    return {report.objective: report} if report else {}


def _manifest(
    config: TrainConfig,
    data: RunData,
    base: Base,
    reference: BaseRef,
    encoder: ScalarEncoder,
    pairs: int,
    outcome: dict[str, float],
    report: RankReport | None,
) -> ScalarManifest:
    name, prompt = data.objectives[0], data.train[0].prompt
    metrics: dict[str, Any] = {"train_loss": outcome.get("train_loss")}
    template = config.chat_template or getattr(base.tokenizer, "chat_template", None)
    return ScalarManifest(
        adapter="full" if config.full_finetune else "lora",
        objective=Objective(name=name, description=describe(config, name)),
        base=reference,
        tokenizer_hash=tokenizer_hash(base.tokenizer),
        pad_token_id=base.model.config.pad_token_id,
        end_token_id=end_of_response_id(base.tokenizer, prompt, chat_template=config.chat_template),
        segments=uses_segments(base),
        chat_template=template if data.train[0].is_conversational else None,
        max_length=encoder.max_length,
        max_prompt_length=encoder.max_prompt_length,
        data=DataRef(sha256=data.sha256, files=tuple(config.data), comparisons=pairs, labelled_by=config.labelled_by),
        training={key: getattr(config, key) for key in _SHOWN},
        metrics=metrics | ({"held_out": report.to_dict()} if report else {}),
    )
