"""What a training run is: one vocabulary for the file, the flags and the keyword arguments.

Names are those of transformers' ``TrainingArguments``, PEFT's ``LoraConfig`` and TRL's preference trainers; every other
option of the first two is reachable through ``trainer`` and ``lora``. Defaults are GenARM's (arXiv 2410.08193, HH-RLHF)
but for two: LoRA on all linear layers rather than q, k, v, and 8 pairs a step rather than 32, because most preference
sets are far smaller than HH-RLHF's 160 000 pairs (``gradient_accumulation_steps=4`` restores the paper's). PARM and
UniARM have the same defaults, so that methods are compared at like settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LossType = Literal["sigmoid", "hinge"]
Method = Literal["genarm", "parm", "uniarm", "dpo", "scalar"]
DecodeWeights = Literal["fixed", "drawn", "conditioned"]

DPO_BETA = 0.1
"""DPO's β where none is given (arXiv 2305.18290, appendix B)."""

_MOSLORA = ("condition", "modulation", "generator")
_CONDITIONED = ("objectives", "betas", "alpha_per", "alpha_concentration", "ties")
_ONE_OBJECTIVE = ("genarm", "dpo", "scalar")
_NOT_FOR: dict[str, tuple[tuple[str, ...], str]] = {
    "dpo": (("loss",), "methods that train a reward"),
    "scalar": (("beta", "weight", "loss"), "methods that train a guide"),
    "parm": ((*_MOSLORA, "global_loss_weight"), "the method 'uniarm'"),
}
"""Method → the options it has no use for, and whose they are."""
_DECODING = ("decode_weights", "decode_weight_range")

_NOT_SAVED = {"resume_from_checkpoint", "overwrite_output_dir"}


def _field(panel: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class TrainConfig(BaseModel):
    """Options of ``trimtab train`` and :func:`trimtab.train`; frozen, and does no I/O."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    data: list[str] = _field("Data", ..., "Preference pairs: files or hub data sets (repeatable).", min_length=1)
    eval_data: list[str] = _field("Data", [], "Held-out pairs: ranked before and after training (repeatable).")
    objective: str | None = _field(
        "Data", None, "Which label 'genarm', 'dpo' or 'scalar' learns; may be left out if the data has only one."
    )
    objectives: list[str] = _field(
        "Data", [], "Which labels 'parm' and 'uniarm' learn, as NAME,NAME in the guide's order; none named: all."
    )
    descriptions: dict[str, str] = _field(
        "Data", {}, "OBJECTIVE=SENTENCE on what is preferred: shown in the guide, and read by condition 'text'."
    )
    labelled_by: str | None = _field(
        "Data", None, "Who or what labelled the pairs, for the record: 'people', a judge's or a scorer's name."
    )
    output_dir: str = _field("Data", ..., "Folder for the guide, its checkpoints and logs.", min_length=1)
    limit: int | None = _field("Data", None, "Use only the first N comparisons of --data.", ge=1)
    max_length: int = _field("Data", 1024, "Most tokens of prompt and answer together; answers lose their end.", ge=2)
    max_prompt_length: int = _field("Data", 512, "Most tokens of the prompt; it loses its beginning.", ge=1)
    chat_template: str | None = _field("Data", None, "Chat template (Jinja) in place of the tokenizer's own.")

    # model
    base: str = _field(
        "Model",
        "smollm2",
        "Base model: 'smollm2', a local folder, or a hub id; for 'scalar' also 'minilm', a sentence encoder.",
    )
    revision: str | None = _field("Model", None, "Hub revision of the base.")
    full_finetune: bool = _field("Model", False, "Train all weights instead of a LoRA.")
    lora_r: int = _field("Model", 8, "Rank of the LoRA.", ge=1)
    lora_alpha: float | None = _field(
        "Model", None, "LoRA scale: its output is multiplied by alpha / rank; not given: twice the rank.", gt=0
    )
    lora_dropout: float = _field("Model", 0.05, "Dropout before the LoRA, in training only.", ge=0, lt=1)
    lora_target_modules: list[str] = _field(
        "Model", ["all-linear"], "Layers that get a LoRA: 'all-linear', or module names (repeatable)."
    )
    lora: dict[str, Any] = _field(
        "Model", {}, "Any other option of peft.LoraConfig, MoSLoRAConfig or PBLoRAConfig, as KEY=VALUE (repeatable)."
    )
    condition: Literal["text", "alpha", "learned"] | None = _field(
        "Model",
        None,
        "uniarm: what stands for α: 'alpha' itself (default), or a mix of 'text' or 'learned' vectors.",
    )
    modulation: Literal["scale", "shift", "both"] | None = _field(
        "Model", None, "uniarm: what the preference does to the shared features: scale, shift or both."
    )
    generator: Literal["layer", "shared"] | None = _field(
        "Model", None, "uniarm: how it gets there: a matrix for each 'layer', or after a 'shared' trunk."
    )
    gradient_checkpointing: bool = _field("Model", False, "Recompute activations in the backward pass: less memory.")
    bf16: bool | None = _field(
        "Model", None, "Compute in bfloat16 (default: where the hardware multiplies it fast; not for scalar)."
    )
    share_prompt: bool = _field("Model", True, "Encode a pair's common beginning once, where that is exact.")

    # loss
    method: Method = _field(
        "Loss",
        "genarm",
        "'genarm' (arXiv 2410.08193): one objective; 'parm' (2505.06274) and 'uniarm' (2602.09538): several at once; "
        "'dpo' (2305.18290): an aligned model, to be decoded as such or mixed with others; 'scalar': a reward model of "
        "one number an answer, which judges and does not guide.",
    )
    loss: Literal["preference", "decode-aware"] = _field(
        "Loss", "preference", "'preference' (the papers'), or 'decode-aware': of the policy that is sampled from."
    )
    beta: float = _field(
        "Loss", 0.05, "β_r, the reward that one nat of log-probability is worth; dpo's default is 0.1.", gt=0
    )
    betas: dict[str, float] = _field("Loss", {}, "OBJECTIVE=β_r where it is not --beta (repeatable).")
    global_loss_weight: float | None = _field(
        "Loss", None, "uniarm: λ, weight of the loss on the mixed label (default: 0.1).", ge=0
    )
    alpha_per: Literal["example", "batch"] | None = _field(
        "Loss", None, "Draw a preference for each example (uniarm's way) or for each batch (parm's)."
    )
    alpha_concentration: float = _field("Loss", 0.5, "Dirichlet parameter of the preferences that are drawn.", gt=0)
    ties: Literal["drop", "half"] = _field(
        "Loss", "drop", "Pairs an objective finds tied: 'drop', or 'half' a label for each answer."
    )
    decode_weights: DecodeWeights = _field(
        "Loss",
        "fixed",
        "decode-aware: train for --weight ('fixed'), for weights 'drawn' a pair, or tell the guide ('conditioned').",
    )
    decode_weight_range: list[float] = _field(
        "Loss", [0.5, 2.0], "decode-aware: least and greatest weight that is drawn, log-uniformly."
    )
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

    @model_validator(mode="before")
    @classmethod
    def _default_beta(cls, values: Any) -> Any:
        if isinstance(values, dict) and cast("Any", values).get("method") == "dpo":
            return {"beta": DPO_BETA, **cast("dict[str, Any]", values)}
        return values

    @field_validator("objectives", mode="before")
    @classmethod
    def _split(cls, names: Any) -> Any:
        parts = names.split(",") if isinstance(names, str) else names
        if not isinstance(parts, (list, tuple)):
            return names
        return [part.strip() for text in cast("Any", parts) for part in str(text).split(",") if part.strip()]

    @field_validator("decode_weight_range")
    @classmethod
    def _ordered(cls, limits: list[float]) -> list[float]:
        if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
            raise ValueError("give two positive numbers, the smaller first")
        return limits

    @model_validator(mode="after")
    def _fit_the_method(self) -> TrainConfig:
        given = self.model_fields_set
        if self.method in _ONE_OBJECTIVE:
            self._refuse(given, (*_CONDITIONED, *_MOSLORA, "global_loss_weight"), "the methods 'parm' and 'uniarm'")
        elif self.objective is not None:
            raise ValueError(f"objective is for 'genarm', 'dpo' and 'scalar': {self.method!r} takes objectives")
        elif self.full_finetune:
            raise ValueError(f"full_finetune is for 'genarm', 'dpo' and 'scalar': {self.method!r} trains an adapter")
        names, owner = _NOT_FOR.get(self.method, ((), ""))
        self._refuse(given, names, owner)
        if self.loss != "decode-aware":
            self._refuse(given, _DECODING, "loss 'decode-aware'")
        elif self.weight <= 0:
            raise ValueError("loss 'decode-aware' trains for a positive weight")
        if self.decode_weights == "conditioned" and self.method == "genarm":
            raise ValueError("a plain LoRA cannot be told the weight: use decode_weights 'drawn', or method 'uniarm'")
        if any(beta <= 0 for beta in self.betas.values()):
            raise ValueError("betas must be positive")
        return self

    def _refuse(self, given: set[str], names: Sequence[str], owner: str) -> None:
        defaults = TrainConfig.model_fields
        for name in names:
            if name in given and getattr(self, name) != defaults[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} belongs to {owner}: leave one of the two out")

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

    @property
    def conditioned(self) -> bool:
        """Whether the guide takes a preference vector."""
        return self.method not in _ONE_OBJECTIVE

    @property
    def reads_base(self) -> bool:
        """Whether the loss is of more than the trained model: of the base it started from, too."""
        return self.method == "dpo" or self.loss == "decode-aware"

    @property
    def drawn_per(self) -> Literal["example", "batch"]:
        """What one preference is drawn for."""
        return self.alpha_per or ("example" if self.method == "uniarm" else "batch")

    @property
    def told_weight(self) -> bool:
        """Whether the guide is told how strongly it will pull."""
        return self.decode_weights == "conditioned"

    @property
    def one_preference_a_batch(self) -> bool:
        """Whether all pairs of a batch are read under one and the same condition."""
        return not self.conditioned or (self.drawn_per == "batch" and not self.told_weight)

    @property
    def global_weight(self) -> float:
        """λ: PARM has no global loss."""
        default = 0.1 if self.method == "uniarm" else 0.0
        return default if self.global_loss_weight is None else self.global_loss_weight

    def to_yaml(self) -> str:
        """Return the text of ``config.yaml``: ``trimtab train --config`` with it repeats the run."""
        import yaml

        values = self.model_dump(mode="json", exclude=_NOT_SAVED)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
