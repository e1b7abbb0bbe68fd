"""transformers' Trainer with a preference loss; everything around the loss (accelerate, checkpoints) is its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer

from trimtab.errors import NumericalError
from trimtab.rewards.conditioned import condition_input, preference
from trimtab.rewards.layout import PairBatch
from trimtab.rewards.scoring import PairScorer
from trimtab.training.collator import TrainingBatch
from trimtab.training.config import TrainConfig
from trimtab.training.drawing import draw_preferences, draw_weights
from trimtab.training.losses import mixed_preference_loss

_NAMED_IDS = 8


class GuideTrainer(Trainer):
    """Trains a guide on pairs.

    Logs, by TRL's names and meanings (means over pairs): ``rewards/chosen`` and ``rewards/rejected`` (β_r·log π_r, for
    DPO β·(log π − log π_ref)),
    ``rewards/accuracies``, ``rewards/margins``, ``logps/chosen``, ``logps/rejected``; with ``eval_`` before them in
    evaluation. With several objectives there is no one chosen answer: ``rewards/accuracies`` and ``rewards/margins``
    go by the mixed label sgn(Σ_i α_i Δ_i) at each pair's α, and ``rewards/accuracies/NAME`` by one objective's labels
    (in evaluation only at the α that asks for nothing else).
    """

    def __init__(
        self, *, config: TrainConfig, scorer: PairScorer, objectives: Sequence[str], **trainer: Any
    ) -> None:  # fmt: skip
        super().__init__(**trainer)
        self._config = config
        self._scorer = scorer
        self._objectives = tuple(objectives)
        self._betas = torch.tensor([config.betas.get(name, config.beta) for name in self._objectives])
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
            pairs = cast("Tensor", self.accelerator.gather(pairs)).sum()
        return samples, pairs

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:  # fmt: skip
        """Return the mean loss over pairs: of the accumulated batch in training, of this batch otherwise.

        Raises:
            NumericalError: the loss is NaN or infinite; names the rows.
        """
        batch = cast("TrainingBatch", inputs)
        config = self._config
        alpha, weights = self._drawn(batch)
        first, second = self._scored(model, batch, alpha, weights)
        losses = mixed_preference_loss(
            first,
            second,
            batch["strengths"],
            alpha,
            beta=self._betas.to(alpha),
            global_weight=config.global_weight,
            ties=config.ties,
            margin=config.margin,
            label_smoothing=config.label_smoothing,
            loss_type=config.loss_type,
        )
        _refuse_not_finite(losses.detach(), batch["ids"])
        kind = "train" if torch.is_grad_enabled() else "eval"
        self._record(kind, first.detach(), second.detach(), batch["strengths"], alpha)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:  # DDP averages gradients over processes, so each one's share is scaled up by their number
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"chosen": first, "rejected": second}) if return_outputs else loss

    def _drawn(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return the preferences (P, K) and the guidance weights (P,) that the pairs are read under."""
        numbers = batch["number"].tolist()
        device = batch["strengths"].device
        fixed = batch["alpha"]
        if fixed is not None:
            return fixed, torch.full((len(numbers),), self._config.weight, device=device)
        epoch = int(self.state.epoch or 0)
        alpha = draw_preferences(self._config, len(self._objectives), numbers, epoch)
        return alpha.to(device), draw_weights(self._config, numbers, epoch).to(device)

    def _scored(self, model: Any, batch: TrainingBatch, alpha: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the second answers' rewards in nats, (P,) each."""
        guided_by = weights if self._config.loss == "decode-aware" else None
        if self._config.method == "dpo":
            return self._scorer(model, batch, common_gradient=False, against_base=True)
        if not self._config.conditioned:
            return self._scorer(model, batch, common_gradient=False, guided_by=guided_by)
        inner: Any = self.accelerator.unwrap_model(model)
        told = condition_input(inner.active_peft_config, alpha, weights)
        alike = bool((told == told[0]).all())
        with preference(inner, told[0] if alike else told, index=None if alike else batch["pair_of"]):
            return self._scorer(model, batch, common_gradient=False, guided_by=guided_by)

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

    def _record(self, kind: str, first: Tensor, second: Tensor, strengths: Tensor, alpha: Tensor) -> None:
        """Add to the metrics; where there is one objective, the first answer is the chosen one."""
        betas = self._betas.to(alpha)
        known = strengths.nan_to_num(0.0)
        mixed = torch.sign((alpha * known).sum(1))
        self._count(kind, "", mixed, (alpha * betas).sum(1) * (first - second))
        if len(self._objectives) == 1:
            found = {"rewards/chosen": betas * first, "rewards/rejected": betas * second}
            found |= {"logps/chosen": first, "logps/rejected": second}
            for name, values in found.items():
                self._add(kind, name, values, torch.ones_like(values))
            return
        for i, name in enumerate(self._objectives):
            sign = torch.sign(known[:, i])
            if kind == "eval":  # each objective counts where it alone is asked for
                sign = sign * (alpha[:, i] == 1)
            self._count(kind, f"/{name}", sign, betas[i] * (first - second))

    def _count(self, kind: str, suffix: str, sign: Tensor, margin: Tensor) -> None:
        margin = sign * margin
        right = (margin > 0).float() + 0.5 * (margin == 0).float()
        judged = (sign != 0).float()
        self._add(kind, f"rewards/accuracies{suffix}", right * judged, judged)
        self._add(kind, f"rewards/margins{suffix}", margin, judged)

    def _add(self, kind: str, name: str, values: Tensor, counts: Tensor) -> None:
        sums = self._sums[kind]
        total = torch.stack([values.sum(), counts.sum()]).float()
        sums[name] = sums[name] + total if name in sums else total

    def _take(self, kind: str) -> dict[str, float]:
        sums, self._sums[kind] = self._sums[kind], {}
        prefix = "eval_" if kind == "eval" else ""
        result: dict[str, float] = defaultdict(float)
        for name, local in sums.items():
            total, count = cast("Tensor", self.accelerator.reduce(local, "sum")).tolist()
            if count:
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
