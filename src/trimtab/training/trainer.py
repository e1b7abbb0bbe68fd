"""transformers' Trainer with a preference loss; everything around the loss (accelerate, checkpoints) is its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer

from trimtab.errors import NumericalError
from trimtab.rewards.layout import PairBatch
from trimtab.rewards.scoring import PairScorer
from trimtab.training.config import TrainConfig
from trimtab.training.losses import preference_loss

_NAMED_IDS = 8


class GuideTrainer(Trainer):
    """Trains a guide on pairs.

    Logs, by TRL's names and meanings (means over pairs): ``rewards/chosen`` and ``rewards/rejected`` (β_r·log π_r),
    ``rewards/accuracies``, ``rewards/margins``, ``logps/chosen``, ``logps/rejected``; with ``eval_`` before them in
    evaluation.
    """

    def __init__(self, *, config: TrainConfig, scorer: PairScorer, **trainer: Any) -> None:
        super().__init__(**trainer)
        self._config = config
        self._scorer = scorer
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        # The loss is divided by the pairs of the WHOLE accumulated batch (see get_batch_samples), so that a last,
        # smaller micro-batch weighs by its pairs. The first name is the older, the second the newer Trainer's.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[PairBatch], num_batches: int, device: torch.device
    ) -> tuple[list[PairBatch], Any]:
        """Return the micro-batches of one update, and how many pairs they hold over all processes."""
        samples, _ = cast("tuple[list[PairBatch], Any]", super().get_batch_samples(epoch_iterator, num_batches, device))
        pairs = torch.tensor(sum(len(batch["ids"]) for batch in samples), device=device)
        if self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs).sum()
        return samples, pairs

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:  # fmt: skip
        """Return the mean loss over pairs: of the accumulated batch in training, of this batch otherwise.

        Raises:
            NumericalError: the loss is NaN or infinite; names the rows.
        """
        batch = cast("PairBatch", inputs)
        config = self._config
        chosen, rejected = self._scorer(model, batch, common_gradient=False)
        losses = preference_loss(
            chosen,
            rejected,
            beta=config.beta,
            margin=config.margin,
            label_smoothing=config.label_smoothing,
            loss_type=config.loss_type,
        )
        _refuse_not_finite(losses.detach(), batch["ids"])
        self._record("train" if torch.is_grad_enabled() else "eval", chosen.detach(), rejected.detach())
        if num_items_in_batch is None:
            loss = losses.mean()
        else:  # DDP averages gradients over processes, so each one's share is scaled up by their number
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"chosen": chosen, "rejected": rejected}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the loss of one batch; the other metrics are collected on the way."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics collected since the last call to ``logs``.

        Raises:
            NumericalError: the gradient is NaN or infinite.
        """
        kind = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        logs = {**logs, **self._take(kind)}
        norm = logs.get("grad_norm")
        if norm is not None and not torch.isfinite(torch.tensor(float(norm))):
            raise NumericalError(
                f"The gradient is {norm} at step {self.state.global_step}: lower --learning-rate, or use --no-bf16."
            )
        super().log(logs, start_time)

    def _record(self, kind: str, chosen: Tensor, rejected: Tensor) -> None:
        beta = self._config.beta
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        found = {
            "rewards/chosen": beta * chosen,
            "rewards/rejected": beta * rejected,
            "rewards/accuracies": right,
            "rewards/margins": beta * (chosen - rejected),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        sums = self._sums[kind]
        for name, values in found.items():
            total = torch.stack([values.sum(), values.new_tensor(float(len(values)))]).float()
            sums[name] = sums[name] + total if name in sums else total

    def _take(self, kind: str) -> dict[str, float]:
        sums, self._sums[kind] = self._sums[kind], {}
        prefix = "eval_" if kind == "eval" else ""
        result: dict[str, float] = defaultdict(float)
        for name, local in sums.items():
            total, count = cast("Tensor", self.accelerator.reduce(local, "sum")).tolist()
            result[prefix + name] = total / count
        return dict(result)


def _refuse_not_finite(losses: Tensor, ids: list[str]) -> None:
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    bad = [ids[i] for i in torch.nonzero(~finite).flatten().tolist()]
    shown = ", ".join(repr(i) for i in bad[:_NAMED_IDS]) + (", …" if len(bad) > _NAMED_IDS else "")
    raise NumericalError(
        f"The loss is NaN or infinite for the row{'s' if len(bad) > 1 else ''} {shown}: lower --learning-rate, use "
        "--no-bf16, or look at the text."
    )
