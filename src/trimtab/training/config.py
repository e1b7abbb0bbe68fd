"""What a training run is: one vocabulary for the file, the flags and the keyword arguments.

Names are those of transformers' ``TrainingArguments``, PEFT's ``LoraConfig`` and TRL's preference trainers; every other
option of the first two is reachable through ``trainer`` and ``lora``. Defaults are GenARM's (arXiv 2410.08193, HH-RLHF)
but for two: LoRA on all linear layers rather than q, k, v, and 8 pairs a step rather than 32, because most preference
sets are far smaller than HH-RLHF's 160 000 pairs (``gradient_accumulation_steps=4`` restores the paper's).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LossType = Literal["sigmoid", "hinge"]

_NOT_SAVED = {"resume_from_checkpoint", "overwrite_output_dir"}


def _field(panel: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class TrainConfig(BaseModel):
    """Options of ``trimtab train`` and :func:`trimtab.train`; frozen, and does no I/O."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    data: list[str] = _field("Data", ..., "Preference pairs: files or hub data sets (repeatable).", min_length=1)
    eval_data: list[str] = _field("Data", [], "Held-out pairs: ranked before and after training (repeatable).")
    objective: str | None = _field("Data", None, "Which label to learn; may be left out if the data has only one.")
    output_dir: str = _field("Data", ..., "Folder for the guide, its checkpoints and logs.", min_length=1)
    limit: int | None = _field("Data", None, "Use only the first N comparisons of --data.", ge=1)
    max_length: int = _field("Data", 1024, "Most tokens of prompt and answer together; answers lose their end.", ge=2)
    max_prompt_length: int = _field("Data", 512, "Most tokens of the prompt; it loses its beginning.", ge=1)
    chat_template: str | None = _field("Data", None, "Chat template (Jinja) in place of the tokenizer's own.")

    # model
    base: str = _field("Model", "smollm2", "Base model: 'smollm2', a local folder, or a hub id.")
    revision: str | None = _field("Model", None, "Hub revision of the base.")
    full_finetune: bool = _field("Model", False, "Train all weights instead of a LoRA.")
    lora_r: int = _field("Model", 8, "Rank of the LoRA.", ge=1)
    lora_alpha: float = _field("Model", 16, "LoRA scale: its output is multiplied by alpha / r.", gt=0)
    lora_dropout: float = _field("Model", 0.05, "Dropout before the LoRA, in training only.", ge=0, lt=1)
    lora_target_modules: list[str] = _field(
        "Model", ["all-linear"], "Layers that get a LoRA: 'all-linear', or module names (repeatable)."
    )
    lora: dict[str, Any] = _field("Model", {}, "Any other option of peft.LoraConfig, as KEY=VALUE (repeatable).")
    gradient_checkpointing: bool = _field("Model", False, "Recompute activations in the backward pass: less memory.")
    bf16: bool | None = _field("Model", None, "Compute in bfloat16 (default: where the hardware multiplies it fast).")
    share_prompt: bool = _field("Model", True, "Encode a pair's common beginning once, where that is exact.")

    # loss
    method: Literal["genarm"] = _field("Loss", "genarm", "Training method: 'genarm' (arXiv 2410.08193).")
    beta: float = _field("Loss", 0.05, "β_r, the reward that one nat of log-probability is worth.", gt=0)
    margin: float = _field("Loss", 0.0, "γ, reward by which the chosen answer must win.", ge=0)
    label_smoothing: float = _field("Loss", 0.0, "Share of the labels that is taken to be wrong.", ge=0, lt=0.5)
    loss_type: LossType = _field("Loss", "sigmoid", "'sigmoid' (the paper's) or 'hinge'.")
    weight: float = _field("Loss", 1.0, "Guidance weight w to recommend in the guide (the papers' 1/β).")

    # optimisation
    learning_rate: float = _field("Optimisation", 5e-4, "Peak learning rate of AdamW.", gt=0)
    lr_scheduler_type: str = _field("Optimisation", "cosine", "Schedule of the learning rate, by Trainer's name.")
    warmup_steps: float = _field("Optimisation", 0.0, "Warm-up: a number of steps, or below 1 a share of them.", ge=0)
    weight_decay: float = _field("Optimisation", 0.0, "Weight decay.", ge=0)
    max_grad_norm: float = _field("Optimisation", 1.0, "Gradients are clipped to this norm; 0 never.", ge=0)
    num_train_epochs: float = _field("Optimisation", 1.0, "Passes over the data.", gt=0)
    max_steps: int = _field("Optimisation", -1, "Stop after this many steps; -1: num_train_epochs decides.", ge=-1)
    per_device_train_batch_size: int = _field("Optimisation", 8, "Pairs in one forward.", ge=1)
    per_device_eval_batch_size: int = _field("Optimisation", 16, "Pairs in one forward without gradients.", ge=1)
    gradient_accumulation_steps: int = _field("Optimisation", 1, "Forwards before each update.", ge=1)
    seed: int = _field("Optimisation", 42, "Seed of data order, LoRA's start and dropout.", ge=0)

    # run
    logging_steps: float = _field("Run", 10, "Log every N steps.", gt=0)
    report_to: list[str] = _field("Run", [], "Trackers, by Trainer's names: tensorboard, wandb, … (repeatable).")
    eval_strategy: Literal["no", "steps", "epoch"] = _field("Run", "no", "Evaluate during training: no, steps, epoch.")
    eval_steps: float | None = _field("Run", None, "Steps between evaluations.", gt=0)
    save_strategy: Literal["no", "steps", "epoch"] = _field("Run", "steps", "Save checkpoints: no, steps or epoch.")
    save_steps: float = _field("Run", 500, "Steps between checkpoints.", gt=0)
    save_total_limit: int | None = _field("Run", 2, "Keep this many checkpoints.", ge=1)
    resume_from_checkpoint: str | None = _field("Run", None, "Continue from 'last' or from a checkpoint's folder.")
    overwrite_output_dir: bool = _field("Run", False, "Write into an output folder that is not empty.")
    trainer: dict[str, Any] = _field(
        "Run", {}, "Any other option of transformers.TrainingArguments, as KEY=VALUE (repeatable)."
    )

    @model_validator(mode="after")
    def _combine(self) -> TrainConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be less than max_length ({self.max_length}), so "
                "that there is room for an answer"
            )
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to loss_type 'sigmoid': leave one of the two out")
        if self.eval_strategy != "no" and not self.eval_data:
            raise ValueError(f"eval_strategy {self.eval_strategy!r} needs eval_data")
        if self.full_finetune and self.lora:
            raise ValueError("full_finetune has no LoRA: leave the lora options out")
        return self

    def to_yaml(self) -> str:
        """Return the text of ``config.yaml``: ``trimtab train --config`` with it repeats the run."""
        import yaml

        values = self.model_dump(mode="json", exclude=_NOT_SAVED)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
